package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
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
