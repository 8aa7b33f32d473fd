package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

func files(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPack follows the archive from index to file, checking every digest.
func TestPack(t *testing.T) {
	a, err := pack([]byte("program"), "amd64", "ferry.local/mlp:latest")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := pack([]byte("program"), "amd64", "ferry.local/mlp:latest"); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the same program gave other bytes (%v)", err)
	}
	all := files(t, a)
	blob := func(d ocispec.Descriptor) []byte {
		b := all["blobs/sha256/"+d.Digest.Encoded()]
		if digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
			t.Errorf("blob %s is not what it says", d.Digest)
		}
		return b
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	var config ocispec.Image
	for _, x := range []struct {
		raw  func() []byte
		into any
	}{
		{func() []byte { return all["index.json"] }, &index},
		{func() []byte { return blob(index.Manifests[0]) }, &manifest},
		{func() []byte { return blob(manifest.Config) }, &config},
	} {
		if err := json.Unmarshal(x.raw(), x.into); err != nil {
			t.Fatal(err)
		}
	}
	if index.Manifests[0].Annotations["io.containerd.image.name"] != "ferry.local/mlp:latest" {
		t.Errorf("index %s names no image", all["index.json"])
	}
	if config.Config.User != "65532:65532" || config.Config.Entrypoint[0] != "/mlp" || config.Architecture != "amd64" {
		t.Errorf("config %+v", config)
	}
	layer := blob(manifest.Layers[0])
	if config.RootFS.DiffIDs[0] != digest.FromBytes(layer) {
		t.Error("the config names another layer")
	}
	if got := files(t, layer); string(got["mlp"]) != "program" {
		t.Errorf("layer holds %d files and not the program", len(got))
	}
}

func TestRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, binary := range []string{filepath.Join(dir, "none"), "/proc/self/cmdline"} {
		out := filepath.Join(dir, "out.tar")
		if err := run(binary, out, "x"); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %v has no hint", binary, err)
		}
	}
}
