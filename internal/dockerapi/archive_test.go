package dockerapi_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// tarred are a tar's entries: a file with its content, others with what they are.
func tarred(t *testing.T, in io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			out[h.Name] = string(data)
		case tar.TypeSymlink:
			out[h.Name] = "-> " + h.Linkname
		default:
			out[h.Name] = string(h.Typeflag)
		}
	}
}

// copyOut is what is at path of a container, as a tar.
func (a *api) copyOut(id, path string) map[string]string {
	a.t.Helper()
	res, err := a.CopyFromContainer(a.t.Context(), id, client.CopyFromContainerOptions{SourcePath: path})
	if err != nil {
		a.t.Fatalf("copy %s: %v", path, err)
	}
	defer res.Content.Close()
	return tarred(a.t, res.Content)
}

func (a *api) copyIn(id, path string, archive []byte, opt client.CopyToContainerOptions) error {
	a.t.Helper()
	opt.DestinationPath, opt.Content = path, bytes.NewReader(archive)
	_, err := a.CopyToContainer(a.t.Context(), id, opt)
	return err
}

// TestCopy copies out of and into a container that never ran, that runs, that
// is paused and that has ended: its root, a volume, a bind mount.
func TestCopy(t *testing.T) {
	a := newAPI(t)
	bound := t.TempDir()
	s := sleeper("box")
	s.host.Binds = []string{"data:/data", bound + ":/bound", bound + ":/ro:ro"}
	s.host.Tmpfs = map[string]string{"/mem": ""}
	id := a.create(s)
	for i, step := range []func(){
		func() {},
		func() { a.startContainer(id); a.awaitOutput(id, "ready") },
		func() { a.ContainerPause(t.Context(), id, client.ContainerPauseOptions{}) },
		func() { a.ContainerKill(t.Context(), id, client.ContainerKillOptions{}); a.wait(id, "")() },
	} {
		step()
		content := fmt.Sprintf("content %d", i)
		file := enginetest.Tar(t, []enginetest.File{{Name: "dir/"}, {Name: "dir/f", Data: []byte(content)}, {Name: "dir/l", Link: "/etc/passwd"}})
		for _, place := range []string{"/tmp", "/data", "/bound/.", "data/"} {
			if err := a.copyIn(id, place, file, client.CopyToContainerOptions{}); err != nil {
				t.Errorf("%d: into %s: %v", i, place, err)
			}
			if got := a.copyOut(id, place+"/dir"); got["dir/f"] != content || got["dir/l"] != "-> /etc/passwd" || len(got) != 3 {
				t.Errorf("%d: out of %s: %v", i, place, got)
			}
		}
		for _, path := range []string{filepath.Join(a.machine.Dir(), "volumes/data/_data"), bound} {
			if data, err := os.ReadFile(filepath.Join(path, "dir/f")); err != nil || string(data) != content {
				t.Errorf("%d: %s: %q, %v", i, path, data, err)
			}
		}
		if err := a.copyIn(id, "/ro", file, client.CopyToContainerOptions{}); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%d: into a read-only mount: %v", i, err)
		}
	}
	for path, want := range map[string]string{"/data/dir/.": "./ ./f ./l", "/data/dir/": "dir/ dir/f dir/l", "/data/dir/l": "l", "/data": "data/ data/dir/ data/dir/f data/dir/l"} {
		got := a.copyOut(id, path)
		var names []string
		for name := range got {
			names = append(names, name)
		}
		slices.Sort(names)
		if text := strings.Join(names, " "); text != want {
			t.Errorf("%s: %s, want %s", path, text, want)
		}
	}
	stat, err := a.ContainerStatPath(t.Context(), id, client.ContainerStatPathOptions{Path: "/data/dir/l"})
	if err != nil || stat.Stat.Name != "l" || stat.Stat.LinkTarget != "/etc/passwd" || stat.Stat.Mode&os.ModeSymlink == 0 {
		t.Errorf("%+v, %v", stat, err)
	}
}

// TestCopyStaysInside: what a container or an archive puts in its files leads
// to the container's own files and not to the machine's.
func TestCopyStaysInside(t *testing.T) {
	a := newAPI(t)
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := sleeper("box")
	s.config.Cmd[2] = "ln -s " + outside + " /out; ln -s ../../../../../../../.." + outside + " /rel; ln -s /proc/1/root/etc /magic;" +
		"busybox mkdir -p " + outside + "; echo own > " + outside + "/secret; " + s.config.Cmd[2]
	id := a.up(s)
	a.awaitOutput(id, "ready")
	evil := enginetest.Tar(t, []enginetest.File{{Name: "secret", Data: []byte("overwritten")}})
	for range 2 { // running and ended
		for _, link := range []string{"/out", "/rel"} {
			if got := a.copyOut(id, link+"/secret"); got["secret"] != "own\n" && got["secret"] != "overwritten" {
				t.Errorf("%s: %v", link, got)
			}
			if err := a.copyIn(id, link, evil, client.CopyToContainerOptions{}); err != nil {
				t.Errorf("%s: %v", link, err)
			}
		}
		if _, err := a.CopyFromContainer(t.Context(), id, client.CopyFromContainerOptions{SourcePath: "/magic/passwd"}); err == nil {
			t.Error("a link of /proc is followed")
		}
		if got := a.copyOut(id, outside+"/secret"); got["secret"] != "overwritten" {
			t.Errorf("%v", got)
		}
		a.ContainerKill(t.Context(), id, client.ContainerKillOptions{})
		a.wait(id, "")()
	}
	if data, err := os.ReadFile(filepath.Join(outside, "secret")); err != nil || string(data) != "untouched" {
		t.Errorf("outside there is %q, %v", data, err)
	}
}

func TestCopyOptions(t *testing.T) {
	a := newAPI(t)
	s := sleeper("box")
	s.config.User = "user"
	s.host.ReadonlyRootfs, s.host.Binds = true, []string{"data:/data"}
	id := a.create(s)
	file := enginetest.Tar(t, []enginetest.File{{Name: "f", Data: []byte("x")}})
	if err := a.copyIn(id, "/data", file, client.CopyToContainerOptions{CopyUIDGID: true}); err != nil {
		t.Fatal(err)
	}
	r := shell("busybox stat -c %u:%g /data/f")
	r.host.Binds = []string{"data:/data"}
	if r := a.run(r); r.out != "1000:1000\n" {
		t.Errorf("%+v", r)
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(enginetest.Tar(t, []enginetest.File{{Name: "z", Data: []byte("zipped")}})); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := a.copyIn(id, "/data", packed.Bytes(), client.CopyToContainerOptions{}); err != nil || a.copyOut(id, "/data/z")["z"] != "zipped" {
		t.Errorf("compressed: %v", err)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/containers/box/archive?path=/none", "", 404, "Could not find the file /none in container box"},
		{"GET", "/containers/none/archive?path=/", "", 404, "No such container"},
		{"GET", "/containers/box/archive", "", 400, "'path' cannot be empty"},
		{"PUT", "/containers/box/archive?path=/none", "x", 404, "Could not find the file /none"},
		{"PUT", "/containers/box/archive?path=/etc/passwd", string(file), 400, "not a directory"},
		{"PUT", "/containers/box/archive?path=/tmp", string(file), 400, "read-only"},
		{"PUT", "/containers/box/archive?path=/data", "this is no tar at all", 400, "read archive"},
		{"PUT", "/containers/box/archive?path=/data", "\xfd7zXZ\x00", 501, "xz"},
		{"PUT", "/containers/box/archive?path=/data&noOverwriteDirNonDir=1", string(enginetest.Tar(t, []enginetest.File{{Name: "f/"}})), 400, "cannot overwrite"},
	} {
		if got := a.do(tt.method, tt.path, tt.body); got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s %s: %d %q", tt.method, tt.path, got.status, got.message)
		}
	}
	if got := a.do("HEAD", "/containers/box/archive?path=/etc", ""); got.status != 200 || got.header.Get("X-Docker-Container-Path-Stat") == "" {
		t.Errorf("%+v", got)
	}
}

// TestDiffAndCommit: a removed file, a changed, a new, a directory made anew.
func TestDiffAndCommit(t *testing.T) {
	a := newAPI(t)
	a.load(dataImage(t))
	s := spec{name: "box", config: container.Config{Image: "data:v1", Entrypoint: []string{"sh", "-c"}, Labels: map[string]string{"a": "b"},
		Cmd: []string{"echo new > /new; echo more >> /tmp/x; busybox rm -rf /file /bin/echo /data/sub /old; busybox mkdir /old; echo anew > /old/f; echo ready; sleep 1000"}}}
	id := a.up(s)
	a.awaitOutput(id, "ready")
	diff, err := a.ContainerDiff(t.Context(), id, client.ContainerDiffOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range diff.Changes {
		got = append(got, c.Kind.String()+" "+c.Path)
	}
	want := []string{"C /bin", "D /bin/echo", "A /empty", "D /file", "A /new", "C /old", "D /old/before", "A /old/f", "C /tmp", "A /tmp/x"}
	if !slices.Equal(got, want) {
		t.Errorf("\n%v, want\n%v", got, want)
	}
	res, err := a.ContainerCommit(t.Context(), id, client.ContainerCommitOptions{Reference: "made:v1", Comment: "a comment", Author: "somebody",
		Changes: []string{"ENV X=y", `ENTRYPOINT ["busybox", "cat"]`, `CMD ["/new"]`}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := a.ImageInspect(t.Context(), "made:v1")
	if err != nil || img.ID != res.ID || img.Author != "somebody" || img.Config.Labels["a"] != "b" || !slices.Contains(img.Config.Env, "X=y") || len(img.RootFS.Layers) != 2 {
		t.Errorf("%+v, %v", img, err)
	}
	if h, err := a.ImageHistory(t.Context(), "made:v1"); err != nil || len(h.Items) != 1 || h.Items[0].Comment != "a comment" || h.Items[0].Size == 0 {
		t.Errorf("%+v, %v", h, err)
	}
	if r := a.run(spec{config: container.Config{Image: "made:v1"}}); r.out != "new\n" {
		t.Errorf("%+v", r)
	}
	r := a.run(spec{config: container.Config{Image: "made:v1", Entrypoint: []string{"busybox"}, Cmd: []string{"ls", "/", "/bin", "/old"}}})
	if strings.Contains(r.out, "file") || strings.Contains(r.out, "echo") || !strings.Contains(r.out, "/old:\nf\n") {
		t.Errorf("%+v", r)
	}
	if state := a.inspect(id).State; !state.Running || state.Paused {
		t.Errorf("%+v", state)
	}
	// Nothing changed, so there is no layer.
	same, err := a.ContainerCommit(t.Context(), a.create(spec{config: container.Config{Image: "made:v1"}}), client.ContainerCommitOptions{NoPause: true})
	if err != nil {
		t.Fatal(err)
	}
	if img, err := a.ImageInspect(t.Context(), same.ID); err != nil || len(img.RootFS.Layers) != 2 || len(img.RepoTags) != 0 {
		t.Errorf("%+v, %v", img, err)
	}
	for query, status := range map[string]int{"container=none": 404, "container=box&changes=RUN+true": 400, "container=box&repo=UPPER": 400} {
		if got := a.do(http.MethodPost, "/commit?"+query, ""); got.status != status {
			t.Errorf("%s: %+v", query, got)
		}
	}
}

func TestExportImport(t *testing.T) {
	a := newAPI(t)
	s := shell("echo kept > /kept; echo in a volume > /data/f")
	s.host.Binds = []string{"data:/data"}
	id := a.run(s).id
	res, err := a.ContainerExport(t.Context(), id, client.ContainerExportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	var archive bytes.Buffer
	files := tarred(t, io.TeeReader(res, &archive))
	if files["kept"] != "kept\n" || files["data/"] == "" || files["data/f"] != "" || files["bin/sh"] == "" {
		t.Errorf("%v", files)
	}
	imported, err := a.ImageImport(t.Context(), client.ImageImportSource{Source: &archive, SourceName: "-"}, "flat", client.ImageImportOptions{Tag: "v1", Message: "words", Changes: []string{`CMD ["/bin/cat", "/kept"]`}})
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(imported)
	imported.Close()
	img, inspectErr := a.ImageInspect(t.Context(), "flat:v1")
	if err != nil || inspectErr != nil || !strings.Contains(string(said), img.ID) || len(img.RootFS.Layers) != 1 || img.Comment != "words" {
		t.Errorf("%s, %+v, %v, %v", said, img, err, inspectErr)
	}
	if r := a.run(spec{config: container.Config{Image: "flat:v1"}}); r.out != "kept\n" {
		t.Errorf("%+v", r)
	}
	for _, tt := range []struct {
		path, body string
		status     int
	}{
		{"fromSrc=-&repo=bad", "no tar", 400},
		{"fromSrc=-&repo=bad", "", 400},
		{"fromSrc=http://localhost/x.tar&repo=bad", "", 501},
		{"fromSrc=-&repo=bad&changes=RUN+x", "", 400},
		{"fromSrc=-&repo=bad&platform=linux/s390x", "", 501},
	} {
		if got := a.do("POST", "/images/create?"+tt.path, tt.body); got.status != tt.status {
			t.Errorf("%s: %+v", tt.path, got)
		}
	}
	if names := a.imageNames(nil); slices.Contains(names, "bad:latest") {
		t.Errorf("%v", names)
	}
}
