package push

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// registry keeps blobs and manifests in memory and wants a credential: Basic,
// or with tokens Bearer from its own /token.
type registry struct {
	tokens    bool
	mu        sync.Mutex
	uploads   int
	blobs     map[string][]byte
	manifests map[string][]byte
	types     map[string]string
}

const (
	testUser, testPassword = "ferry", "s3cret"
	repo                   = "/v2/models/digits/"
)

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	user, password, _ := req.BasicAuth()
	basic := user == testUser && password == testPassword
	switch {
	case req.URL.Path == "/token" && basic && req.URL.Query().Get("scope") == "repository:models/digits:pull,push":
		fmt.Fprint(w, `{"token":"t0ken"}`)
		return
	case r.tokens && req.Header.Get("Authorization") != "Bearer t0ken":
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+req.Host+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	case !r.tokens && !basic:
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	rest, ok := strings.CutPrefix(req.URL.Path, repo)
	kind, name, _ := strings.Cut(rest, "/")
	switch {
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case req.Method == http.MethodHead && kind == "blobs" && r.blobs[name] == nil:
		w.WriteHeader(http.StatusNotFound)
	case req.Method == http.MethodHead && kind == "blobs":
		w.WriteHeader(http.StatusOK)
	case req.Method == http.MethodPost:
		r.uploads++
		w.Header().Set("Location", repo+"blobs/uploads/u1?_state=x")
		w.WriteHeader(http.StatusAccepted)
	case req.Method == http.MethodPut && kind == "blobs" && req.URL.Query().Get("_state") == "x" && req.URL.Query().Get("digest") == digest.FromBytes(body).String():
		r.blobs[digest.FromBytes(body).String()] = body
		w.WriteHeader(http.StatusCreated)
	case req.Method == http.MethodPut && kind == "manifests":
		r.manifests[name], r.types[name] = body, req.Header.Get("Content-Type")
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func startRegistry(t *testing.T, tokens bool) (*registry, Reference) {
	t.Helper()
	r := &registry{tokens: tokens, blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	ref, err := ParseReference(strings.TrimPrefix(s.URL, "http://") + "/models/digits:v1")
	if err != nil {
		t.Fatal(err)
	}
	return r, ref
}

func client(t *testing.T, host, password string) *Client {
	t.Helper()
	dir := t.TempDir()
	b, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"username": testUser, "password": password}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".dockerconfigjson"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func artifact(t *testing.T) *Artifact {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"model.safetensors": "weights", "metrics.json": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, err := Pack(dir, []string{"model.safetensors", "metrics.json"}, Description{
		Name: "models/digits", Version: "v1", Created: time.Unix(1700000000, 5), Params: 397510,
		Annotations: map[string]string{Annotation("accuracy"): "0.9860"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestPack checks the layout that runtimes look for, and that the same input
// gives the same bytes.
func TestPack(t *testing.T) {
	a := artifact(t)
	if b := artifact(t); b.Digest != a.Digest {
		t.Errorf("packed twice: %s and %s", a.Digest, b.Digest)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(a.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	if m.ArtifactType != artifactType || m.Config.MediaType != configType || len(m.Layers) != 1 || m.Layers[0].MediaType != layerType || m.Layers[0].Digest != digest.FromBytes(a.Layer) {
		t.Errorf("manifest %s", a.Manifest)
	}
	want := map[string]string{ocispec.AnnotationCreated: "2023-11-14T22:13:20Z", "dev.ferry.model.accuracy": "0.9860"}
	if d := cmp.Diff(want, m.Annotations); d != "" {
		t.Error(d)
	}
	var names []string
	for r := tar.NewReader(bytes.NewReader(a.Layer)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if d := cmp.Diff([]string{"metrics.json", "model.safetensors"}, names); d != "" {
		t.Error(d)
	}
}

func TestSend(t *testing.T) {
	for _, tokens := range []bool{false, true} {
		t.Run(fmt.Sprintf("tokens=%v", tokens), func(t *testing.T) {
			r, ref := startRegistry(t, tokens)
			a := artifact(t)
			for range 2 {
				if err := client(t, ref.Host, testPassword).Send(t.Context(), ref, a); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(r.manifests["v1"], a.Manifest) || r.types["v1"] != ocispec.MediaTypeImageManifest {
				t.Errorf("registry holds manifest %s of type %s", r.manifests["v1"], r.types["v1"])
			}
			if len(r.blobs) != 2 || r.uploads != 2 {
				t.Errorf("%d blobs after %d uploads, want 2 and 2", len(r.blobs), r.uploads)
			}
		})
	}
}

func TestSendFails(t *testing.T) {
	_, ref := startRegistry(t, false)
	_, tokenRef := startRegistry(t, true)
	gone := httptest.NewServer(http.NotFoundHandler())
	goneRef := Reference{Host: strings.TrimPrefix(gone.URL, "http://"), Repository: "a", Tag: "b"}
	gone.Close()
	for _, tc := range []struct {
		name string
		ref  Reference
		want string
	}{{"wrong password", ref, "401"}, {"no token", tokenRef, "no token"}, {"no registry", goneRef, "push 127"}} {
		t.Run(tc.name, func(t *testing.T) {
			err := client(t, tc.ref.Host, "wrong").Send(t.Context(), tc.ref, artifact(t))
			if err == nil || !strings.Contains(err.Error(), tc.want) || hint.Of(err) == "" {
				t.Errorf("got %v (hint %q), want error with %q", err, hint.Of(err), tc.want)
			}
		})
	}
}

func TestReference(t *testing.T) {
	for _, good := range []string{"localhost:5000/models/digits:v1", "10.85.0.1:5000/a", "registry.example/a/b_c:x.Y-1", "localhost/a"} {
		if _, err := ParseReference(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "digits", "models/digits:v1", "localhost:5000/", "localhost:5000/A:v1", "localhost:5000/a:", "localhost:5000/a:b:c", "localhost:5000/../a:v1"} {
		if _, err := ParseReference(bad); err == nil || hint.Of(err) == "" {
			t.Errorf("%q: %v has no hint", bad, err)
		}
	}
}

func TestScheme(t *testing.T) {
	for host, want := range map[string]string{
		"localhost:5000": "http", "127.0.0.1:5000": "http", "10.85.0.1:5000": "http", "[::1]:5000": "http",
		"registry.ferry.svc:5000": "http", "registry.ferry.svc.cluster.local": "http",
		"registry.example": "https", "8.8.8.8:5000": "https", "localhost.example:5000": "https",
	} {
		if got := scheme(host); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}

// TestSecretStaysSecret checks that a broken credential is not quoted.
func TestSecretStaysSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(`{"auths":"s3cret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := NewClient(path)
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}
