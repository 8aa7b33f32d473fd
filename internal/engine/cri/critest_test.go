package cri_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/cri"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestCritest runs the suite of the Kubernetes project's CRI tools, whose
// program CRITEST names, against the socket. docs/conformance.md says how to
// build it and what it found. CRITEST_FOCUS is a regular expression of specs.
func TestCritest(t *testing.T) {
	program := os.Getenv("CRITEST")
	if program == "" {
		t.Skip("set CRITEST to the path of critest; see docs/conformance.md")
	}
	runnertest.NeedRoot(t)
	serveImages(t)
	before := sharedMemory(t)
	t.Cleanup(func() { // critest makes two on the host and leaves them
		for id, line := range sharedMemory(t) {
			if _, older := before[id]; !older && strings.Fields(line)[3] == "1048576" && strings.Fields(line)[6] == "0" {
				if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
					t.Errorf("remove shared memory %d: %v", id, err)
				}
			}
		}
	})
	m := enginetest.New(t)
	service := cri.New(cri.Options{Engine: m.Engine, Version: "0.0.0-test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	path := filepath.Join(m.Dir(), "cri.sock")
	socket := cri.NewSocket(service, path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	start(t, service)
	start(t, socket)
	report := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(t.Context(), program, "--runtime-endpoint=unix://"+path, "--ginkgo.json-report="+report,
		"--runtime-service-timeout=20s", "--ginkgo.no-color", "--ginkgo.focus="+os.Getenv("CRITEST_FOCUS"))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	runErr := cmd.Run()
	if err := summarize(t, report); err != nil {
		t.Fatalf("%v (critest: %v)", err, runErr)
	}
}

// sharedMemory is the host's segments: their lines in the kernel's table, by id.
func sharedMemory(t *testing.T) map[int]string {
	table, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); fields[0] != "key" {
			id, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			out[id] = line
		}
	}
	return out
}

// expected are the specs that the stand-in images cannot pass, and what they
// then say: any other failure of theirs is one.
var expected = map[string]string{
	// It asks for one digest's original bytes.
	"public image with digest should be pulled and removed": "not found",
	// The mask holds, but Debian's shell says so with a line number.
	"runtime should support MaskedPaths": "/bin/sh: 1: ls: Permission denied",
}

// summarize logs a line for each spec, for docs/conformance.md, and fails the
// test for what fails without being expected to.
func summarize(t *testing.T, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts    []string
			LeafNodeType, LeafNodeText string
			State                      string
			RunTime                    int64
			Failure                    struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return fmt.Errorf("critest's report: %w", err)
	}
	count := map[string]int{}
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType != "It" {
				continue
			}
			count[r.State]++
			name := strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), ": ")
			t.Logf("SPEC %s | %s | %d ms | %s", r.State, name, r.RunTime/1e6, strings.ReplaceAll(r.Failure.Message, "\n", " "))
			known := false
			for text, says := range expected {
				known = known || strings.HasPrefix(r.LeafNodeText, text) && strings.Contains(r.Failure.Message, says)
			}
			if (r.State == "failed" || r.State == "timedout" || r.State == "panicked") && !known {
				t.Errorf("%s: %s", name, r.Failure.Message)
			}
		}
	}
	t.Logf("SUMMARY %v", count)
	return nil
}

// image is an image of the registry: a file system, and what is special about it.
type image struct {
	repository string // path in its registry; any registry has it
	tags       []string
	config     ocispec.ImageConfig
	files      []enginetest.File
}

// testImages are stand-ins, by path and tag, for those that critest asks for.
func testImages(t *testing.T) []image {
	program := filepath.Join(t.TempDir(), "standin")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/standin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the stand-in: %v\n%s", err, out)
	}
	standin, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	server := func(name, port string) ocispec.ImageConfig {
		return ocispec.ImageConfig{Cmd: []string{"/usr/sbin/" + name, port, name + ": master process"}}
	}
	file := func(path string, mode int64) []enginetest.File {
		return []enginetest.File{{Name: path, Data: standin, Mode: mode}}
	}
	const e2e, tools = "e2e-test-images/", "k8s-staging-cri-tools/"
	list := []image{
		{e2e + "busybox", []string{"1.29-2"}, ocispec.ImageConfig{}, file("usr/bin/ipcs", 0o755)},
		{e2e + "nginx", []string{"1.14-2"}, server("nginx", "80"), file("usr/sbin/nginx", 0o755)},
		{e2e + "httpd", []string{"2.4.39-4"}, server("httpd", "80"), file("usr/sbin/httpd", 0o755)},
		{e2e + "nonewprivs", []string{"1.3"}, ocispec.ImageConfig{Entrypoint: []string{"/nnp"}}, file("nnp", 0o4755)},
		{tools + "hostnet-nginx-amd64", []string{"latest"}, server("nginx", "12003"), file("usr/sbin/nginx", 0o755)},
		{"pause", []string{"3.9"}, ocispec.ImageConfig{Cmd: []string{"sleep", "3600"}}, nil},
		{tools + "test-image-tag", []string{"test", "all"}, ocispec.ImageConfig{}, nil},
		{tools + "test-image-tags", []string{"1", "2", "3"}, ocispec.ImageConfig{}, nil},
		{tools + "test-image-predefined-group", []string{"latest"}, ocispec.ImageConfig{User: "1000"}, nil},
	}
	for name, user := range map[string]string{"latest": "", "1": "", "2": "", "3": "", "user-uid": "1002", "user-username": "www-data",
		"user-uid-group": "1003:1004", "user-username-group": "www-data:1004"} {
		list = append(list, image{tools + "test-image-" + name, []string{"latest"}, ocispec.ImageConfig{User: user}, nil})
	}
	return list
}

// busybox is what all the images have.
func busybox(t *testing.T) []enginetest.File {
	data, err := os.ReadFile(runnertest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	list, err := exec.CommandContext(t.Context(), runnertest.Busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := []enginetest.File{{Name: "bin/", Mode: 0o755}, {Name: "etc/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}, {Name: "usr/", Mode: 0o755},
		{Name: "usr/bin/", Mode: 0o755}, {Name: "usr/sbin/", Mode: 0o755}, {Name: "var/", Mode: 0o755}, {Name: "var/run/", Mode: 0o755},
		{Name: "bin/busybox", Data: data, Mode: 0o755},
		{Name: "bin/pgrep", Data: []byte("#!/bin/sh\nexec pidof \"$@\"\n"), Mode: 0o755},
		{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"), Mode: 0o644},
		{Name: "etc/group", Data: []byte("root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\nnobody:x:65534:\ngroup-defined-in-image:x:50000:default-user\n"), Mode: 0o644}}
	for _, name := range strings.Fields(string(list)) {
		switch name {
		case "busybox", "sh":
		case "ls": // a file of its own, for one spec masks it alone
			files = append(files, enginetest.File{Name: "bin/ls", Data: data, Mode: 0o755})
		default:
			files = append(files, enginetest.File{Name: "bin/" + name, Link: "busybox"})
		}
	}
	return files
}

// systemShell is Debian's /bin/sh with its libraries: its busybox's runs ls without
// looking at /bin/ls, which one spec masks.
func systemShell(t *testing.T) (files []enginetest.File) {
	out, err := exec.CommandContext(t.Context(), "ldd", "/bin/sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{"/bin/sh"}
	for _, field := range strings.Fields(string(out)) {
		if strings.HasPrefix(field, "/") {
			paths = append(paths, field)
		}
	}
	made := map[string]bool{"bin/": true}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(path, "/")
		for i, r := range name {
			if dir := name[:i+1]; r == '/' && !made[dir] {
				made[dir] = true
				files = append(files, enginetest.File{Name: dir, Mode: 0o755})
			}
		}
		files = append(files, enginetest.File{Name: name, Data: data, Mode: 0o755})
	}
	return files
}

// registry is every registry there is, with the same images.
type registry struct {
	tags  map[string]string // "repository:tag" to digest
	blobs map[string][]byte
}

// serveImages answers this process's requests to any registry but those of
// this machine, so that critest's images can be pulled by their own names.
func serveImages(t *testing.T) {
	r := registry{map[string]string{}, map[string][]byte{}}
	base := append(busybox(t), systemShell(t)...)
	for _, img := range testImages(t) {
		img.config.Env = []string{"PATH=/bin:/usr/bin:/usr/sbin"}
		if len(img.config.Cmd)+len(img.config.Entrypoint) == 0 {
			img.config.Cmd = []string{"sh"}
		}
		img.config.Labels = map[string]string{"repository": img.repository} // no two are the same
		archive := enginetest.Archive(t, "x", append(base[:len(base):len(base)], img.files...), img.config)
		for tr := tar.NewReader(bytes.NewReader(archive)); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			if h.Name == "index.json" {
				var index ocispec.Index
				if err := json.Unmarshal(data, &index); err != nil {
					t.Fatal(err)
				}
				for _, tag := range img.tags {
					r.tags[img.repository+":"+tag] = index.Manifests[0].Digest.String()
				}
			}
			if digest, found := strings.CutPrefix(h.Name, "blobs/sha256/"); found {
				r.blobs["sha256:"+digest] = data
			}
		}
	}
	real := http.DefaultTransport
	http.DefaultTransport = r
	t.Cleanup(func() { http.DefaultTransport = real })
}

// RoundTrip implements http.RoundTripper.
func (r registry) RoundTrip(req *http.Request) (*http.Response, error) {
	answer := func(code int, media string, digest string, body []byte) (*http.Response, error) {
		h := http.Header{"Content-Type": {media}, "Content-Length": {fmt.Sprint(len(body))}, "Docker-Content-Digest": {digest}}
		resp := &http.Response{StatusCode: code, Header: h, Request: req, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)), ProtoMajor: 1}
		if req.Method == http.MethodHead {
			resp.Body = http.NoBody
		}
		return resp, nil
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if name, ref, found := strings.Cut(path, "/manifests/"); found {
		if digest, tagged := r.tags[name+":"+ref]; tagged {
			ref = digest
		}
		if body, found := r.blobs[ref]; found {
			return answer(http.StatusOK, ocispec.MediaTypeImageManifest, ref, body)
		}
	}
	if _, digest, found := strings.Cut(path, "/blobs/"); found {
		if body, found := r.blobs[digest]; found {
			return answer(http.StatusOK, "application/octet-stream", digest, body)
		}
	}
	return answer(http.StatusNotFound, "application/json", "", []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`))
}
