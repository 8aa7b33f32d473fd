package cri_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/engine/store"
)

// image is an image of the registry: a file system, and what is special about it.
type image struct {
	repository string // path in its registry; any registry has it
	tags       []string
	config     ocispec.ImageConfig
	files      []enginetest.File
}

// testImages are made for those that critest asks for, by path and tag.
func (r root) testImages(t *testing.T) []image {
	standin, err := os.ReadFile(runnertest.Program(t, "testdata/standin"))
	if err != nil {
		t.Fatal(err)
	}
	nginx := ocispec.ImageConfig{Cmd: []string{"/usr/sbin/nginx"}}
	file := func(path string, mode int64) []enginetest.File {
		return []enginetest.File{{Name: path, Data: standin, Mode: mode}}
	}
	const e2e, tools = "e2e-test-images/", "k8s-staging-cri-tools/"
	list := []image{
		{e2e + "busybox", []string{"1.29-2"}, ocispec.ImageConfig{}, file("usr/bin/ipcs", 0o755)},
		{e2e + "nginx", []string{"1.14-2"}, nginx, r.nginx(t, "80")},
		{e2e + "httpd", []string{"2.4.39-4"}, ocispec.ImageConfig{Cmd: []string{"/usr/sbin/httpd", "80"}}, file("usr/sbin/httpd", 0o755)},
		{e2e + "nonewprivs", []string{"1.3"}, ocispec.ImageConfig{Entrypoint: []string{"/nnp"}}, file("nnp", 0o4755)},
		{tools + "hostnet-nginx-amd64", []string{"latest"}, nginx, r.nginx(t, "12003")},
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

// root is where scripts/conformance-cri.sh unpacked Debian's packages.
type root string

// libraries are where a root's loader looks.
var libraries = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"}

// program is a file of the root under a name, with the loader and the libraries it asks for.
func (r root) program(t *testing.T, path, name string) []enginetest.File {
	t.Helper()
	made := map[string]bool{}
	files := []enginetest.File{{Name: name, Data: r.read(t, path), Mode: 0o755}}
	for todo := []string{path}; len(todo) > 0; todo = todo[1:] {
		for _, needed := range r.needs(t, todo[0]) {
			if !made[needed] {
				made[needed] = true
				todo = append(todo, needed)
				files = append(files, enginetest.File{Name: needed, Data: r.read(t, needed), Mode: 0o755})
			}
		}
	}
	return files
}

// needs are the files of the root that a program or library asks for.
func (r root) needs(t *testing.T, path string) (paths []string) {
	t.Helper()
	f, err := elf.Open(filepath.Join(string(r), path))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if interp := f.Section(".interp"); interp != nil {
		loader, err := interp.Data()
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, strings.Trim(string(loader), "/\x00"))
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "ld-linux") {
			continue // the loader, above
		}
		i := slices.IndexFunc(libraries, func(dir string) bool {
			_, err := os.Stat(filepath.Join(string(r), dir, name))
			return err == nil
		})
		if i < 0 {
			t.Fatalf("%s needs %s, which none of the packages has: add its package to scripts/conformance-cri.sh", path, name)
		}
		paths = append(paths, filepath.Join(libraries[i], name))
	}
	return paths
}

func (r root) read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(string(r), path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// busybox is what all the images have.
func (r root) busybox(t *testing.T) []enginetest.File {
	t.Helper()
	list := exec.CommandContext(t.Context(), "/bin/busybox", "--list")
	list.SysProcAttr = &syscall.SysProcAttr{Chroot: string(r)}
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := append(r.program(t, "bin/busybox", "bin/busybox"),
		enginetest.File{Name: "tmp/", Mode: 0o1777}, enginetest.File{Name: "var/run/", Mode: 0o755},
		enginetest.File{Name: "bin/pgrep", Data: []byte("#!/bin/sh\nexec pidof \"$@\"\n"), Mode: 0o755},
		enginetest.File{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"), Mode: 0o644},
		enginetest.File{Name: "etc/group", Data: []byte("root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\nnobody:x:65534:\ngroup-defined-in-image:x:50000:default-user\n"), Mode: 0o644})
	for _, name := range strings.Fields(string(names)) {
		switch name {
		case "busybox":
		case "ls": // a file of its own, for one spec masks it alone
			files = append(files, enginetest.File{Name: "bin/ls", Data: r.read(t, "bin/busybox"), Mode: 0o755})
		default:
			files = append(files, enginetest.File{Name: "bin/" + name, Link: "busybox"})
		}
	}
	return files
}

// nginx is Debian's, serving its own page at a port.
func (r root) nginx(t *testing.T, port string) []enginetest.File {
	t.Helper()
	const page = "usr/share/nginx/html/index.html"
	conf := "daemon off; user www-data; pid /var/run/nginx.pid; events {} http { access_log /dev/stdout; server { listen " + port + "; root /usr/share/nginx/html; } }\n"
	return append(r.program(t, "usr/sbin/nginx", "usr/sbin/nginx"),
		enginetest.File{Name: page, Data: r.read(t, page), Mode: 0o644},
		enginetest.File{Name: "etc/nginx/nginx.conf", Data: []byte(conf), Mode: 0o644},
		enginetest.File{Name: "var/log/nginx/", Mode: 0o755}, enginetest.File{Name: "var/lib/nginx/", Mode: 0o755})
}

// withParents adds the directories that the files are in, and leaves out what is there twice.
func withParents(files []enginetest.File) (out []enginetest.File) {
	made := map[string]bool{}
	for _, f := range files {
		if made[f.Name] {
			continue
		}
		for i, r := range f.Name {
			if dir := f.Name[:i+1]; r == '/' && dir != f.Name && !made[dir] {
				made[dir] = true
				out = append(out, enginetest.File{Name: dir, Mode: 0o755})
			}
		}
		made[f.Name] = true
		out = append(out, f)
	}
	return out
}

// registry is every registry there is, with the same images.
type registry struct {
	tags  map[string]string // "repository:tag" to digest
	blobs map[string][]byte
}

// serveImages serves the images on loopback and returns it as the mirror of the
// registries that critest names.
func serveImages(t *testing.T) []store.Registry {
	r := registry{map[string]string{}, map[string][]byte{}}
	packages := root(os.Getenv("CRITEST_ROOT"))
	base := packages.busybox(t)
	for _, img := range packages.testImages(t) {
		img.config.Env = []string{"PATH=/bin:/usr/bin:/usr/sbin"}
		if len(img.config.Cmd)+len(img.config.Entrypoint) == 0 {
			img.config.Cmd = []string{"sh"}
		}
		img.config.Labels = map[string]string{"repository": img.repository} // no two are the same
		archive := enginetest.Archive(t, "x", withParents(slices.Concat(base, img.files)), img.config)
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
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	var out []store.Registry
	for _, host := range []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io"} {
		out = append(out, store.Registry{Host: host, Mirrors: []string{server.URL}})
	}
	return out
}

// ServeHTTP implements http.Handler.
func (r registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	answer := func(media, digest string) {
		w.Header().Set("Content-Type", media)
		w.Header().Set("Docker-Content-Digest", digest)
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.blobs[digest]))
	}
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	name, ref, _ := strings.Cut(path, "/manifests/")
	digest := cmp.Or(r.tags[name+":"+ref], ref)
	_, blob, _ := strings.Cut(path, "/blobs/")
	switch {
	case r.blobs[digest] != nil:
		answer(ocispec.MediaTypeImageManifest, digest)
	case r.blobs[blob] != nil:
		answer("application/octet-stream", blob)
	default:
		http.NotFound(w, req)
	}
}
