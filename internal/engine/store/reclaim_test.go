package store_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/store"
)

// later is beyond all ages at which an image is left alone.
func later() time.Time { return time.Now().Add(3 * time.Hour) }

func names(t *testing.T, s *store.Store) []string {
	t.Helper()
	list, err := s.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, img := range list {
		if len(img.Names) == 0 {
			out = append(out, "<none>")
		}
		for _, n := range img.Names {
			out = append(out, strings.TrimSuffix(n[strings.LastIndexByte(n, '/')+1:], ":latest"))
		}
	}
	slices.Sort(out)
	return out
}

// TestReclaim: what is removed by age, and what stays for which reason.
func TestReclaim(t *testing.T) {
	for _, tt := range []struct {
		name string
		keep store.Keep
		now  time.Time
		used string
		want []string
	}{
		{"keeps all by default", store.Keep{}, later(), "", []string{"<none>", "bundled", "one", "two"}},
		{"age", store.Keep{MaxAge: time.Hour, RemoveTagged: true}, later(), "", []string{"bundled"}},
		{"names are kept", store.Keep{MaxAge: time.Hour}, later(), "", []string{"bundled", "one", "two"}},
		{"what containers use is kept", store.Keep{MaxAge: time.Hour, RemoveTagged: true}, later(), "one", []string{"bundled", "one"}},
		{"too young", store.Keep{MaxAge: time.Hour, RemoveTagged: true}, time.Now(), "", []string{"<none>", "bundled", "one", "two"}},
		{"younger than the least age", store.Keep{MaxAge: time.Hour, MinAge: 24 * time.Hour, RemoveTagged: true}, later(), "", []string{"<none>", "bundled", "one", "two"}},
		{"a full disk", store.Keep{HighPercent: 1, LowPercent: 1, RemoveTagged: true}, later(), "two", []string{"bundled", "two"}},
		{"a disk with room", store.Keep{HighPercent: 99, LowPercent: 98, RemoveTagged: true}, later(), "", []string{"<none>", "bundled", "one", "two"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var used []string
			s := openWith(t, store.Options{Root: t.TempDir(), Keep: tt.keep, InUse: func(context.Context) []string { return used }})
			byName := map[string]store.Image{}
			for _, name := range []string{"ferry.test/one:latest", "ferry.test/two:latest", "ferry.local/bundled:latest", "ferry.test/nameless:latest"} {
				byName[name] = load(t, s, name, ocispec.ImageConfig{Cmd: []string{name}})
			}
			if err := s.Tag(t.Context(), "ferry.test/one:latest", "ferry.test/nameless:latest"); err != nil { // makes the other nameless
				t.Fatal(err)
			}
			if _, _, err := s.Remove(t.Context(), "ferry.test/nameless:latest", false); err != nil {
				t.Fatal(err)
			}
			if tt.used != "" {
				used = []string{byName["ferry.test/"+tt.used+":latest"].ID}
			}
			if err := s.Reclaim(t.Context(), tt.now); err != nil {
				t.Fatal(err)
			}
			if got := names(t, s); !slices.Equal(got, tt.want) {
				t.Errorf("left: %v, want %v", got, tt.want)
			}
		})
	}
}

// TestReclaimOrder: while the disk is too full, what was not used for longest
// goes first, and no more than is needed; uses are remembered by a restart.
func TestReclaimOrder(t *testing.T) {
	dir := tmpfs(t, 64)
	opt := store.Options{Root: dir, Keep: store.Keep{HighPercent: 40, LowPercent: 30, RemoveTagged: true}}
	s := openWith(t, opt)
	archive := func(name string) []byte {
		data := bytes.Repeat([]byte(name), 4<<20/len(name))
		return enginetest.Archive(t, "ferry.test/"+name+":latest", []enginetest.File{{Name: "file", Data: data}}, ocispec.ImageConfig{})
	}
	for _, name := range []string{"a", "b", "c", "d"} { // 4 MB as it came and 4 unpacked each
		if _, err := s.Load(t.Context(), bytes.NewReader(archive(name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"c", "a", "d", "b"} {
		if _, err := s.PrepareRootfs(t.Context(), "root-"+name, "ferry.test/"+name); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveRootfs(t.Context(), "root-"+name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Reclaim(t.Context(), later()); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) == 0 || len(got) == 4 || !slices.Equal(got, []string{"a", "b", "d"}[3-min(3, len(got)):]) && !slices.Equal(got, []string{"b", "d"}) && !slices.Equal(got, []string{"b"}) {
		t.Errorf("left: %v", got)
	}
	if data := readFile(t, dir+"/used.json"); data != "" {
		t.Errorf("saved before its time: %s", data)
	}
}

// TestReclaimWhileUsed: images that are pulled, used and reclaimed at once are
// either there with all their layers or gone.
func TestReclaimWhileUsed(t *testing.T) {
	f := newRegistry(t)
	for i := range 4 {
		f.image(fmt.Sprint("v", i), "amd64", gzipLayer(t, tarOf(t, entry{name: "a", data: fmt.Sprint(i)})), gzipLayer(t, tarOf(t, entry{name: "b", data: "shared"})))
	}
	s := openWith(t, store.Options{Root: t.TempDir(), Keep: store.Keep{MaxAge: time.Nanosecond, RemoveTagged: true}})
	var users, reclaimer sync.WaitGroup
	stop := make(chan struct{})
	reclaimer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.Reclaim(t.Context(), later()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range 4 {
		users.Go(func() {
			name := fmt.Sprint(f.host, "/app:v", i)
			for n := range 15 {
				if _, err := s.Pull(t.Context(), name, store.TransferOptions{}); err != nil {
					t.Errorf("pull: %v", err)
				}
				id := fmt.Sprint("root-", i, "-", n)
				mounts, err := s.PrepareRootfs(t.Context(), id, name)
				if err != nil {
					if !strings.Contains(err.Error(), "No such image") {
						t.Errorf("use: %v", err)
					}
					continue
				}
				dir := t.TempDir()
				if err := s.MountAll(mounts, dir); err != nil {
					t.Error(err)
					continue
				}
				wantFile(t, dir+"/a", fmt.Sprint(i))
				wantFile(t, dir+"/b", "shared")
				if err := store.UnmountAll(dir); err != nil {
					t.Error(err)
				}
				if err := s.RemoveRootfs(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	close(stop)
	reclaimer.Wait()
	if err := s.Reclaim(t.Context(), later()); err != nil {
		t.Fatal(err)
	}
	if n := blobCount(t, s); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
}

// tmpfs is a file system of so many megabytes, on which overlays can be made.
func tmpfs(t *testing.T, megabytes int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=700", megabytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDiskFull: pulls and loads that do not fit fail clearly and leave the store
// as it was; with room again they succeed.
func TestDiskFull(t *testing.T) {
	f, dir := newRegistry(t), tmpfs(t, 24)
	s := openWith(t, store.Options{Root: dir, RetryPause: time.Millisecond})
	small := load(t, s, "ferry.test/small:latest", ocispec.ImageConfig{})
	huge := bytes.Repeat([]byte("0123456789abcdef"), 20<<20/16)
	f.image("blob", "amd64", plainLayer(tarOf(t, entry{name: "huge", data: string(huge)}))) // the blob fits, unpacked it does not
	f.image("bomb", "amd64", gzipLayer(t, tarOf(t, entry{name: "huge", data: string(huge)}, entry{name: "more", data: string(huge)})))
	archive := enginetest.Archive(t, "ferry.test/huge:latest", []enginetest.File{{Name: "file", Data: huge}}, ocispec.ImageConfig{})
	room := func() int64 {
		t.Helper()
		if err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	before := room()
	for what, do := range map[string]func() error{
		"pull":           func() error { _, err := s.Pull(t.Context(), f.host+"/app:blob", store.TransferOptions{}); return err },
		"pull of a bomb": func() error { _, err := s.Pull(t.Context(), f.host+"/app:bomb", store.TransferOptions{}); return err },
		"load":           func() error { _, err := s.Load(t.Context(), bytes.NewReader(archive)); return err },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("%s: %v", what, err)
		}
		if got := names(t, s); !slices.Equal(got, []string{"small"}) {
			t.Errorf("%s: left %v", what, got)
		}
		if after := room(); after < before-1<<20 {
			t.Errorf("%s: %d bytes of %d are left", what, after, before)
		}
	}
	wantFile(t, root(t, s, small.ID)+"/file", "the same in all")
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=96m"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), f.host+"/app:blob", store.TransferOptions{}); err != nil {
		t.Errorf("with room: %v", err)
	}
	if _, err := s.Load(t.Context(), bytes.NewReader(archive)); err != nil {
		t.Errorf("with room: %v", err)
	}
}

// TestForgetRemoved: when an image was used is not remembered once it is removed.
func TestForgetRemoved(t *testing.T) {
	dir := t.TempDir()
	s := store.New(store.Options{Root: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, removed := load(t, s, "ferry.test/left:latest", ocispec.ImageConfig{}), load(t, s, "ferry.test/removed:latest", ocispec.ImageConfig{Cmd: []string{"x"}})
	for _, img := range []store.Image{left, removed} {
		if _, err := s.PrepareRootfs(t.Context(), "root-"+img.ID[7:], img.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Remove(t.Context(), "ferry.test/removed:latest", false); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	data := readFile(t, dir+"/used.json")
	if !strings.Contains(data, left.Target) || strings.Contains(data, removed.Target) {
		t.Errorf("remembered are %s, not %s alone", data, left.Target)
	}
}
