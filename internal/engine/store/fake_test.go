package store_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeRegistry is a registry that speaks the real protocol, and misbehaves as a
// test wants.
type fakeRegistry struct {
	t    *testing.T
	host string

	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	types map[digest.Digest]string // of manifests
	tags  map[string]digest.Digest
	asked []string // METHOD PATH [RANGE], in order
	// misbehave answers a request instead of the registry if it returns true.
	misbehave func(w http.ResponseWriter, r *http.Request, data []byte) bool
	// user and password are asked for if set; with token, from a token service.
	user, password string
	token          bool
}

func newRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{t: t, blobs: map[digest.Digest][]byte{}, types: map[digest.Digest]string{}, tags: map[string]digest.Digest{}}
	server := httptest.NewServer(f)
	f.host = strings.TrimPrefix(server.URL, "http://")
	t.Cleanup(server.Close)
	return f
}

func (f *fakeRegistry) add(data []byte) digest.Digest {
	dgst := digest.FromBytes(data)
	f.blobs[dgst] = data
	return dgst
}

// document adds a manifest or an index, under a tag if it has one.
func (f *fakeRegistry) document(tag, mediaType string, v any) ocispec.Descriptor {
	data, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	dgst := f.add(data)
	f.types[dgst] = mediaType
	if tag != "" {
		f.tags[tag] = dgst
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(data))}
}

// testLayer is a layer as it is stored and what it is unpacked.
type testLayer struct {
	mediaType   string
	data, plain []byte
}

// image adds an image of layers, for a platform, under a tag.
func (f *fakeRegistry) image(tag, arch string, layers ...testLayer) ocispec.Descriptor {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, RootFS: ocispec.RootFS{Type: "layers"},
		Config: ocispec.ImageConfig{Labels: map[string]string{"tag": tag}}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l.plain))
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: l.mediaType, Digest: f.add(l.data), Size: int64(len(l.data))})
	}
	data, err := json.Marshal(config)
	if err != nil {
		f.t.Fatal(err)
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: f.add(data), Size: int64(len(data))}
	desc := f.document(tag, m.MediaType, m)
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return desc
}

func (f *fakeRegistry) index(tag string, list ...ocispec.Descriptor) ocispec.Descriptor {
	return f.document(tag, ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	misbehave := f.misbehave
	f.mu.Unlock()
	if r.URL.Path == "/token" {
		if user, password, _ := r.BasicAuth(); user != f.user || password != f.password {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"opensesame"}`)
		return
	}
	if !f.allowed(r) {
		challenge := `Basic realm="test"`
		if f.token {
			challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, f.host)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/v2/" {
		return
	}
	kind, key := "", ""
	for _, k := range []string{"manifests", "blobs"} {
		if _, after, ok := strings.Cut(r.URL.Path, "/"+k+"/"); ok {
			kind, key = k, after
		}
	}
	dgst, tagged := f.tags[key]
	if !tagged {
		dgst = digest.Digest(key)
	}
	data, ok := f.blobs[dgst]
	if !ok || (kind == "manifests") != (f.types[dgst] != "") {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if mediaType := f.types[dgst]; mediaType != "" {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Docker-Content-Digest", dgst.String())
	}
	if misbehave != nil && misbehave(w, r, data) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (f *fakeRegistry) allowed(r *http.Request) bool {
	switch {
	case f.user == "":
		return true
	case f.token:
		return r.Header.Get("Authorization") == "Bearer opensesame"
	default:
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte(f.user+":"+f.password))
		return r.Header.Get("Authorization") == want
	}
}

// set changes what the registry does, between requests.
func (f *fakeRegistry) set(misbehave func(w http.ResponseWriter, r *http.Request, data []byte) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.misbehave, f.asked = misbehave, nil
}

// requests counts those that contain text.
func (f *fakeRegistry) requests(text string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, line := range f.asked {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// entry is a file of a layer, however odd.
type entry struct {
	name, link, data string
	kind             byte
	mode             int64
	uid              int
}

// tarOf makes a plain tar of entries.
func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Size: int64(len(e.data)), Devmajor: 1, Devminor: 3}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func plainLayer(plain []byte) testLayer {
	return testLayer{ocispec.MediaTypeImageLayer, plain, plain}
}

func gzipLayer(t *testing.T, plain []byte) testLayer {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return testLayer{ocispec.MediaTypeImageLayerGzip, buf.Bytes(), plain}
}

func zstdLayer(t *testing.T, plain []byte) testLayer {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return testLayer{ocispec.MediaTypeImageLayerZstd, w.EncodeAll(plain, nil), plain}
}
