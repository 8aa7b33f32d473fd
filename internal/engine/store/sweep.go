package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// sweep takes away what an earlier process left that was killed: the leases of
// what it was making, and the mounts in which it was unpacking.
func (s *Store) sweep(ctx context.Context) {
	left, err := s.leases.List(ctx, fmt.Sprintf("labels.%q", LabelLease))
	for _, l := range left {
		err = errors.Join(err, s.leases.Delete(ctx, l))
	}
	if err != nil {
		s.opt.Log.Error("end the leases of an earlier process", "error", err)
	}
	s.collect.soon()
	dirs, _ := filepath.Glob(filepath.Join(s.tmp(), "*"))
	for _, dir := range dirs {
		// Remove, not RemoveAll: should it still be mounted, its content is a snapshot's.
		if err := errors.Join(UnmountAll(dir), os.Remove(dir)); err != nil {
			s.opt.Log.Error("remove what an interrupted unpacking left", "dir", dir, "error", err)
		}
	}
	if err := s.sweepLayers(ctx); err != nil {
		s.opt.Log.Error("remove layers that nothing is recorded of", "error", err)
	}
	if err := s.sweepIngests(); err != nil {
		s.opt.Log.Error("remove what an interrupted download left", "error", err)
	}
}

// sweepLayers removes the directories of layers that were made and not yet
// recorded. The next layer would get the same number, and fail for it.
func (s *Store) sweepLayers(ctx context.Context) error {
	overlay, ok := s.overlay.(snapshots.Cleaner)
	if !ok {
		return errors.New("the overlay snapshotter does not clean up")
	}
	err := overlay.Cleanup(ctx)
	if !errdefs.IsNotFound(err) {
		return err
	}
	// No layer was ever recorded.
	return os.RemoveAll(filepath.Join(s.opt.Root, "snapshots", "snapshots", "1"))
}

// sweepIngests removes downloads whose data has become a blob already: nobody
// asks for them again, and containerd's own collection does not see them. Of
// the others what has come is kept, to go on from there.
func (s *Store) sweepIngests() error {
	dirs, err := filepath.Glob(filepath.Join(s.opt.Root, "content", "ingest", "*"))
	for _, dir := range dirs {
		if _, statErr := os.Stat(filepath.Join(dir, "data")); errors.Is(statErr, fs.ErrNotExist) {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}
