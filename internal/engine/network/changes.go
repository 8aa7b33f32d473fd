package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
)

// ChangeKind says what sort of thing on the machine was changed.
type ChangeKind string

// The kinds of change.
const (
	ChangeInterface ChangeKind = "interface"
	ChangeNftables  ChangeKind = "nftables"
	ChangeSysctl    ChangeKind = "sysctl"
)

// Change is one thing on the machine that the network made or set, and that
// Teardown removes or puts back.
type Change struct {
	Kind ChangeKind `json:"kind"`
	// Name is the interface, "table NAME" or "chain TABLE NAME", or the sysctl.
	Name string `json:"name"`
	// Old is a sysctl's value before; empty for things that were made.
	Old string `json:"old,omitempty"`
	// New is a sysctl's value since; empty for things that were made.
	New string `json:"new,omitempty"`
}

// journal keeps the changes on disk, each written before it is made, so that
// a process that was killed can be cleaned up after.
type journal struct {
	path string

	mu   sync.Mutex // held over the file's writing; a leaf
	boot string
	list []entry
}

// entry is a change with the boot that it belongs to. All kinds end with it:
// what a setting is in the next one is somebody else's choice.
type entry struct {
	Change
	Boot string `json:"boot"`
}

// load reads the changes of this boot.
func (j *journal) load() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	boot, err := readSysctl("kernel.random.boot_id")
	if err != nil {
		return err
	}
	var list []entry
	err = readJSON(j.path, &list)
	// A file that is no JSON was not on the disk when the machine lost its
	// power: of an earlier boot as well.
	if _, torn := errors.AsType[*json.SyntaxError](err); err != nil && !torn && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the list of changes to this machine: %w", err)
	}
	j.boot = boot
	j.list = slices.DeleteFunc(list, func(e entry) bool { return e.Boot != boot })
	return nil
}

func (j *journal) all() []Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []Change
	for _, e := range j.list {
		all = append(all, e.Change)
	}
	return all
}

// record notes a change about to be made. One noted before keeps its old value.
func (j *journal) record(c Change) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	same := func(o entry) bool { return o.Kind == c.Kind && o.Name == c.Name }
	if slices.ContainsFunc(j.list, same) {
		return nil
	}
	return j.write(append(slices.Clone(j.list), entry{c, j.boot}))
}

// forget notes that a change has been undone.
func (j *journal) forget(kind ChangeKind, name string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(j.list), func(o entry) bool { return o.Kind == kind && o.Name == name })
	if len(left) == len(j.list) {
		return nil
	}
	return j.write(left)
}

func (j *journal) write(list []entry) error {
	if err := writeJSON(j.path, list); err != nil {
		return fmt.Errorf("write the list of changes to this machine: %w", err)
	}
	j.list = list
	return nil
}

func readSysctl(name string) (string, error) {
	data, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// setSysctl changes a setting of the machine unless it is right already.
func (n *Network) setSysctl(name, value string) error {
	old, err := readSysctl(name)
	if err != nil || old == value {
		return err
	}
	if err := n.changes.record(Change{Kind: ChangeSysctl, Name: name, Old: old, New: value}); err != nil {
		return err
	}
	return writeSysctls(map[string]string{name: value})
}

// restoreSysctl puts a setting back unless someone has changed it since.
func restoreSysctl(c Change) error {
	now, err := readSysctl(c.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || now != c.New {
		return err
	}
	return writeSysctls(map[string]string{c.Name: c.Old})
}
