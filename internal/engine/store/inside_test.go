package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestLeases: what is being made is kept for as long as it takes; once its
// maker was killed it is not, and BuildKit's leases are none of ours.
func TestLeases(t *testing.T) {
	runnertest.NeedRoot(t)
	s := New(Options{Root: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	start := func() {
		t.Helper()
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	start()
	ctx := namespaced(t.Context())
	write := func(ctx context.Context, data string) digest.Digest {
		t.Helper()
		desc := ocispec.Descriptor{Digest: digest.FromString(data), Size: int64(len(data))}
		if err := content.WriteBlob(ctx, s.ContentStore(), data, bytes.NewReader([]byte(data)), desc); err != nil {
			t.Fatal(err)
		}
		return desc.Digest
	}
	leased, _, err := s.withLease(ctx) // never done, as if killed
	if err != nil {
		t.Fatal(err)
	}
	pulled := write(leased, "pulled")
	theirs, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithLabel("containerd.io/gc.flat", "now"))
	if err != nil {
		t.Fatal(err)
	}
	cached := write(leases.WithLease(ctx, theirs.ID), "cached")
	all, err := s.leases.List(ctx)
	if err != nil || len(all) != 2 {
		t.Fatalf("leases: %v, %v", all, err)
	}
	for _, l := range all {
		if when, found := l.Labels["containerd.io/gc.expire"]; found {
			t.Errorf("a lease ends by itself, at %s", when)
		}
	}
	expect := func(when string, dgst digest.Digest, want bool) {
		t.Helper()
		if err := s.GC(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ContentStore().Info(ctx, dgst); (err == nil) != want {
			t.Errorf("%s: blob is kept %v, want %v", when, err == nil, want)
		}
	}
	expect("while it is pulled", pulled, true)
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	start()
	expect("after a restart", pulled, false)
	expect("after a restart, BuildKit's", cached, true)
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestCollectUnrecorded: a kill between a blob or a layer and its record leaves
// them on the disk, where containerd's own collection looks only after a removal.
func TestCollectUnrecorded(t *testing.T) {
	runnertest.NeedRoot(t)
	s := New(Options{Root: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := namespaced(t.Context())
	kept, err := s.leases.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.snapshotter.Prepare(leases.WithLease(ctx, kept.ID), "kept", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	// As the metadata do it, up to their own record.
	if _, err := s.overlay.Prepare(ctx, "ferry/7/lost", ""); err != nil {
		t.Fatal(err)
	}
	blobs, err := local.NewStore(filepath.Join(s.opt.Root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	lost := ocispec.Descriptor{Digest: digest.FromString("lost"), Size: 4}
	if err := content.WriteBlob(ctx, blobs, "lost", bytes.NewReader([]byte("lost")), lost); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	layers, err := os.ReadDir(filepath.Join(s.opt.Root, "snapshots", "snapshots"))
	if err != nil || len(layers) != 1 {
		t.Errorf("%d layers are left, %v", len(layers), err)
	}
	if _, err := s.snapshotter.Stat(ctx, "kept"); err != nil {
		t.Error(err)
	}
	if _, err := blobs.Info(ctx, lost.Digest); err == nil {
		t.Error("the blob is left")
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestClockPutForward: a clock that jumps a year ahead does not make what is
// here a year old, nor does one that is put back keep it for ever.
func TestClockPutForward(t *testing.T) {
	s := New(Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: Keep{MaxAge: 24 * time.Hour, RemoveTagged: true}})
	const year = 365 * 24 * time.Hour
	start := s.clock.now()
	s.clock.wall = s.clock.wall.Add(-year) // now the machine's clock is a year ahead
	now := s.clock.now()
	for _, tt := range []struct {
		name        string
		used, named time.Time
		mayGo       bool
		tomorrow    bool // in two days
	}{
		{"pulled before", now.Add(-time.Hour), now.Add(-time.Hour), false, true},
		{"pulled since", now, start, false, true},
		{"named since, never used", time.Time{}, start, false, true},
		{"used before the clock was put back", start, start, false, true},
		{"old", now.Add(-48 * time.Hour), now.Add(-72 * time.Hour), true, true},
		{"old, never used", time.Time{}, now.Add(-72 * time.Hour), true, true},
		{"named again", now.Add(-72 * time.Hour), now.Add(-time.Hour), false, true},
	} {
		s.used = usage{}
		if !tt.used.IsZero() {
			s.used.note(tt.name, tt.used)
		}
		for at, want := range map[time.Duration]bool{0: tt.mayGo, 48 * time.Hour: tt.tomorrow} {
			_ = s.lastUse(tt.name, tt.named, now) // looks are regular
			last := s.lastUse(tt.name, tt.named, now.Add(at))
			if got := now.Add(at).Sub(last) > s.opt.Keep.MaxAge; got != want {
				t.Errorf("%s: in %v too old is %v, want %v; last used %v", tt.name, at, got, want, last)
			}
		}
	}
}

// TestMapBesideMounts: while something that cannot be mapped is mounted in the
// store, an artifact that is unpacked for one, the layers can be.
func TestMapBesideMounts(t *testing.T) {
	runnertest.NeedRoot(t)
	s := New(Options{Root: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckMapped(); err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(s.tmp(), "beside")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.MountAll([]Mount{{Type: "proc", Source: "proc"}}, dir); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.CheckMapped(), UnmountAll(dir), s.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// TestUnpackInPrivate: what containerd mounts to unpack is not in /tmp, where
// the machine's users could run what is setuid in it.
func TestUnpackInPrivate(t *testing.T) {
	runnertest.NeedRoot(t)
	s := New(Options{Root: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := mount.WithTempMount(t.Context(), []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, func(dir string) error {
		if filepath.Dir(dir) != filepath.Join(s.opt.Root, "tmp") {
			t.Errorf("mounted at %s", dir)
		}
		return nil
	})
	if err := errors.Join(err, s.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// TestSweep: a kill between the directory of a layer and its record, or between
// a blob and the end of its download, leaves nothing, and the next layer can be made.
func TestSweep(t *testing.T) {
	runnertest.NeedRoot(t)
	s := New(Options{Root: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	layer := filepath.Join(s.opt.Root, "snapshots", "snapshots", "1")
	moved, begun := filepath.Join(s.opt.Root, "content", "ingest", "moved"), filepath.Join(s.opt.Root, "content", "ingest", "begun")
	for _, dir := range []string{layer, moved, begun} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(begun, "data"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{layer: false, moved: false, begun: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err == nil, want)
		}
	}
	if _, err := s.snapshotter.Prepare(namespaced(t.Context()), "first", ""); err != nil {
		t.Error(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}
