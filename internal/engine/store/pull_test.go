package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// openWith starts a store with options of the test's.
func openWith(t *testing.T, opt store.Options) *store.Store {
	t.Helper()
	runnertest.NeedRoot(t)
	opt.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s := store.New(opt)
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

// root mounts an image as a container would have it and returns the directory.
func root(t *testing.T, s *store.Store, image string) string {
	t.Helper()
	ctx, id := context.WithoutCancel(t.Context()), "root-"+strconv.Itoa(int(rand.Uint32()))
	mounts, err := s.PrepareRootfs(ctx, id, image)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.MountAll(mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(store.UnmountAll(dir), s.RemoveRootfs(ctx, id)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if data, err := os.ReadFile(path); err != nil || string(data) != want {
		t.Errorf("%s: %.40q, %v; want %.40q", path, data, err, want)
	}
}

// blobs counts what the store has, after a collection.
func blobCount(t *testing.T, s *store.Store) (n int) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), store.Namespace)
	if err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.ContentStore().Walk(ctx, func(content.Info) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestPullFormats: every format and compression of layers, of both families of
// media types, nested indexes and what is attested of an image.
func TestPullFormats(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	layers := []testLayer{
		gzipLayer(t, tarOf(t, entry{name: "a", data: "first"}, entry{name: "gone", data: "x"}, entry{name: "dir/old", data: "x"})),
		zstdLayer(t, tarOf(t, entry{name: "b", data: "second"}, entry{name: ".wh.gone"}, entry{name: "dir/.wh..wh..opq"}, entry{name: "dir/new", data: "y"})),
		plainLayer(tarOf(t, entry{name: "a", data: "third"})),
	}
	own := f.image("oci", "amd64", layers...)
	docker := layers
	docker[0].mediaType, docker[1].mediaType, docker[2].mediaType = images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd, images.MediaTypeDockerSchema2Layer
	f.image("docker", "amd64", docker...)
	other := f.image("", "arm64", gzipLayer(t, tarOf(t, entry{name: "a", data: "for arm"})))
	attestation := f.document("", ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: f.add([]byte(`{"os":"unknown"}`)), Size: 16},
		Layers: []ocispec.Descriptor{{MediaType: "application/vnd.in-toto+json", Digest: f.add([]byte("{}")), Size: 2}}})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": own.Digest.String()}
	f.index("list", other, own, attestation)
	inner := f.index("", own)
	f.index("nested", f.index("", inner))
	for _, tag := range []string{"oci", "docker", "list", "nested"} {
		name := f.host + "/team/app:" + tag
		img, err := s.Pull(t.Context(), name, store.TransferOptions{})
		if err != nil {
			t.Errorf("%s: %v", tag, err)
			continue
		}
		if img.Architecture != "amd64" || len(img.Layers) != 3 {
			t.Errorf("%s: %+v", tag, img)
		}
		dir := root(t, s, name)
		wantFile(t, dir+"/a", "third")
		wantFile(t, dir+"/b", "second")
		wantFile(t, dir+"/dir/new", "y")
		for _, gone := range []string{"gone", "dir/old"} {
			if _, err := os.Lstat(filepath.Join(dir, gone)); err == nil {
				t.Errorf("%s: %s is there", tag, gone)
			}
		}
	}
	ctx := namespaces.WithNamespace(t.Context(), store.Namespace)
	if err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ContentStore().Info(ctx, attestation.Digest); err != nil {
		t.Errorf("what is attested was not pulled: %v", err)
	}
	if _, err := s.ContentStore().Info(ctx, other.Digest); err == nil {
		t.Error("another platform's variant was pulled unasked")
	}
}

// TestPlatforms: other platforms are kept beside the machine's, saved, loaded
// and told apart, and not run.
func TestPlatforms(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	ctx, name := t.Context(), f.host+"/app:v1"
	f.index("v1", f.image("", "amd64", gzipLayer(t, tarOf(t, entry{name: "a", data: "amd"}))), f.image("", "riscv64", gzipLayer(t, tarOf(t, entry{name: "a", data: "risc"}))))
	if _, err := s.Pull(ctx, name, store.TransferOptions{Platform: "linux/s390x"}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no matching manifest for linux/s390x") {
		t.Errorf("a platform it does not have: %v", err)
	}
	if _, err := s.Pull(ctx, name, store.TransferOptions{Platform: "a/b/c/d"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no platform: %v", err)
	}
	img, err := s.Pull(ctx, name, store.TransferOptions{Platform: "linux/riscv64"})
	if err != nil || img.Architecture != "riscv64" {
		t.Fatalf("%+v, %v", img, err)
	}
	if img, err := s.Image(ctx, name); err != nil || img.Architecture != "riscv64" {
		t.Errorf("alone: %+v, %v", img, err)
	}
	if _, err := s.PrepareRootfs(ctx, "x", name); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "linux/riscv64") {
		t.Errorf("run it: %v", err)
	}
	if img, err = s.Pull(ctx, name, store.TransferOptions{}); err != nil || img.Architecture != "amd64" {
		t.Fatalf("%+v, %v", img, err)
	}
	if n := blobCount(t, s); n != 7 { // index, and of both the manifest, configuration and layer
		t.Errorf("%d blobs", n)
	}
	for platform, want := range map[string]string{"": "amd64", "linux/amd64": "amd64", "linux/riscv64": "riscv64"} {
		if img, err := s.ImageFor(ctx, name, platform); err != nil || img.Architecture != want || len(img.Names) != 1 {
			t.Errorf("%s: %+v, %v", platform, img, err)
		}
	}
	wantFile(t, root(t, s, name)+"/a", "amd")
	for platform, want := range map[string]int{"": 7, "linux/riscv64": 4, "linux/amd64": 4} {
		var saved bytes.Buffer
		if err := s.SaveFor(ctx, &saved, platform, name); err != nil {
			t.Fatal(err)
		}
		again := open(t, t.TempDir())
		if names, err := again.Load(ctx, &saved); err != nil || len(names) != 1 || names[0] != name {
			t.Errorf("load what was saved of %q: %v, %v", platform, names, err)
		}
		if n := blobCount(t, again); n != want {
			t.Errorf("%q: %d blobs, want %d", platform, n, want)
		}
	}
	var saved bytes.Buffer
	if err := s.SaveFor(ctx, &saved, "linux/s390x", name); !fault.Is(err, fault.NotFound) {
		t.Errorf("save what is not there: %v", err)
	}
}

// big is a layer that takes several reads.
func big(t *testing.T) testLayer {
	data := make([]byte, 4<<20)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(data); err != nil {
		t.Fatal(err)
	}
	return plainLayer(tarOf(t, entry{name: "big", data: string(data)}))
}

// forBlob misbehaves for the blob that has some of the data only.
func forBlob(data []byte, f func(w http.ResponseWriter, r *http.Request, data []byte) bool) func(http.ResponseWriter, *http.Request, []byte) bool {
	return func(w http.ResponseWriter, r *http.Request, got []byte) bool {
		return r.Method == http.MethodGet && bytes.Equal(got, data) && f(w, r, got)
	}
}

// cut sends some of what is asked for and ends the connection.
func cut(w http.ResponseWriter, r *http.Request, data []byte, n int) bool {
	begin := 0
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		begin, _ = strconv.Atoi(strings.TrimSuffix(from, "-"))
		w.Header().Set("Content-Range", "bytes "+strconv.Itoa(begin)+"-"+strconv.Itoa(len(data)-1)+"/"+strconv.Itoa(len(data)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)-begin))
	if begin > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(data[begin:min(begin+n, len(data))])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// TestPullResumes: a connection that is cut again and again costs no byte twice.
func TestPullResumes(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	layer := big(t)
	f.image("v1", "amd64", layer)
	const piece = 1500 << 10
	f.set(forBlob(layer.data, func(w http.ResponseWriter, r *http.Request, data []byte) bool { return cut(w, r, data, piece) }))
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := f.requests("bytes="); n != 2 {
		t.Errorf("%d requests for a rest: %q", n, f.asked)
	}
}

// TestPullResumesAfterRestart: what came before the daemon ended is not fetched again.
func TestPullResumesAfterRestart(t *testing.T) {
	runnertest.NeedRoot(t)
	f, dir := newRegistry(t), t.TempDir()
	layer := big(t)
	f.image("v1", "amd64", layer)
	s := store.New(store.Options{Root: dir, Log: slog.New(slog.DiscardHandler)})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.set(forBlob(layer.data, func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		_, _ = w.Write(data[:2<<20])
		_ = http.NewResponseController(w).Flush()
		time.AfterFunc(100*time.Millisecond, cancel)
		<-r.Context().Done()
		return true
	}))
	if _, err := s.Pull(ctx, f.host+"/app:v1", store.TransferOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.Image(t.Context(), f.host+"/app:v1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("an image is left: %v", err)
	}
	if n := blobCount(t, s); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.set(nil)
	s = open(t, dir)
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	if f.requests("bytes=") != 1 {
		t.Errorf("not taken up: %q", f.asked)
	}
}

// TestPullLies: a registry that lies, or never comes to an end, is found out,
// and nothing of it is left.
func TestPullLies(t *testing.T) {
	layer := big(t)
	for _, tt := range []struct {
		name, says string
		kind       fault.Kind
		lie        func(w http.ResponseWriter, r *http.Request, data []byte) bool
	}{
		{"other bytes", "other bytes than the digest says", fault.Invalid, func(w http.ResponseWriter, _ *http.Request, data []byte) bool {
			_, _ = w.Write(bytes.Repeat([]byte{7}, len(data)))
			return true
		}},
		{"too few", "after", fault.Unavailable, func(w http.ResponseWriter, _ *http.Request, data []byte) bool {
			_, _ = w.Write(data[:100])
			return true
		}},
		{"too many", "more than the", fault.Invalid, func(w http.ResponseWriter, r *http.Request, data []byte) bool {
			for r.Context().Err() == nil {
				if _, err := w.Write(data); err != nil {
					break
				}
			}
			return true
		}},
		{"silence", "silent", fault.Unavailable, func(w http.ResponseWriter, r *http.Request, data []byte) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			_, _ = w.Write(data[:100])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}},
		{"silence from the beginning", "silent", fault.Unavailable, func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
			<-r.Context().Done()
			return true
		}},
		{"errors", "500", fault.Unavailable, func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}},
		{"nothing there", "not found", fault.NotFound, func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			w.WriteHeader(http.StatusNotFound)
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newRegistry(t)
			s := openWith(t, store.Options{Root: t.TempDir(), IdleTimeout: 200 * time.Millisecond, RetryPause: time.Millisecond})
			f.image("v1", "amd64", layer, gzipLayer(t, tarOf(t, entry{name: "small"})))
			f.set(forBlob(layer.data, tt.lie))
			_, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.says) || !fault.Is(err, tt.kind) {
				t.Errorf("%v (%v), want %q (%v)", err, fault.KindOf(err), tt.says, tt.kind)
			}
			if list, err := s.Images(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("left: %+v, %v", list, err)
			}
			if n := blobCount(t, s); n != 0 {
				t.Errorf("%d blobs are left", n)
			}
			f.set(nil) // and it mends
			if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// TestPullClockPutForward: by a clock that jumps a year ahead the day is over for
// which a download is kept. One that is under way begins again.
func TestPullClockPutForward(t *testing.T) {
	f := newRegistry(t)
	layer := big(t)
	f.image("v1", "amd64", layer)
	s := openWith(t, store.Options{Root: t.TempDir(), RetryPause: time.Millisecond})
	var once sync.Once
	f.set(forBlob(layer.data, func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		jumps := false
		once.Do(func() { jumps = true })
		if !jumps {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if _, err := w.Write(data[:len(data)/2]); err != nil {
			t.Error(err)
		}
		w.(http.Flusher).Flush()
		for end := time.Now().Add(20 * time.Second); expireIngests(t, s) == 0; {
			if time.Now().After(end) {
				t.Error("nothing is downloaded")
				break
			}
		}
		if err := s.GC(t.Context()); err != nil {
			t.Error(err)
		}
		_, err := w.Write(data[len(data)/2:])
		return err == nil
	}))
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := f.requests("/blobs/" + digest.FromBytes(layer.data).String()); n != 2 {
		t.Errorf("the layer was asked for %d times", n)
	}
	root(t, s, f.host+"/app:v1")
}

// expireIngests has every download's time be over, and counts them.
func expireIngests(t *testing.T, s *store.Store) (n int) {
	t.Helper()
	past, err := time.Now().Add(-time.Hour).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	err = s.DB().Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{store.Namespace, "content", "ingests"} {
			if b = b.Bucket([]byte(name)); b == nil {
				return nil
			}
		}
		return b.ForEachBucket(func(ref []byte) error {
			n++
			return b.Bucket(ref).Put([]byte("expireat"), past)
		})
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestPullShared: who pulls the same at the same time waits for the one download.
func TestPullShared(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	layer := big(t)
	f.image("v1", "amd64", layer)
	f.image("v2", "amd64", layer, gzipLayer(t, tarOf(t, entry{name: "more"})))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), f.host+"/app:v"+strconv.Itoa(i%2+1), store.TransferOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.requests("GET /v2/app/blobs/" + ocispec.Descriptor{Digest: f.add(layer.data)}.Digest.String()); n != 1 {
		t.Errorf("downloaded %d times", n)
	}
}

// TestPullProgress: the steps that docker shows, in their order, each layer to its end.
func TestPullProgress(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	first, second := big(t), gzipLayer(t, tarOf(t, entry{name: "small", data: "x"}))
	f.image("v1", "amd64", first)
	f.image("v2", "amd64", first, second)
	pull := func(tag string) map[string][]store.Status {
		t.Helper()
		steps := map[string][]store.Status{}
		_, err := s.Pull(t.Context(), f.host+"/app:"+tag, store.TransferOptions{Progress: func(ev store.Event) {
			list := steps[ev.ID.String()]
			if len(list) == 0 || list[len(list)-1] != ev.Status {
				steps[ev.ID.String()] = append(list, ev.Status)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		return steps
	}
	all := []store.Status{store.StatusQueued, store.StatusDownloading, store.StatusDownloaded, store.StatusExtracting, store.StatusComplete}
	for tag, want := range map[string]map[string][]store.Status{"v1": {f.add(first.data).String(): all}} {
		if got := pull(tag); len(got) != 1 || !sameSteps(got, want) {
			t.Errorf("%s: %v", tag, got)
		}
	}
	want := map[string][]store.Status{f.add(first.data).String(): {store.StatusQueued, store.StatusExists}, f.add(second.data).String(): all}
	if got := pull("v2"); !sameSteps(got, want) {
		t.Errorf("v2: %v", got)
	}
}

// TestPullCanceled: a pull that is called off names nothing, not even an image
// of which everything is here.
func TestPullCanceled(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	f.image("v1", "amd64", big(t))
	f.image("v2", "amd64", big(t))
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Pull(ctx, f.host+"/app:v2", store.TransferOptions{Progress: func(store.Event) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("pull: %v", err)
	}
	if _, err := s.Image(t.Context(), f.host+"/app:v2"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the name of a pull called off: %v", err)
	}
}

func sameSteps(a, b map[string][]store.Status) bool {
	for id, steps := range b {
		if len(a[id]) != len(steps) {
			return false
		}
		for i, s := range steps {
			if a[id][i] != s {
				return false
			}
		}
	}
	return true
}

// TestPullNothing: names that lead nowhere say so.
func TestPullNothing(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	for name, kind := range map[string]fault.Kind{f.host + "/app:none": fault.NotFound, "localhost:1/app": fault.Unavailable, "UPPER": fault.Invalid} {
		if _, err := s.Pull(t.Context(), name, store.TransferOptions{}); !fault.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Save(t.Context(), io.Discard, "none"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// TestPullFailsAtOnce: a layer that cannot be had ends the downloads of the others.
func TestPullFailsAtOnce(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	bad, slow := gzipLayer(t, tarOf(t, entry{name: "bad"})), gzipLayer(t, tarOf(t, entry{name: "slow"}))
	f.image("v1", "amd64", bad, slow)
	asked := make(chan struct{})
	f.set(func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		switch {
		case bytes.Equal(data, bad.data):
			<-asked
			w.WriteHeader(http.StatusForbidden)
			return true
		case bytes.Equal(data, slow.data):
			close(asked)
			select {
			case <-r.Context().Done():
			case <-time.After(time.Minute):
				t.Error("the other layer is still being downloaded")
			}
			return true
		}
		return false
	})
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); !fault.Is(err, fault.Denied) {
		t.Errorf("a layer that is refused: %v", err)
	}
}
