package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// open starts a store on a directory until the end of the test.
func open(t *testing.T, root string) *store.Store {
	t.Helper()
	runnertest.NeedRoot(t) // unpacking mounts
	s := store.New(store.Options{Root: root, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return s
}

// load loads an image of one file and returns it.
func load(t *testing.T, s *store.Store, name string, config ocispec.ImageConfig) store.Image {
	t.Helper()
	files := []enginetest.File{{Name: "file", Data: []byte("the same in all")}}
	if _, err := s.Load(t.Context(), bytes.NewReader(enginetest.Archive(t, name, files, config))); err != nil {
		t.Fatal(err)
	}
	img, err := s.Image(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestLoadDamaged: an archive that cannot be unpacked leaves the name to the
// image that has it.
func TestLoadDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	const name = "ferry.test/app:latest"
	good := load(t, s, name, ocispec.ImageConfig{})
	layer := []byte("not a tar")
	config, err := json.Marshal(ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{name, "ferry.test/new:latest"} {
		archive := enginetest.ArtifactArchive(t, bad, ocispec.MediaTypeImageConfig, config, ocispec.MediaTypeImageLayer, layer)
		if names, err := s.Load(t.Context(), bytes.NewReader(archive)); err == nil {
			t.Errorf("loaded %v", names)
		}
	}
	if img, err := s.Image(t.Context(), name); err != nil || img.ID != good.ID {
		t.Errorf("the name is %s's, %v; want %s", img.ID, err, good.ID)
	}
	if _, err := s.Image(t.Context(), "ferry.test/new:latest"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the image that could not be loaded: %v", err)
	}
}

// TestSharedLayers: what two images share stays when one of them is removed.
func TestSharedLayers(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := t.Context()
	first := load(t, s, "ferry.test/first:latest", ocispec.ImageConfig{Cmd: []string{"first"}})
	second := load(t, s, "ferry.test/second:latest", ocispec.ImageConfig{Cmd: []string{"second"}})
	if first.ID == second.ID || first.ChainID() != second.ChainID() {
		t.Fatalf("%s and %s do not share their layers", first.ID, second.ID)
	}
	unpacked := func() error {
		t.Helper()
		if err := s.GC(ctx); err != nil {
			t.Fatal(err)
		}
		_, err := s.Snapshotter().Stat(namespaces.WithNamespace(ctx, store.Namespace), second.ChainID())
		return err
	}
	if _, _, err := s.Remove(ctx, first.ID, false); err != nil {
		t.Fatal(err)
	}
	if err := unpacked(); err != nil {
		t.Errorf("without the first: %v", err)
	}
	if _, _, err := s.Remove(ctx, second.ID, false); err != nil {
		t.Fatal(err)
	}
	if err := unpacked(); err == nil {
		t.Error("the layers outlive both images")
	}
}
