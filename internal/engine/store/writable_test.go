package store_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// TestWritable: a container's root outlives the store's restart and the names
// of its image; what was being made does not, nor what nothing needs.
func TestWritable(t *testing.T) {
	root, ctx := t.TempDir(), t.Context()
	s := open(t, root)
	const name = "ferry.test/app:latest"
	img := load(t, s, name, ocispec.ImageConfig{})
	for _, id := range []string{"", ".", "..", ".new-x", "a/b"} {
		if _, err := s.PrepareRootfs(ctx, id, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("a layer of the name %q: %v", id, err)
		}
	}
	want, err := s.PrepareRootfs(ctx, "first", name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PrepareRootfs(ctx, "first", name); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second layer of the name: %v", err)
	}
	if _, _, err := s.Remove(ctx, img.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "containers", ".new-killed", "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	again := store.New(store.Options{Root: root, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := again.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer again.Stop(context.WithoutCancel(ctx))
	if err := again.GC(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := again.RootfsMounts("first")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the mounts are %v, %v; they were %v", got, err, want)
	}
	dir := t.TempDir()
	if err := again.MountAll(got, dir); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "file"), "the same in all")
	if err := store.UnmountAll(dir); err != nil {
		t.Error(err)
	}
	for range 2 { // idempotent
		if err := again.RemoveRootfs(ctx, "first"); err != nil {
			t.Error(err)
		}
	}
	if err := again.GC(ctx); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"containers", "snapshots/snapshots"} {
		if left, err := os.ReadDir(filepath.Join(root, dir)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", dir, left, err)
		}
	}
}
