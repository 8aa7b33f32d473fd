// Command image packs the statically linked mlp binary into an OCI archive
// named ferry.local/mlp:latest, which ferryd imports as a built-in image.
//
// The same binary gives the same bytes. The Makefile runs it; nothing imports
// it.
package main

import (
	"archive/tar"
	"bytes"
	_ "crypto/sha256" // go-digest finds it at run time
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/runtimes/mlp/atomicfile"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// user is the conventional non-root user of images without a distribution.
const user = 65532

func main() {
	binary := flag.String("binary", "bin/mlp", "statically linked mlp")
	out := flag.String("o", "bin/images/mlp.tar", "archive to write")
	name := flag.String("name", "ferry.local/mlp:latest", "reference the image is imported as")
	flag.Parse()
	if err := run(*binary, *out, *name); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		if next := hint.Of(err); next != "" {
			fmt.Fprintf(os.Stderr, "hint: %s\n", next)
		}
		os.Exit(1)
	}
}

func run(binary, out, name string) error {
	prog, err := os.ReadFile(binary)
	if err != nil {
		return hint.Errorf("Build it first: CGO_ENABLED=0 go build -o "+binary+" ./runtimes/mlp", "read program: %w", err)
	}
	arch, err := staticArch(prog)
	if err != nil {
		return hint.Errorf("Build it with CGO_ENABLED=0.", "program %s: %w", binary, err)
	}
	archive, err := pack(prog, arch, name)
	if err != nil {
		return fmt.Errorf("pack %s: %w", binary, err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return atomicfile.Write(out, archive)
}

// staticArch returns OCI's name of the machine prog is for; a program that
// wants a dynamic loader would not start in an image without one.
func staticArch(prog []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(prog))
	if err != nil {
		return "", err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("it is dynamically linked")
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("unsupported machine %s", f.Machine)
}

// entry is one file of a tar; a name that ends in / is a directory.
type entry struct {
	name string
	mode int64
	uid  int
	data []byte
}

func tarball(entries []entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		// Times are zero, so that only content settles the bytes.
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, Size: int64(len(e.data)), ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
		if e.name[len(e.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

func pack(prog []byte, arch, name string) ([]byte, error) {
	layer, err := tarball([]entry{
		{"data/", 0o755, user, nil},
		{"etc/", 0o755, 0, nil},
		{"etc/group", 0o644, 0, fmt.Appendf(nil, "root:x:0:\nmlp:x:%d:\n", user)},
		{"etc/passwd", 0o644, 0, fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nmlp:x:%d:%d:mlp:/tmp:/sbin/nologin\n", user, user)},
		{"mlp", 0o755, 0, prog},
		{"tmp/", int64(fs.ModePerm) | 0o1000, 0, nil},
	})
	if err != nil {
		return nil, err
	}
	epoch := time.Unix(0, 0).UTC()
	config, err := json.Marshal(ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"},
		Config: ocispec.ImageConfig{
			User:         fmt.Sprintf("%d:%d", user, user),
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"},
			Entrypoint:   []string{"/mlp"},
			WorkingDir:   "/tmp",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}, "8081/tcp": {}},
			Labels:       map[string]string{ocispec.AnnotationTitle: "mlp", ocispec.AnnotationDescription: "Trains and serves feed-forward networks"},
		},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
		History: []ocispec.History{{Created: &epoch, CreatedBy: "runtimes/mlp/image"}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    descriptor(ocispec.MediaTypeImageConfig, config),
		Layers:    []ocispec.Descriptor{descriptor(ocispec.MediaTypeImageLayer, layer)},
	})
	if err != nil {
		return nil, err
	}
	top := descriptor(ocispec.MediaTypeImageManifest, manifest)
	top.Platform = &ocispec.Platform{Architecture: arch, OS: "linux"}
	// containerd's importers take the full name from the first of these.
	top.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: name}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{top},
	})
	if err != nil {
		return nil, err
	}
	entries := []entry{
		{ocispec.ImageLayoutFile, 0o644, 0, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
		{ocispec.ImageIndexFile, 0o644, 0, index},
		{"blobs/", 0o755, 0, nil},
		{"blobs/sha256/", 0o755, 0, nil},
	}
	for _, b := range [][]byte{manifest, config, layer} {
		entries = append(entries, entry{"blobs/sha256/" + digest.FromBytes(b).Encoded(), 0o644, 0, b})
	}
	return tarball(entries)
}

func descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}
