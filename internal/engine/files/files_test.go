package files_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/files"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// place is a root with a directory beside it, which nothing may reach.
type place struct {
	*files.Root
	t         *testing.T
	dir, away string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	runnertest.NeedRoot(t) // owners, devices
	top := t.TempDir()
	p := &place{t: t, dir: filepath.Join(top, "root"), away: filepath.Join(top, "away")}
	for _, dir := range []string{p.dir, p.away, filepath.Join(p.dir, "to")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.write(filepath.Join(p.away, "secret"), "untouched")
	var err error
	if p.Root, err = files.Open(p.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(p.away); len(left) != 1 {
			t.Errorf("outside of the root there is %v", left)
		}
		if got := p.read(filepath.Join(p.away, "secret")); got != "untouched" {
			t.Errorf("outside of the root there is %q", got)
		}
	})
	return p
}

func (p *place) write(path, content string) {
	p.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) read(path string) string {
	p.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		p.t.Error(err)
	}
	return string(data)
}

func (p *place) link(target, name string) {
	p.t.Helper()
	if err := os.Symlink(target, filepath.Join(p.dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

// archive is a tar of headers, each with its name as content if it is a file.
func archive(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = h.Name
		}
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: target}
}

// TestUnpackStaysInside: what archives try. Each is refused, or ends inside.
func TestUnpackStaysInside(t *testing.T) {
	for _, tt := range []struct {
		name    string
		entries []tar.Header
		refused bool
		made    string // below the root
	}{
		{"two dots", []tar.Header{file("../../away/secret")}, true, ""},
		{"two dots in between", []tar.Header{file("a/../../../away/secret")}, true, ""},
		{"absolute", []tar.Header{file("/AWAY/secret")}, false, "to/AWAY/secret"},
		{"through an absolute link", []tar.Header{link(tar.TypeSymlink, "out", "AWAY"), file("out/new")}, false, "AWAY/new"},
		{"through a relative link", []tar.Header{link(tar.TypeSymlink, "out", "../../away"), file("out/new")}, false, "away/new"},
		{"onto a link", []tar.Header{link(tar.TypeSymlink, "out", "AWAY/secret"), file("out")}, false, "to/out"},
		{"hard link out", []tar.Header{link(tar.TypeLink, "hard", "../../away/secret")}, true, ""},
		{"hard link out absolutely", []tar.Header{link(tar.TypeLink, "hard", "AWAY/secret")}, true, ""},
		{"hard link through a link", []tar.Header{link(tar.TypeSymlink, "out", "AWAY"), link(tar.TypeLink, "hard", "out/secret")}, true, ""},
		{"onto a device", []tar.Header{{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, file("null")}, false, "to/null"},
		{"in the directory's place", []tar.Header{link(tar.TypeSymlink, ".", "AWAY")}, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlace(t)
			for _, dir := range []string{p.away, "/away"} { // where the links lead inside
				if err := os.MkdirAll(filepath.Join(p.dir, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for i, h := range tt.entries {
				tt.entries[i].Name = strings.Replace(h.Name, "/AWAY", p.away, 1)
				tt.entries[i].Linkname = strings.Replace(h.Linkname, "AWAY", p.away, 1)
			}
			err := p.Unpack(t.Context(), archive(t, tt.entries...), "to", files.UnpackOptions{})
			if tt.refused {
				if err == nil || fault.KindOf(err) == fault.Internal {
					t.Errorf("%v", err)
				}
				return
			}
			made := filepath.Join(p.dir, strings.Replace(tt.made, "AWAY", strings.TrimPrefix(p.away, "/"), 1))
			if st, statErr := os.Lstat(made); err != nil || statErr != nil || !st.Mode().IsRegular() {
				t.Errorf("%v, %v, %v", err, st, statErr)
			}
		})
	}
}

// TestRace exchanges a directory and a link out again and again, while it is
// read and written through.
func TestRace(t *testing.T) {
	p := newPlace(t)
	real, swap, spare := filepath.Join(p.dir, "real"), filepath.Join(p.dir, "swap"), filepath.Join(p.dir, "spare")
	for _, dir := range []string{swap, real} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.link(p.away, "spare")
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, swap, unix.AT_FDCWD, spare, unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 500 {
		// Whether it fails depends on when; where it goes does not.
		_ = p.Unpack(t.Context(), archive(t, file("file"), file("sub/file")), "swap", files.UnpackOptions{})
		_ = p.Unpack(t.Context(), archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "swap", Mode: 0o755}, file("swap/file")), "/", files.UnpackOptions{})
		var out bytes.Buffer
		_ = p.Pack(t.Context(), &out, "swap/.", "x")
		if bytes.Contains(out.Bytes(), []byte("untouched")) {
			t.Error("the archive holds what is outside of the root")
			break
		}
	}
	close(stop)
	work.Wait()
}

func TestPackUnpack(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.dir, "from")
	when := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	p.link("to", "l")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "sub"), 0o755),
		os.WriteFile(filepath.Join(dir, "sub/file"), []byte("content"), 0o600),
		os.Link(filepath.Join(dir, "sub/file"), filepath.Join(dir, "zz-hard")),
		os.Symlink("/etc/passwd", filepath.Join(dir, "link")),
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o640),
		unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))),
		os.Chown(filepath.Join(dir, "sub/file"), 1000, 1001),
		os.Lchown(filepath.Join(dir, "link"), 1002, 1003),
		unix.Chmod(filepath.Join(dir, "sub/file"), 0o4750),
		unix.Chmod(filepath.Join(dir, "sub"), 0o1777),
		os.Chtimes(filepath.Join(dir, "sub"), when, when),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := files.Copy(t.Context(), p.Root, "/from", p.Root, "/l"); err != nil { // "/l" is a link to "to"
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"sub": fs.ModeDir | fs.ModeSticky | 0o777, "sub/file": fs.ModeSetuid | 0o750,
		"zz-hard": fs.ModeSetuid | 0o750, "link": fs.ModeSymlink | 0o777, "pipe": fs.ModeNamedPipe | 0o640, "null": fs.ModeDevice | fs.ModeCharDevice | 0o640} {
		info, err := p.Stat("to/" + name)
		if err != nil || info.Mode != mode {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode, err, mode)
		}
		switch name {
		case "sub":
			if !info.ModTime.Equal(when) {
				t.Errorf("%s is of %v", name, info.ModTime)
			}
		case "sub/file", "zz-hard":
			if info.UID != 1000 || info.GID != 1001 || info.Size != 7 {
				t.Errorf("%s: %+v", name, info)
			}
		case "link":
			if info.UID != 1002 || info.LinkTarget != "/etc/passwd" {
				t.Errorf("%s: %+v", name, info)
			}
		}
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Join(p.dir, "to/sub/file"), &a), unix.Stat(filepath.Join(p.dir, "to/zz-hard"), &b)); err != nil || a.Ino != b.Ino {
		t.Errorf("the hard link: %d, %d, %v", a.Ino, b.Ino, err)
	}
	if empty, err := p.Empty("to"); err != nil || empty {
		t.Errorf("%v, %v", empty, err)
	}
}

func TestUnpackReplaces(t *testing.T) {
	p := newPlace(t)
	full := []tar.Header{{Typeflag: tar.TypeDir, Name: "d", Mode: 0o700}, file("d/x"), file("f")}
	other := []tar.Header{file("d"), {Typeflag: tar.TypeDir, Name: "f", Mode: 0o755}}
	if err := p.Unpack(t.Context(), archive(t, full...), "to", files.UnpackOptions{Owner: &[2]int{5, 6}}); err != nil {
		t.Fatal(err)
	}
	if info, err := p.Stat("to/d/x"); err != nil || info.UID != 5 || info.GID != 6 {
		t.Errorf("%+v, %v", info, err)
	}
	for _, h := range other {
		err := p.Unpack(t.Context(), archive(t, h), "to", files.UnpackOptions{KeepKind: true})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "cannot overwrite") {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
	if err := p.Unpack(t.Context(), archive(t, other...), "to", files.UnpackOptions{}); err != nil {
		t.Fatal(err)
	}
	if info, err := p.Stat("to/f"); err != nil || !info.Mode.IsDir() {
		t.Errorf("%+v, %v", info, err)
	}
	if err := p.Unpack(t.Context(), archive(t), "to/d", files.UnpackOptions{}); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("into a file: %v", err)
	}
	if err := p.Unpack(t.Context(), archive(t), "none", files.UnpackOptions{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("into nothing: %v", err)
	}
}

func TestStatLinks(t *testing.T) {
	p := newPlace(t)
	p.link("/to", "abs")
	p.link("abs/../../../../to/nothing/here", "long")
	p.link("loop", "loop")
	p.write(filepath.Join(p.dir, "to/f"), "x")
	for name, want := range map[string]string{"abs": "/to", "/long": "/to/nothing/here", "abs/f": "", "abs/": "", "/": ""} {
		info, err := p.Stat(name)
		if err != nil || info.LinkTarget != want || (want == "") == (info.Mode&fs.ModeSymlink != 0) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	if _, err := p.Stat("loop"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a loop: %v", err)
	}
	if _, err := p.Stat("loop/x"); !fault.Is(err, fault.Invalid) {
		t.Errorf("through a loop: %v", err)
	}
	if _, err := p.Stat("none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("nothing: %v", err)
	}
}

// TestView sees mounts, also below a link, that nobody else sees, and is gone when closed.
func TestView(t *testing.T) {
	p := newPlace(t)
	volume := t.TempDir()
	p.write(filepath.Join(volume, "f"), "in the volume")
	p.link("/to", "l")
	if err := unix.Mount(p.dir, p.dir, "", unix.MS_BIND, ""); err != nil { // as a container's root is
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(p.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	view, err := files.OpenView(p.dir, true, []files.Mount{{Source: volume, Destination: "/l/data/here"}, {Source: volume, Destination: "/ro", ReadOnly: true},
		{Source: filepath.Join(volume, "f"), Destination: "/one"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := view.Close(); err != nil {
			t.Error(err)
		}
	}()
	var out bytes.Buffer
	if err := view.Pack(t.Context(), &out, "/", ""); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out.Bytes(), []byte("in the volume")); n != 3 {
		t.Errorf("the volume's file is there %d times", n)
	}
	if err := view.Unpack(t.Context(), archive(t, file("new")), "/to/data/here", files.UnpackOptions{}); err != nil {
		t.Error(err)
	}
	if got := p.read(filepath.Join(volume, "new")); got != "new" {
		t.Errorf("%q", got)
	}
	err = view.Unpack(t.Context(), archive(t, file("new")), "/ro", files.UnpackOptions{})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("%v", err)
	}
	if err := view.Unpack(t.Context(), archive(t, file("new")), "/to", files.UnpackOptions{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("beside the mounts: %v", err)
	}
	p.write(filepath.Join(p.dir, "writable"), "") // for everybody else
	if left, err := os.ReadDir(filepath.Join(p.dir, "to/data/here")); err != nil || len(left) != 0 {
		t.Errorf("the machine sees %v, %v", left, err)
	}
	own, err := files.OpenProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if info, err := own.Stat(volume + "/f"); err != nil || info.Size != 13 {
		t.Errorf("%+v, %v", info, err)
	}
}
