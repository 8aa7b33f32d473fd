package store_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// TestLayerEscapes: whatever a layer's names and links try, nothing outside of
// its own directory is read, written or removed. Each is tried as the lowest
// layer and as one on top of another, which are unpacked differently.
func TestLayerEscapes(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	up := strings.Repeat("../", 30)
	for name, entries := range map[string][]entry{
		"parents":                   {{name: up + victim[1:], data: "bad"}},
		"parents in between":        {{name: "a/" + up + victim[1:], data: "bad"}},
		"an absolute name":          {{name: victim, data: "bad"}},
		"through an absolute link":  {{name: "way", kind: tar.TypeSymlink, link: outside}, {name: "way/victim", data: "bad"}},
		"through a relative link":   {{name: "way", kind: tar.TypeSymlink, link: up + outside[1:]}, {name: "way/victim", data: "bad"}},
		"through a link to a link":  {{name: "one", kind: tar.TypeSymlink, link: "/"}, {name: "two", kind: tar.TypeSymlink, link: "one" + outside}, {name: "two/victim", data: "bad"}},
		"a link in place of a file": {{name: "victim", kind: tar.TypeSymlink, link: victim}, {name: "victim", data: "bad"}},
		"a directory's owner":       {{name: "way", kind: tar.TypeSymlink, link: outside}, {name: "way/", kind: tar.TypeDir, mode: 0o777, uid: 7}},
		"a hard link out":           {{name: "stolen", kind: tar.TypeLink, link: victim}},
		"a hard link up and out":    {{name: "stolen", kind: tar.TypeLink, link: up + victim[1:]}},
		"a hard link through a link": {{name: "way", kind: tar.TypeSymlink, link: outside}, {name: "stolen", kind: tar.TypeLink, link: "way/victim"},
			{name: "stolen", data: "bad"}},
		"a whiteout through a link":         {{name: "way", kind: tar.TypeSymlink, link: outside}, {name: "way/.wh.victim"}},
		"a whiteout of the parent":          {{name: ".wh..", data: ""}},
		"a whiteout of the parent's parent": {{name: ".wh...", data: ""}},
		"a whiteout with slashes":           {{name: ".wh." + up + victim[1:]}},
		"an opaque link":                    {{name: "way", kind: tar.TypeSymlink, link: outside}, {name: "way/.wh..wh..opq"}},
		"the root as a file":                {{name: ".", data: "bad"}},
		"the root as a link":                {{name: "./", kind: tar.TypeSymlink, link: outside}, {name: "victim", data: "bad"}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
				t.Fatal(err)
			}
			f, s := newRegistry(t), open(t, t.TempDir())
			base := gzipLayer(t, tarOf(t, entry{name: "base", data: "x"}))
			odd := gzipLayer(t, tarOf(t, entries...))
			f.image("lowest", "amd64", odd)
			f.image("upper", "amd64", base, odd)
			for _, tag := range []string{"lowest", "upper"} {
				image := f.host + "/app:" + tag
				_, err := s.Pull(t.Context(), image, store.TransferOptions{})
				if err != nil && !fault.Is(err, fault.Invalid) {
					t.Errorf("%s: %v (%v)", tag, err, fault.KindOf(err))
				}
				if err == nil { // harmless, then, also for who reads it
					dir := root(t, s, image)
					if st, err := os.Lstat(filepath.Join(dir, "stolen")); err == nil && st.Mode().IsRegular() && readFile(t, filepath.Join(dir, "stolen")) == "untouched" {
						t.Errorf("%s: what is outside can be read", tag)
					}
				}
				list, err := os.ReadDir(outside)
				if err != nil || len(list) != 1 || readFile(t, victim) != "untouched" {
					t.Fatalf("%s: outside there is %v %q, %v", tag, list, readFile(t, victim), err)
				}
				var st unix.Stat_t
				if err := unix.Stat(outside, &st); err != nil || st.Uid != 0 || st.Mode&0o777 == 0o777 {
					t.Errorf("%s: outside became %o of %d, %v", tag, st.Mode, st.Uid, err)
				}
				if err := unix.Stat(victim, &st); err != nil || st.Nlink != 1 {
					t.Errorf("%s: the file outside has %d links, %v", tag, st.Nlink, err)
				}
			}
		})
	}
}

// TestPrivileged: setuid programs and devices are kept, as in Docker, and out of
// reach of the machine's users: no directory above them lets them pass.
func TestPrivileged(t *testing.T) {
	f, dir := newRegistry(t), t.TempDir()
	s := open(t, filepath.Join(dir, "store"))
	f.image("v1", "amd64", gzipLayer(t, tarOf(t, entry{name: "su", mode: 0o4755, data: "x"}, entry{name: "null", kind: tar.TypeChar, mode: 0o666})))
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	mounted := root(t, s, f.host+"/app:v1")
	if st, err := os.Stat(mounted + "/su"); err != nil || st.Mode()&os.ModeSetuid == 0 {
		t.Errorf("setuid: %v, %v", st, err)
	}
	if st, err := os.Stat(mounted + "/null"); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("device: %v, %v", st, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "store")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the store is %v, %v", st.Mode(), err)
	}
}

// TestParents: a layer that does not describe the directories of its files
// leaves them as the layers beneath have them.
func TestParents(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	base := gzipLayer(t, tarOf(t, entry{name: "tmp/", kind: tar.TypeDir, mode: 0o1777}, entry{name: "home/", kind: tar.TypeDir, mode: 0o755},
		entry{name: "home/user/", kind: tar.TypeDir, mode: 0o700, uid: 1000}, entry{name: "link", kind: tar.TypeSymlink, link: "tmp"}))
	middle := gzipLayer(t, tarOf(t, entry{name: "home/user/other"}))
	top := gzipLayer(t, tarOf(t, entry{name: "tmp/file"}, entry{name: "home/user/deep/file"}, entry{name: "link/file"}, entry{name: "fresh/file"}))
	f.image("v1", "amd64", base, middle, top)
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err != nil {
		t.Fatal(err)
	}
	dir := root(t, s, f.host+"/app:v1")
	for name, want := range map[string]struct{ mode, uid uint32 }{"tmp": {0o1777, 0}, "home": {0o755, 0}, "home/user": {0o700, 1000}, "home/user/deep": {0o755, 0}, "link": {0o755, 0}, "fresh": {0o755, 0}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%s: %o of %d, %v; want %o of %d", name, st.Mode, st.Uid, err, want.mode, want.uid)
		}
	}
}

// TestOddImages: what cannot be an image is refused for what it is, and leaves nothing.
func TestOddImages(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	layer := gzipLayer(t, tarOf(t, entry{name: "a"}))
	good := f.image("good", "amd64", layer)
	data := func(v any) []byte {
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// manifest adds an image whose configuration and layers the test describes.
	manifest := func(tag string, config []byte, layers ...ocispec.Descriptor) {
		f.document(tag, ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest,
			Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: f.add(config), Size: int64(len(config))}, Layers: layers})
	}
	desc := ocispec.Descriptor{MediaType: layer.mediaType, Digest: digest.FromBytes(layer.data), Size: int64(len(layer.data))}
	config := func(diffs ...digest.Digest) []byte {
		return data(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs}})
	}
	right := digest.FromBytes(layer.plain)
	deep := f.index("", good)
	for range 6 {
		deep = f.index("deep", deep)
	}
	var many []ocispec.Descriptor
	for range 1001 {
		many = append(many, good)
	}
	f.index("many", many...)
	var diffs []digest.Digest
	var layers []ocispec.Descriptor
	for range 501 {
		diffs, layers = append(diffs, right), append(layers, desc)
	}
	manifest("tall", config(diffs...), layers...)
	manifest("fewer", config(right, right), desc)
	manifest("otherdiff", config(digest.FromString("x")), desc)
	manifest("nodigest", config("sha256:zz"), desc)
	manifest("noconfig", []byte("{"), desc)
	confused := desc
	confused.MediaType = "application/vnd.oci.image.layer.v1.tar+encrypted"
	manifest("encrypted", config(right), confused)
	short := desc
	short.Size = 5
	manifest("short", config(right), short)
	negative := desc
	negative.Size = -1
	manifest("negative", config(right), negative)
	f.document("both", ocispec.MediaTypeImageManifest, map[string]any{"mediaType": ocispec.MediaTypeImageManifest, "config": desc, "layers": []any{desc}, "manifests": []any{good}})
	f.document("index-as-manifest", ocispec.MediaTypeImageManifest, map[string]any{"mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{good}})
	f.document("manifest-as-index", ocispec.MediaTypeImageIndex, map[string]any{"mediaType": ocispec.MediaTypeImageManifest, "config": desc, "layers": []any{desc}})
	f.document("huge", ocispec.MediaTypeImageManifest, map[string]any{"mediaType": ocispec.MediaTypeImageManifest, "annotations": map[string]string{"x": strings.Repeat("x", 5<<20)}})
	f.document("schema1", "application/vnd.docker.distribution.manifest.v1+prettyjws", map[string]any{"schemaVersion": 1})
	f.document("html", "text/html", "hello")
	f.document("notjson", ocispec.MediaTypeImageManifest, []int{1})
	garbage := testLayer{ocispec.MediaTypeImageLayerGzip, []byte("this is no tar"), []byte("this is no tar")}
	f.image("garbage", "amd64", garbage)
	cutShort := gzipLayer(t, bytes.Repeat([]byte{1}, 100_000))
	cutShort.data = cutShort.data[:len(cutShort.data)/2]
	f.image("cut", "amd64", cutShort)
	for tag, says := range map[string]string{
		"deep": "more than 4 deep", "many": "1001", "tall": "at most", "fewer": "1 layers, but 2", "otherdiff": "digest", "nodigest": "sha256:zz",
		"noconfig": "config", "encrypted": "cannot be unpacked", "short": "", "negative": "-1", "both": "", "index-as-manifest": "expected manifest",
		"manifest-as-index": "expected index", "huge": "rejecting", "schema1": "first format", "html": "text/html", "notjson": "", "garbage": "", "cut": "",
	} {
		_, err := s.Pull(t.Context(), f.host+"/app:"+tag, store.TransferOptions{})
		if err == nil || !strings.Contains(err.Error(), says) || fault.Is(err, fault.Internal) {
			t.Errorf("%s: %v (%v), want %q", tag, err, fault.KindOf(err), says)
		}
	}
	if got := names(t, s); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if n := blobCount(t, s); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
}

// TestSpareFile: a file that says it is as large as a disk is not begun.
func TestSpareFile(t *testing.T) {
	f, s := newRegistry(t), open(t, t.TempDir())
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "sparse", Typeflag: tar.TypeReg, Size: 1 << 60, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	f.image("v1", "amd64", gzipLayer(t, buf.Bytes()))
	if _, err := s.Pull(t.Context(), f.host+"/app:v1", store.TransferOptions{}); err == nil || !strings.Contains(err.Error(), fmt.Sprint(1<<60)) {
		t.Errorf("%v", err)
	}
}
