package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ferryos/ferry/internal/atomicfile"
)

// leases keeps one small file for each attachment, so that attaching costs one
// rename whatever the number of containers. Files are replaced atomically but
// not synced: what a power failure loses is gone from the kernel as well.
type leases struct {
	dir string
	log *slog.Logger
}

const leaseSuffix = ".json"

func (l leases) path(id string) string { return filepath.Join(l.dir, id+leaseSuffix) }

func (l leases) save(a Attachment) error {
	if err := writeJSON(l.path(a.ID), a); err != nil {
		return fmt.Errorf("save lease %s: %w", a.ID, err)
	}
	return nil
}

// remove is idempotent.
func (l leases) remove(id string) error {
	if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lease %s: %w", id, err)
	}
	return nil
}

// load reads every lease. A file that cannot be read as one is removed: it was
// cut short by a crash of the machine, which ended the container too.
func (l leases) load() ([]Attachment, error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make lease directory: %w", err)
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var all []Attachment
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		var a Attachment
		err := readJSON(path, &a)
		if id, ok := strings.CutSuffix(e.Name(), leaseSuffix); err == nil && (!ok || id != a.ID || !a.IP.Addr().Is4() && len(a.Endpoints) == 0) {
			err = errors.New("the content does not fit the name")
		}
		if err != nil {
			l.log.Warn("lease dropped", "path", path, "err", err)
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("remove broken lease: %w", err)
			}
			continue
		}
		if len(a.Endpoints) == 0 { // as it was written while there was but one network
			a.Endpoints = []Endpoint{{EndpointSpec: EndpointSpec{Network: DefaultNetwork}, ID: newID(), NetworkName: DefaultNetwork,
				Interface: "eth0", Address: a.IP, Gateway: a.Gateway, HardwareAddr: a.MAC}}
		}
		all = append(all, a)
	}
	return all, nil
}

// The cursor is where address allocation goes on after a restart. It is only
// a preference, so a lost or broken file means the start of the range.

func loadCursor(path string) uint32 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func saveCursor(path string, offset uint32) error {
	if err := os.WriteFile(path, strconv.AppendUint(nil, uint64(offset), 10), 0o600); err != nil {
		return fmt.Errorf("save address cursor: %w", err)
	}
	return nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// writeJSON replaces path atomically.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}
