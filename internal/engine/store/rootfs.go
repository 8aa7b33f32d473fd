package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Mount is one mount of a root file system, for MountAll.
type Mount = mount.Mount

// Usage is what a writable layer holds.
type Usage = snapshots.Usage

const (
	labelRoot        = "containerd.io/gc.root"
	labelSnapshotRef = "containerd.io/gc.ref.snapshot." + SnapshotterName
)

// rooted keeps a snapshot, and so its parents, until it is removed.
func rooted() snapshots.Opt {
	return snapshots.WithLabels(map[string]string{labelRoot: time.Now().UTC().Format(time.RFC3339)})
}

// PrepareRootfs makes the writable layer of a container on an image, unpacking
// that if it is not yet. Call RemoveRootfs at the end.
func (s *Store) PrepareRootfs(ctx context.Context, id, image string) ([]Mount, error) {
	s.used.mu.RLock()
	defer s.used.mu.RUnlock()
	img, err := s.Image(ctx, image)
	if err != nil {
		return nil, err
	}
	s.used.note(img.Target, s.clock.now())
	if err := s.runnable(img); err != nil {
		return nil, fmt.Errorf("image %s: %w", image, err)
	}
	ctx = namespaced(ctx)
	if err := s.ensureUnpacked(ctx, img); err != nil {
		return nil, err
	}
	mounts, err := s.makeWritable(ctx, id, img.ChainID())
	if err != nil {
		return nil, asFault(fmt.Errorf("writable layer on %s: %w", image, err))
	}
	return mounts, nil
}

// RootfsMounts returns the mounts of a container's root.
func (s *Store) RootfsMounts(id string) ([]Mount, error) {
	_, below, err := s.writableOf(id)
	if err != nil {
		return nil, err
	}
	return s.writableMounts(id, below), nil
}

// RemoveRootfs removes a container's writable layer, which is not mounted any
// more, or a view. Its files go in the background. Idempotent.
func (s *Store) RemoveRootfs(ctx context.Context, id string) error {
	removed, err := s.removeWritable(id)
	if err == nil && !removed {
		err = s.snapshotter.Remove(namespaced(ctx), id)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return asFault(fmt.Errorf("remove writable layer of %s: %w", id, err))
	}
	s.collect.soon()
	return nil
}

// Layers returns what PrepareRootfs and ViewImage made and was not removed.
func (s *Store) Layers(ctx context.Context) ([]string, error) {
	s.writable.mu.Lock()
	keys := slices.Collect(maps.Keys(s.writable.chain))
	s.writable.mu.Unlock()
	err := s.snapshotter.Walk(namespaced(ctx), func(_ context.Context, sn snapshots.Info) error {
		if !strings.HasPrefix(sn.Name, pinPrefix) {
			keys = append(keys, sn.Name)
		}
		return nil
	}, fmt.Sprintf("labels.%q", labelRoot))
	if err != nil {
		return nil, fmt.Errorf("list containers' layers: %w", err)
	}
	return keys, nil
}

// RootfsUsage is what a container wrote.
func (s *Store) RootfsUsage(ctx context.Context, id string) (Usage, error) {
	if _, _, err := s.writableOf(id); err != nil {
		return Usage{}, err
	}
	usage, err := fs.DiskUsage(ctx, filepath.Join(s.writableDir(id), upperName))
	return Usage(usage), err
}

// RootfsSize is what a container's root holds in all, its image's layers included.
func (s *Store) RootfsSize(ctx context.Context, id string) (int64, error) {
	key, _, err := s.writableOf(id)
	if err != nil {
		return 0, err
	}
	own, err := s.RootfsUsage(ctx, id)
	if err != nil {
		return 0, err
	}
	ctx = namespaced(ctx)
	total := own.Size
	for key != "" {
		info, err := s.snapshotter.Stat(ctx, key)
		if err != nil {
			return 0, asFault(err)
		}
		usage, err := s.snapshotter.Usage(ctx, key)
		if err != nil {
			return 0, asFault(err)
		}
		total += usage.Size
		key = info.Parent
	}
	return total, nil
}

// ViewImage makes a read-only file system of an image, or of an artifact's
// files, by its manifest's digest. Call RemoveView at the end.
func (s *Store) ViewImage(ctx context.Context, key, digest string) ([]Mount, error) {
	s.used.mu.RLock()
	defer s.used.mu.RUnlock()
	img, err := s.Image(ctx, digest)
	if err != nil {
		return nil, err
	}
	s.used.note(img.Target, s.clock.now())
	ctx = namespaced(ctx)
	var parent string
	if img.ArtifactType != "" {
		parent, err = s.ensureMaterialised(ctx, img)
	} else {
		parent, err = img.ChainID(), s.ensureUnpacked(ctx, img)
	}
	if err != nil {
		return nil, err
	}
	mounts, err := s.snapshotter.View(ctx, key, parent, rooted())
	if errdefs.IsAlreadyExists(err) { // left by a start that did not come to its end
		mounts, err = s.snapshotter.Mounts(ctx, key)
	}
	if err != nil {
		return nil, asFault(fmt.Errorf("view of %s: %w", digest, err))
	}
	return mounts, nil
}

// RemoveView ends a ViewImage. Idempotent.
func (s *Store) RemoveView(ctx context.Context, key string) error { return s.RemoveRootfs(ctx, key) }

// MountAll mounts mounts at dir.
func (s *Store) MountAll(mounts []Mount, dir string) error { return mount.All(mounts, dir) }

// UnmountAll takes every mount at dir away. Idempotent, also if dir does not exist.
func UnmountAll(dir string) error {
	if err := mount.UnmountAll(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// ensureUnpacked makes the snapshots of the image's layers unless they exist.
func (s *Store) ensureUnpacked(ctx context.Context, img Image) (err error) {
	if img.ArtifactType != "" {
		return errNoImage(img)
	}
	chain := img.ChainID()
	if chain == "" {
		return nil // FROM scratch with nothing in it: an empty root
	}
	// First, so that no collection comes between the look and the use. The layers
	// may be those of another image too, whose removal must not take them along.
	if err := s.refer(ctx, img.ID, labelSnapshotRef, chain); err != nil {
		return err
	}
	if _, err := s.snapshotter.Stat(ctx, chain); err == nil {
		return nil
	}
	ctx, done, err := s.withLease(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	return s.unpack(ctx, img, func(context.Context, int) error { return nil }, func(Event) {})
}

// refer has a blob keep a snapshot from garbage collection, which need not exist yet.
func (s *Store) refer(ctx context.Context, blob, label, snapshot string) error {
	dgst, err := digest.Parse(blob)
	if err != nil {
		return err
	}
	blobs := s.db.ContentStore()
	if info, err := blobs.Info(ctx, dgst); err == nil && info.Labels[label] == snapshot {
		return nil // as a rule; a write waits for the disk
	}
	_, err = blobs.Update(ctx, content.Info{Digest: dgst, Labels: map[string]string{label: snapshot}}, "labels."+label)
	if err != nil {
		return fmt.Errorf("keep snapshot %s: %w", snapshot, err)
	}
	return nil
}
