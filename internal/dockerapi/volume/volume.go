// Package volume keeps volumes: directories that outlive the containers they
// are mounted in, each below <root>/NAME/_data with its record beside.
//
// A volume is there as a whole or not at all: it is made under another name and
// renamed, and renamed before it is removed. A record that cannot be read costs
// the volume's labels, never its data. Only package dockerapi imports this; who
// uses a volume is for that to know.
package volume

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/fault"
)

// Volume is the record of a volume.
type Volume struct {
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"` // of Docker's local driver, see Options
	CreatedAt time.Time         `json:"createdAt"`
	// Anonymous is set for one that nobody gave a name.
	Anonymous bool `json:"anonymous,omitempty"`
	// Filling is set while an image's content is copied in: what is there is
	// not complete, and nobody's.
	Filling bool `json:"filling,omitempty"`
	// Doomed is set for one that goes with a container which is being removed.
	Doomed bool `json:"doomed,omitempty"`
}

const (
	recordFile = "volume.json"
	dataDir    = "_data"
	newPrefix  = ".new-"  // being made
	gonePrefix = ".gone-" // being removed
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// CheckName refuses what can be no volume's name.
func CheckName(name string) error {
	if !validName.MatchString(name) || len(name) > 255-len(gonePrefix) {
		return fault.New(fault.Invalid, "%q includes invalid characters for a local volume name, only %q are allowed", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]").
			Hint("to mount a directory of this machine give its absolute path")
	}
	return nil
}

// NewName is the name of an anonymous volume.
func NewName() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Store is the volumes of a directory. Its methods may be called concurrently.
type Store struct {
	root string

	mu     sync.Mutex // held for memory, records and renames; not while content is removed
	byName map[string]Volume
}

// Open reads the volumes of a directory, made if it is missing, and takes away
// what an earlier process was making or removing.
func Open(root string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	s := &Store{root: root, byName: map[string]Volume{}}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, newPrefix), strings.HasPrefix(name, gonePrefix):
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				log.Warn("remove what is left of a volume", "volume", name, "error", err)
			}
		case e.IsDir() && CheckName(name) == nil:
			v, err := s.read(name)
			if err != nil {
				log.Error("unreadable record of a volume: its labels and options are lost", "volume", name, "error", err)
			}
			s.byName[name] = v
		}
	}
	return s, nil
}

// read returns a volume's record, as much of it as can be read.
func (s *Store) read(name string) (Volume, error) {
	file := filepath.Join(s.root, name, recordFile)
	v := Volume{Name: name}
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &v)
	}
	if v.Name = name; err != nil {
		v = Volume{Name: name}
		if st, statErr := os.Stat(s.Path(name)); statErr == nil {
			v.CreatedAt = st.ModTime()
		}
	}
	return v, err
}

// Path is where a volume's own content is.
func (s *Store) Path(name string) string { return filepath.Join(s.root, name, dataDir) }

// Get returns a volume; NotFound if there is none.
func (s *Store) Get(name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.byName[name]
	if !ok {
		return v, fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	return v, nil
}

// List returns all volumes by name.
func (s *Store) List() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.byName), func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
}

// Create makes a volume, or returns the one that has the name, unless it has
// other options than v asks for.
func (s *Store) Create(v Volume) (_ Volume, made bool, err error) {
	if err := CheckName(v.Name); err != nil {
		return v, false, err
	}
	if _, err := ParseOptions(v.Options); err != nil {
		return v, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.byName[v.Name]; ok {
		if len(v.Options) > 0 && !maps.Equal(v.Options, have.Options) {
			return have, false, fault.New(fault.Conflict, "volume %s exists already with other options", v.Name).
				Hint("remove it first, or give the new one another name")
		}
		return have, false, nil
	}
	v.CreatedAt = time.Now()
	making := filepath.Join(s.root, newPrefix+v.Name)
	if err := os.MkdirAll(filepath.Join(making, dataDir), 0o755); err != nil {
		return v, false, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	err = writeRecord(making, v)
	if err == nil {
		err = os.Chmod(making, 0o701)
	}
	if err == nil {
		err = os.Rename(making, filepath.Join(s.root, v.Name))
	}
	if err != nil {
		return v, false, fmt.Errorf("create volume %s: %w", v.Name, errors.Join(err, os.RemoveAll(making)))
	}
	s.byName[v.Name] = v
	return v, true, nil
}

// writeRecord writes a record that is there as a whole or not at all. It does
// not wait for the disk: what a power cut takes is the record of a volume that
// was just made.
func writeRecord(dir string, v Volume) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, recordFile), data, 0o600)
}

// Update changes a volume's record; NotFound if there is no such volume.
func (s *Store) Update(name string, change func(*Volume)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.byName[name]
	if !ok {
		return fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	change(&v)
	if err := writeRecord(filepath.Join(s.root, name), v); err != nil {
		return fmt.Errorf("record of volume %s: %w", name, err)
	}
	s.byName[name] = v
	return nil
}

// Remove removes a volume, whose user has seen to it that nothing has it
// mounted. What it is made of beside its own directory, see Options, stays.
func (s *Store) Remove(name string) error {
	gone, err := s.takeAway(name)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

func (s *Store) takeAway(name string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byName[name]; !ok {
		return "", fault.New(fault.NotFound, "get %s: no such volume", name)
	}
	gone := filepath.Join(s.root, gonePrefix+name)
	err := os.RemoveAll(gone) // should the removal of one of this name have failed
	if err == nil {
		err = os.Rename(filepath.Join(s.root, name), gone)
	}
	if err != nil {
		return "", fmt.Errorf("remove volume %s: %w", name, err)
	}
	delete(s.byName, name)
	return gone, nil
}

// Size is how much of the disk a volume takes: each file once, however many
// names it has. What is removed meanwhile does not count.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	err := filepath.WalkDir(s.Path(name), func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !d.IsDir() {
			if id := (inode{st.Dev, st.Ino}); !seen[id] {
				seen[id] = true
				total += info.Size()
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return total, nil
}
