package chaos

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// registry is an image registry on loopback that outlives the daemon.
type registry struct {
	host string
	mu   sync.Mutex
	data map[string][]byte // by digest, and manifests by tag too
}

func newRegistry(t *testing.T) *registry {
	r := &registry{data: map[string][]byte{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *registry) put(data []byte, names ...string) (digest string) {
	digest = fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range append(names, digest) {
		r.data[name] = data
	}
	return digest
}

// add makes an image of two layers: busybox and, with the stamp, some that nothing can compress.
func (r *registry) add(t *testing.T, stamp string) (ref string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	const media = "application/vnd.oci.image."
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	var layers []descriptor
	var diffs []string
	for _, layer := range [][]byte{layer(t, map[string][]byte{"bin/busybox": busybox}, "sh", "cat", "echo", "sleep", "usleep", "dd", "true"),
		layer(t, map[string][]byte{"stamp": []byte(stamp + "\n"), "noise": noise})} {
		digest := r.put(layer)
		layers, diffs = append(layers, descriptor{media + "layer.v1.tar", digest, len(layer)}), append(diffs, digest)
	}
	config, configErr := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"cat", "/stamp"},
		"Env": []string{"PATH=/bin"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": media + "manifest.v1+json",
		"config": descriptor{media + "config.v1+json", r.put(config), len(config)}, "layers": layers})
	if err := errors.Join(err, configErr); err != nil {
		t.Fatal(err)
	}
	r.put(manifest, stamp)
	return r.host + "/pulled:" + stamp
}

// layer is a tar of programs and files, and of applets of busybox.
func layer(t *testing.T, files map[string][]byte, applets ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, data := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range applets {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Typeflag: tar.TypeSymlink}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ServeHTTP implements http.Handler: /v2/, manifests and blobs.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
	r.mu.Lock()
	data, found := r.data[name]
	r.mu.Unlock()
	switch {
	case req.URL.Path == "/v2/":
	case !found:
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		if strings.Contains(req.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		}
		w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(data)))
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
	}
}
