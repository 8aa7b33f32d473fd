// Package store keeps images and the file systems of containers, on
// containerd's libraries: its content store, its overlay snapshotter and its
// bbolt metadata with leases, all in one metadata namespace that BuildKit
// shares, so that what is built can be run without a copy.
//
// It is the only importer of containerd besides package build, which plugs
// BuildKit into the parts handed out here. It knows nothing of pods or
// processes.
//
// What keeps a thing from garbage collection: an image its name; a layer the
// image's configuration (label gc.ref.snapshot), or a pin where a container lies
// on it; a container's writable layer its container; a view a label gc.root of
// its own; what is being made a lease, which the next Start ends should its
// maker die.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/ferryos/ferry/internal/fault"
)

// Namespace is the containerd metadata namespace of everything in the store.
const Namespace = "ferry"

// SnapshotterName names the one snapshotter.
const SnapshotterName = "overlayfs"

// Options are what a Store is made from.
type Options struct {
	Root string // directory on a file system that overlayfs can write to
	// PlainHTTP reports the registries ("host:port") spoken to without TLS,
	// besides those on loopback. May be nil.
	PlainHTTP func(host string) bool
	// Credential returns what the store itself knows for a registry, "" for
	// nothing. May be nil.
	Credential func(host string) (user, password string)
	// Registries are those that are reached otherwise than by https at their name.
	Registries []Registry
	// HostsDir is a directory in the form of containerd's certs.d that is looked
	// into for registries without mirrors in Registries; "" is none.
	HostsDir string
	// IdleTimeout is how long a registry may be silent in the middle of an
	// answer; a minute if it is 0.
	IdleTimeout time.Duration
	// RetryPause is how long a download that was cut off waits before the second
	// try, and longer before each that follows; half a second if it is 0.
	RetryPause time.Duration
	// Keep says which images may be removed when, by Reclaim.
	Keep Keep
	// InUse returns the IDs, or manifests' digests, of the images that containers
	// were made of. May be nil: none are.
	InUse func(ctx context.Context) []string
	Log   *slog.Logger
}

// Store is the image store. Its methods may be called concurrently.
type Store struct {
	opt      Options
	platform platforms.MatchComparer

	bolt        *bolt.DB
	db          *metadata.DB
	snapshotter snapshots.Snapshotter
	overlay     snapshots.Snapshotter // beneath snapshotter
	// overlayOptions are those of a mount of a writable layer.
	overlayOptions []string
	applier        diff.Applier // BuildKit's; see unpack.go for the store's own way
	images         images.Store
	leases         leases.Manager

	known    knownImages
	unpacked keyedMutex // by chain ID or artifact: who makes the snapshot
	fetching keyedMutex // by digest: who downloads the blob
	clients  clients
	used     usage
	writable writables
	clock    clock
	collect  collector
	compared atomic.Bool // what is on the disk was compared with what is recorded
}

// New returns a Store that does nothing before Start.
func New(opt Options) *Store {
	return &Store{opt: opt, platform: platforms.Only(platforms.DefaultSpec()), clock: newClock()}
}

// Name implements lifecycle.Component.
func (s *Store) Name() string { return "image store" }

// Start opens the store, making it if there is none.
func (s *Store) Start(ctx context.Context) (err error) {
	// The root is for root alone, also where an earlier version made it: what is
	// setuid in an image is so in its snapshots, and blobs may hold secrets.
	for _, dir := range []string{s.opt.Root, s.tmp()} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return fault.New(fault.Unavailable, "image store: %w", err).Hint("make room, or set dataDir in the configuration")
		}
	}
	// Layers are unpacked in mounts, which in /tmp everybody could look into.
	if err := mount.SetTempMountLocation(s.tmp()); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	blobs, err := local.NewStore(filepath.Join(s.opt.Root, "content"))
	if err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	s.overlay, err = overlay.NewSnapshotter(filepath.Join(s.opt.Root, "snapshots"), overlay.AsynchronousRemove)
	if err != nil {
		return fault.New(fault.Unsupported, "overlay snapshotter: %w", err).
			Hint("put dataDir on a file system that overlayfs can use as its upper layer, such as ext4 or xfs")
	}
	file := filepath.Join(s.opt.Root, "meta.db")
	s.bolt, err = bolt.Open(file, 0o600, &bolt.Options{
		Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		hint := "it may be damaged; docs/how-to/troubleshooting.md tells how to begin with an empty store"
		if errors.Is(err, bolterrors.ErrTimeout) {
			hint = "another process has it open"
		}
		return errors.Join(fault.New(fault.Unavailable, "image store's metadata %s: %w", file, err).Hint("%s", hint), s.overlay.Close())
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{SnapshotterName: s.overlay})
	ctx = namespaced(ctx)
	if err := s.db.Init(ctx); err != nil {
		return errors.Join(fmt.Errorf("image store's metadata: %w", err), s.bolt.Close(), s.overlay.Close())
	}
	s.snapshotter = s.db.Snapshotter(SnapshotterName)
	s.images, s.leases = metadata.NewImageStore(s.db), metadata.NewLeaseManager(s.db)
	s.applier = apply.NewFileSystemApplier(s.db.ContentStore())
	s.used.load(s.usedFile(), s.opt.Log)
	s.compared.Store(false)
	s.collect.start(ctx, s)
	s.overlayOptions = overlayOptions()
	if err := s.loadWritables(ctx); err != nil {
		return errors.Join(fmt.Errorf("image store: %w", err), s.Stop(ctx))
	}
	s.sweep(ctx)
	return nil
}

// tmp is where layers and artifacts are mounted to be unpacked.
func (s *Store) tmp() string { return filepath.Join(s.opt.Root, "tmp") }

// Stop closes the store. Mounts made of it stay.
func (s *Store) Stop(context.Context) error {
	s.collect.stop()
	s.clients.closeIdle()
	return errors.Join(s.used.save(s.usedFile()), s.overlay.Close(), s.db.Close(), s.bolt.Close())
}

// ContentStore is the blobs, for BuildKit.
func (s *Store) ContentStore() content.Store { return s.db.ContentStore() }

// Snapshotter is the layers, for BuildKit.
func (s *Store) Snapshotter() snapshots.Snapshotter { return s.snapshotter }

// Leases is the lease manager, for BuildKit.
func (s *Store) Leases() leases.Manager { return s.leases }

// ImageStore is the names of images, for BuildKit.
func (s *Store) ImageStore() images.Store { return s.images }

// DB is the metadata, for BuildKit.
func (s *Store) DB() *metadata.DB { return s.db }

// Applier unpacks layers, for BuildKit.
func (s *Store) Applier() diff.Applier { return s.applier }

// namespaced gives ctx the store's namespace, which containerd asks of every call.
func namespaced(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// LabelLease tells the store's own leases from BuildKit's.
const LabelLease = "ferry.dev/store"

// withLease keeps all that is made with the returned context from garbage
// collection until done, however long that takes.
func (s *Store) withLease(ctx context.Context) (_ context.Context, done func() error, err error) {
	l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithLabel(LabelLease, "made"))
	if err != nil {
		return nil, nil, fmt.Errorf("lease: %w", err)
	}
	end := context.WithoutCancel(ctx)
	return leases.WithLease(ctx, l.ID), func() error { return s.leases.Delete(end, l) }, nil
}

// asFault gives containerd's errors our kinds.
func asFault(err error) error {
	kind := fault.Internal
	switch {
	case err == nil:
		return nil
	case fault.KindOf(err) != fault.Internal:
		return err
	case errdefs.IsNotFound(err):
		kind = fault.NotFound
	case errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err), errdefs.IsConflict(err):
		kind = fault.Conflict
	case errdefs.IsInvalidArgument(err):
		kind = fault.Invalid
	case errdefs.IsUnavailable(err):
		kind = fault.Unavailable
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		kind = fault.Denied
	default:
		return err
	}
	return fault.New(kind, "%w", err)
}

// keyedMutex is a mutex for each key. Who waits for one can give up. While one
// is held another may be taken, of fetching after unpacked and never the other
// way, and of layers a lower one's by who holds a higher one's only.
type keyedMutex struct {
	mu   sync.Mutex // innermost
	held map[string]*waiters
}

type waiters struct {
	free chan struct{} // holds a value while nobody holds the mutex
	n    int
}

// lock locks key and returns its unlock, or the reason why ctx ended first.
func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	w := k.held[key]
	if w == nil {
		if k.held == nil {
			k.held = map[string]*waiters{}
		}
		w = &waiters{free: make(chan struct{}, 1)}
		w.free <- struct{}{}
		k.held[key] = w
	}
	w.n++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if w.n--; w.n == 0 {
			delete(k.held, key)
		}
	}
	select {
	case <-w.free:
		return func() { w.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
