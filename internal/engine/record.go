package engine

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ferryos/ferry/internal/atomicfile"
)

// records keeps one JSON file for each pod or container in a directory, so
// that what runs can be taken up again after the daemon ends, however it ends.
type records[T any] struct{ dir string }

func (r records[T]) open() error { return os.MkdirAll(r.dir, 0o700) }

func (r records[T]) path(id string) string { return filepath.Join(r.dir, id+".json") }

// save writes the record by rename, so that a reader sees the old or the new
// one. It does not wait for the disk: the records describe processes, which a
// power loss ends as well.
func (r records[T]) save(id string, v T) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	if err := atomicfile.Write(r.path(id), data, 0o600); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

func (r records[T]) remove(id string) error {
	if err := os.Remove(r.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", id, err)
	}
	return nil
}

// load returns all records. One that cannot be read is reported to bad and
// left where it is. No record is saved meanwhile.
func (r records[T]) load(bad func(path string, err error)) (map[string]T, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]T, len(entries))
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), atomicfile.Unfinished) { // the daemon ended during its save
			if err := os.Remove(filepath.Join(r.dir, e.Name())); err != nil {
				return nil, err
			}
		}
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		var v T
		data, err := os.ReadFile(r.path(id))
		if err == nil {
			err = json.Unmarshal(data, &v)
		}
		if err != nil {
			bad(r.path(id), err)
			continue
		}
		out[id] = v
	}
	return out, nil
}

// idLength is the length of an ID.
const idLength = 64

// newID returns 64 hexadecimal digits, as Docker's and containerd's IDs are.
func newID() string {
	var b [idLength / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// keepExit tries again to record an exit that could not be, until it is: a full
// disk has room later. c.mu is held.
func (e *Engine) keepExit(c *container) {
	saved := make(chan struct{})
	c.unsaved = saved
	e.background.Go(func() {
		for wait := time.Second; ; wait = min(2*wait, maxRetry) {
			select {
			case <-time.After(wait):
			case <-c.removed:
				close(saved)
				return
			case <-e.stopped:
				return
			}
			if e.setContainer(c, func(*Container) {}) == nil {
				close(saved)
				return
			}
		}
	})
}

// exitsSaved waits until the exits of a pod's containers are on disk; until
// then only the runner has them, should the daemon be killed. It reports false
// if the engine stops before.
func (e *Engine) exitsSaved(podID string) bool {
	for _, c := range e.containersOf(podID) {
		c.mu.Lock()
		saved := c.unsaved
		c.mu.Unlock()
		if saved == nil {
			continue
		}
		select {
		case <-saved:
		case <-e.stopped:
			return false
		}
	}
	return true
}
