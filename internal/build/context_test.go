package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// archive makes a tar archive of headers; a regular file's content is its own name.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestTarContext(t *testing.T) {
	plain := archive(t, tar.Header{Name: "./", Typeflag: tar.TypeDir}, tar.Header{Name: "b/c/file"}, tar.Header{Name: "./Dockerfile"},
		tar.Header{Name: "b.txt"}, tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../../etc/shadow"},
		tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "b.txt"}, tar.Header{Name: "b/run", Mode: 0o4755, Uid: 7})
	var zipped, zstdd bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	z.Close()
	zs, err := zstd.NewWriter(&zstdd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := zs.Write(plain); err != nil {
		t.Fatal(err)
	}
	zs.Close()
	for name, data := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes(), "zstd": zstdd.Bytes()} {
		t.Run(name, func(t *testing.T) {
			c, err := newTarContext(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var walked []string
			err = c.Walk(t.Context(), "", func(name string, d fs.DirEntry, err error) error {
				info, _ := d.Info()
				walked = append(walked, name+" "+info.Mode().String())
				return err
			})
			want := []string{"Dockerfile -rw-r--r--", "b drwxr-xr-x", "b/c drwxr-xr-x", "b/c/file -rw-r--r--", "b/run urwxr-xr-x", "b.txt -rw-r--r--",
				"hard -rw-r--r--", "link Lrw-r--r--"}
			if err != nil || !slices.Equal(walked, want) {
				t.Errorf("%q, %v", walked, err)
			}
			for name, content := range map[string]string{"b/c/file": "b/c/file", "hard": "b.txt", "Dockerfile": "./Dockerfile"} {
				if got := readAll(t, c, name); got != content {
					t.Errorf("%s: %q", name, got)
				}
			}
			for _, name := range []string{"link", "b", "nothing", "../b.txt/x"} {
				if r, err := c.Open(name); err == nil {
					r.Close()
					t.Errorf("%s can be opened", name)
				}
			}
			if !c.has("Dockerfile") || !c.has("link") || c.has("b") || c.has("nothing") {
				t.Error("has is wrong")
			}
		})
	}
}

func readAll(t *testing.T, c *tarContext, name string) string {
	t.Helper()
	r, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestTarContextWalk walks a part, and skips.
func TestTarContextWalk(t *testing.T) {
	c, err := newTarContext(bytes.NewReader(archive(t, tar.Header{Name: "a/1"}, tar.Header{Name: "a/2"}, tar.Header{Name: "a/3/4"}, tar.Header{Name: "ab"})))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tt := range []struct {
		target, skipAt string
		skip           error
		want           []string
	}{
		{"a", "", nil, []string{"a", "a/1", "a/2", "a/3", "a/3/4"}},
		{"/a/3/", "", nil, []string{"a/3", "a/3/4"}},
		{"", "a", fs.SkipDir, []string{"a", "ab"}},
		{"", "a/1", fs.SkipDir, []string{"a", "a/1", "ab"}},
		{"", "ab", fs.SkipDir, []string{"a", "a/1", "a/2", "a/3", "a/3/4", "ab"}},
		{"", "a/2", fs.SkipAll, []string{"a", "a/1", "a/2"}},
	} {
		var walked []string
		err := c.Walk(t.Context(), tt.target, func(name string, _ fs.DirEntry, err error) error {
			walked = append(walked, name)
			if name == tt.skipAt {
				return tt.skip
			}
			return err
		})
		if err != nil || !slices.Equal(walked, tt.want) {
			t.Errorf("%+v: %q, %v", tt, walked, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Walk(ctx, "", func(string, fs.DirEntry, error) error { return nil }); err == nil {
		t.Error("walks on without its context")
	}
}

func TestTarContextRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		data []byte
		says string
	}{
		{"outside", archive(t, tar.Header{Name: "../x"}), `"../x" is outside`},
		{"outside later", archive(t, tar.Header{Name: "a/../../x"}), "is outside"},
		{"device", archive(t, tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}), `"sda" is a device`},
		{"null device", archive(t, tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}), `"null" is a device`},
		{"in a link", archive(t, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "d/passwd"}), `is in "d", which is no directory`},
		{"directory and file", archive(t, tar.Header{Name: "d/f"}, tar.Header{Name: "d"}), "is a directory and something else"},
		{"link to nothing", archive(t, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}), "which is no file before it"},
		{"link to a link", archive(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"},
			tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l"}), "which is no file before it"},
		{"no archive", []byte(strings.Repeat("this is no archive ", 100)), "invalid tar header"},
		{"cut off", archive(t, tar.Header{Name: "file"})[:514], "ends within file"},
		{"xz", []byte("\xfd7zXZ\x00 and more"), "xz"},
		{"broken gzip", []byte("\x1f\x8b\x08 broken"), "build context"},
	} {
		c, err := newTarContext(bytes.NewReader(tt.data))
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
	}
}

// FuzzTarContext reads anything as a context: what is accepted has no path that
// leads out, has each file once and after its directory, and can be read.
func FuzzTarContext(f *testing.F) {
	f.Add(archive(f, tar.Header{Name: "a/b"}, tar.Header{Name: "a/c", Typeflag: tar.TypeLink, Linkname: "a/b"}))
	f.Add(archive(f, tar.Header{Name: "../x"}))
	f.Add(archive(f, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/"}, tar.Header{Name: "d/x"}))
	f.Add([]byte("BZh91AY&SY"))
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := newTarContext(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer c.Close()
		seen := map[string]fs.FileMode{".": fs.ModeDir}
		err = c.Walk(t.Context(), "", func(name string, d fs.DirEntry, _ error) error {
			if !fs.ValidPath(name) && strings.ToValidUTF8(name, "") == name {
				t.Errorf("path %q", name)
			}
			if _, again := seen[name]; again {
				t.Errorf("%q twice", name)
			}
			parent := "."
			if i := strings.LastIndexByte(name, '/'); i >= 0 {
				parent = name[:i]
			}
			if mode, known := seen[parent]; !known || !mode.IsDir() {
				t.Errorf("%q before its directory", name)
			}
			seen[name] = d.Type()
			if d.Type().IsRegular() {
				r, err := c.Open(name)
				if err != nil {
					t.Errorf("%q: %v", name, err)
					return nil
				}
				defer r.Close()
				info, err := d.Info()
				if err != nil {
					t.Error(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != info.Size() {
					t.Errorf("%q: %d of %d bytes, %v", name, n, info.Size(), err)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestSameSizeAndTime: a file of another content is another file, and a directory
// of other permissions another directory, whatever else an archive says of them.
func TestSameSizeAndTime(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	for _, content := range []string{"aaaa", "bbbb"} {
		if a := b.build("t=app", "COPY file /file\nRUN echo has $(cat /file)", "file", content); !strings.Contains(a.text, "has "+content+"\n") {
			t.Errorf("with %s: %+v", content, a)
		}
	}
	for _, mode := range []int64{0o755, 0o700} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		file := onBox("COPY . /c/\nRUN echo is $(stat -c %a /c/d)")
		for _, h := range []*tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: mode}, {Name: "Dockerfile", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(file))}} {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(w, file); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if a := b.post(t.Context(), "t=dir", &buf); !strings.Contains(a.text, fmt.Sprintf("is %o\n", mode)) {
			t.Errorf("with %o: %+v", mode, a)
		}
	}
}
