package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// fuzzStore is a store for all inputs of a fuzz target.
func fuzzStore(f *testing.F) *Store {
	f.Helper()
	runnertest.NeedRoot(f)
	s := New(Options{Root: f.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err := s.Start(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(f.Context())); err != nil {
			f.Error(err)
		}
	})
	return s
}

// put writes a blob and describes it as if it were of the type.
func put(t *testing.T, s *Store, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	ctx := namespaced(t.Context())
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(ctx, s.ContentStore(), desc.Digest.String(), bytes.NewReader(data), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

// FuzzDocument: whatever is in a manifest, an index or a configuration, reading
// it ends with an image or an error that says whose fault it is.
func FuzzDocument(f *testing.F) {
	s := fuzzStore(f)
	types := []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageConfig}
	valid := digest.FromString("x").String()
	for _, seed := range []string{
		`{}`, `[]`, `null`, `7`, `{"schemaVersion":2}`, `{"manifests":[]}`, `{"layers":null,"config":null}`,
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + valid + `","size":1},"layers":[{"digest":"` + valid + `","size":-1}]}`,
		`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"` + valid + `","size":9223372036854775807}]}`,
		`{"manifests":[{"digest":"sha256:","platform":{"os":"linux","architecture":"amd64","variant":"v9"}},{"digest":"md5:00"}]}`,
		`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:zz","` + valid + `"]},"created":"not a time"}`,
		`{"os":"","config":{"Env":null,"User":"0:0:0","Labels":{"":""}},"history":[{"empty_layer":true},{}]}`,
		`{"fsLayers":[{"blobSum":"` + valid + `"}],"schemaVersion":1}`,
	} {
		for i := range types {
			f.Add(uint8(i), []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		ctx := namespaced(t.Context())
		mediaType := types[int(kind)%len(types)]
		desc := put(t, s, mediaType, data)
		if mediaType == ocispec.MediaTypeImageConfig {
			m, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: desc})
			if err != nil {
				t.Fatal(err)
			}
			desc = put(t, s, ocispec.MediaTypeImageManifest, m)
		}
		if err := verifyKnown(desc); err != nil {
			t.Fatal(err)
		}
		img, err := s.decode(ctx, desc, "")
		if err == nil {
			_, _, _, _ = img.ChainID(), img.RepoTags(), img.Platform(), s.runnable(img)
			_ = s.ensureUnpacked(ctx, img) // must not panic; that it fails is likely
		}
		_, _ = s.complete(ctx, desc, 0)
		if list, err := children(ctx, s.ContentStore(), desc, 0); err == nil {
			for _, child := range list {
				if child.Digest.Validate() != nil || child.Size < 0 {
					t.Errorf("child %+v passes", child)
				}
			}
			_ = pick(list, s.platform)
		}
	})
}

// FuzzLayer: whatever is in a layer, unpacking it touches nothing outside of the
// store, and ends.
func FuzzLayer(f *testing.F) {
	s := fuzzStore(f)
	outside := f.TempDir()
	victim := filepath.Join(outside, "victim")
	up := strings.Repeat("../", 20)
	seed := func(headers ...tar.Header) {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range headers {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes(), false)
		f.Add(buf.Bytes(), true)
	}
	seed(tar.Header{Name: "file", Mode: 0o644})
	seed(tar.Header{Name: up + victim[1:], Mode: 0o644})
	seed(tar.Header{Name: "way", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "way/victim", Mode: 0o644})
	seed(tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: victim})
	seed(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1777}, tar.Header{Name: "d/.wh..wh..opq"}, tar.Header{Name: ".wh.d"})
	seed(tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, tar.Header{Name: "pipe", Typeflag: tar.TypeFifo})
	seed(tar.Header{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}})
	f.Add([]byte{0x1f, 0x8b, 0x08, 0}, false)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0}, true)
	f.Fuzz(func(t *testing.T, data []byte, bottom bool) {
		if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "fs"), 0o755); err != nil {
			t.Fatal(err)
		}
		l := &layer{store: s, blob: put(t, s, ocispec.MediaTypeImageLayer, data), diffID: digest.FromBytes(data), bottom: bottom, report: func(Event) {}}
		err := l.apply(namespaced(t.Context()), filepath.Join(dir, "fs"))
		if err != nil && fault.Is(err, fault.Internal) && t.Context().Err() == nil {
			t.Logf("told as a defect: %v", err)
		}
		list, err := os.ReadDir(outside)
		if got, readErr := os.ReadFile(victim); readErr != nil || string(got) != "untouched" || err != nil || len(list) != 1 {
			t.Fatalf("outside: %v %q, %v %v", list, got, err, readErr)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) > 1 {
			t.Fatalf("beside the layer: %v, %v", list, err)
		}
	})
}
