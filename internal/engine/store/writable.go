package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// A container's writable layer is a directory of its own, not a snapshot: to
// make and to remove one waits for no disk, as a snapshot's three transactions
// do, so that fifty containers can be made at once. It holds
//
//	fs          what the container writes
//	work        overlayfs's own
//	sha256:…    empty, named by the chain ID of the image's layers that it lies
//	            on: after a power cut names are there in the order in which they
//	            were made, while what was written into a file may not be
//
// What it lies on is kept by a pin: one view of those layers for all the
// containers on them, which a collection takes away once neither a container
// nor an image has them.
type writables struct {
	mu    sync.Mutex
	chain map[string]string   // of each layer
	below map[string][]string // by pinned chain: the layers' directories, the uppermost first
}

const (
	pinPrefix   = "pin-"
	newPrefix   = ".new-"  // one that is being made
	gonePrefix  = ".gone-" // one that was removed, for the collection
	upperName   = "fs"
	workName    = "work"
	overlayType = "overlay"
)

// writableDir is where the writable layer of a container is.
func (s *Store) writableDir(id string) string { return filepath.Join(s.writablesDir(), id) }
func (s *Store) writablesDir() string         { return filepath.Join(s.opt.Root, "containers") }

// loadWritables finds the layers and pins that an earlier process made.
func (s *Store) loadWritables(ctx context.Context) error {
	s.writable.chain, s.writable.below = map[string]string{}, map[string][]string{}
	if err := os.MkdirAll(s.writablesDir(), 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.writablesDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := s.writableDir(e.Name())
		switch {
		case strings.HasPrefix(e.Name(), gonePrefix):
			s.collect.soon()
			continue
		case strings.HasPrefix(e.Name(), newPrefix):
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		names, err := filepath.Glob(filepath.Join(dir, "*:*"))
		if err != nil {
			return err
		}
		s.writable.chain[e.Name()] = ""
		for _, name := range names {
			s.writable.chain[e.Name()] = filepath.Base(name)
		}
	}
	return s.snapshotter.Walk(ctx, func(ctx context.Context, sn snapshots.Info) error {
		chain, pinned := strings.CutPrefix(sn.Name, pinPrefix)
		if !pinned {
			return nil
		}
		mounts, err := s.snapshotter.Mounts(ctx, sn.Name)
		if err == nil {
			s.writable.below[chain] = directories(mounts[0])
		}
		return err
	}, fmt.Sprintf("labels.%q", labelRoot))
}

// makeWritable makes the writable layer of a container on layers that exist.
func (s *Store) makeWritable(ctx context.Context, id, chain string) (mounts []Mount, err error) {
	if filepath.Base(id) != id || strings.HasPrefix(id, ".") {
		return nil, fault.New(fault.Invalid, "a container cannot have the name %q", id)
	}
	below, err := s.pin(ctx, id, chain)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.writablesDir(), newPrefix+id)
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
			s.forgetWritable(id)
		}
	}()
	for _, name := range []string{"", upperName, workName} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return nil, err
		}
	}
	if len(below) > 0 { // the root's owner is what the uppermost layer says
		var st unix.Stat_t
		if err := unix.Stat(below[0], &st); err != nil {
			return nil, err
		}
		if err := os.Lchown(filepath.Join(dir, upperName), int(st.Uid), int(st.Gid)); err != nil {
			return nil, err
		}
	}
	if chain != "" {
		if err := os.WriteFile(filepath.Join(dir, chain), nil, 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(dir, s.writableDir(id)); err != nil {
		return nil, err
	}
	return s.writableMounts(id, below), nil
}

// pin notes that a container lies on layers, has them kept and returns their
// directories, the uppermost first.
func (s *Store) pin(ctx context.Context, id, chain string) ([]string, error) {
	w := &s.writable
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, exists := w.chain[id]; exists {
		return nil, fault.New(fault.Conflict, "container %s has a writable layer", id)
	}
	below, pinned := w.below[chain]
	if !pinned && chain != "" {
		mounts, err := s.snapshotter.View(ctx, pinPrefix+chain, chain, rooted())
		if err != nil {
			return nil, err
		}
		below = directories(mounts[0])
		w.below[chain] = below
	}
	w.chain[id] = chain
	return below, nil
}

func (s *Store) forgetWritable(id string) {
	s.writable.mu.Lock()
	defer s.writable.mu.Unlock()
	delete(s.writable.chain, id)
}

// writableOf returns what a container's writable layer lies on: the chain ID
// and the directories. NotFound if it has none.
func (s *Store) writableOf(id string) (chain string, below []string, err error) {
	s.writable.mu.Lock()
	defer s.writable.mu.Unlock()
	chain, exists := s.writable.chain[id]
	if !exists {
		return "", nil, fault.New(fault.NotFound, "container %s has no writable layer", id)
	}
	below = s.writable.below[chain]
	if chain != "" && len(below) == 0 {
		return "", nil, fault.New(fault.Internal, "container %s: the image's layers %s are gone", id, chain)
	}
	return chain, below, nil
}

// writableMounts are the mounts of a container's root.
func (s *Store) writableMounts(id string, below []string) []Mount {
	upper := filepath.Join(s.writableDir(id), upperName)
	if len(below) == 0 {
		return []Mount{{Type: "bind", Source: upper, Options: []string{"rw", "rbind"}}}
	}
	options := []string{"lowerdir=" + strings.Join(below, ":"), "upperdir=" + upper, "workdir=" + filepath.Join(s.writableDir(id), workName)}
	return []Mount{{Type: overlayType, Source: overlayType, Options: append(options, s.overlayOptions...)}}
}

// removeWritable removes a container's writable layer, if it has one. What was
// in it goes with the next collection.
func (s *Store) removeWritable(id string) (removed bool, err error) {
	s.writable.mu.Lock()
	_, exists := s.writable.chain[id]
	s.writable.mu.Unlock()
	if !exists {
		return false, nil
	}
	err = os.Rename(s.writableDir(id), filepath.Join(s.writablesDir(), gonePrefix+rand.Text()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	s.forgetWritable(id)
	return true, nil
}

// collectWritables deletes the removed layers, and those that an earlier
// process did not finish, and takes away the pins that nothing needs.
func (s *Store) collectWritables(ctx context.Context) error {
	gone, err := filepath.Glob(filepath.Join(s.writablesDir(), gonePrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range gone {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return errors.Join(err, s.unpin(ctx))
}

// unpin takes away the pins of layers that no container lies on and no image has.
func (s *Store) unpin(ctx context.Context) error {
	w := &s.writable
	w.mu.Lock()
	unused := make(map[string]bool, len(w.below))
	for chain := range w.below {
		unused[chain] = true
	}
	w.mu.Unlock()
	if len(unused) == 0 {
		return nil
	}
	images, err := s.Images(ctx)
	if err != nil {
		return err
	}
	for _, img := range images {
		delete(unused, img.ChainID())
	}
	// Under the lock, or a container would come to lie on what is on its way out.
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, chain := range w.chain {
		delete(unused, chain)
	}
	for chain := range unused {
		if err := s.snapshotter.Remove(ctx, pinPrefix+chain); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("let go of layers %s: %w", chain, err)
		}
		delete(w.below, chain)
	}
	return nil
}

// directories are those of a read-only mount of layers, the uppermost first.
func directories(m Mount) []string {
	for _, o := range m.Options {
		if list, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(list, ":")
		}
	}
	return []string{m.Source}
}

// overlayOptions are those that the overlay snapshotter gives its mounts on
// this kernel.
func overlayOptions() []string {
	// Without it containers could not share layers where index is on by default.
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		return []string{"index=off"}
	}
	return nil
}
