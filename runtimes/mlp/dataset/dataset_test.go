package dataset

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

func idx(magic uint32, dims []uint32, body ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, magic)
	for _, d := range dims {
		b = binary.BigEndian.AppendUint32(b, d)
	}
	return append(b, body...)
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func write(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func small() *Set {
	return FromBytes([]byte{0, 51, 102, 255, 1, 2, 3, 4, 9, 9, 9, 9}, 2, 2, []int{3, 1, 2})
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	for _, set := range []string{"train", "t10k"} {
		if err := WriteIDX(dir, set, small()); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Load(dir, 1, CSVOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(small(), d.Train, cmp.AllowUnexported(Set{})); diff != "" {
		t.Error(diff)
	}
	row := make([]float32, 4)
	d.Test.Row(0, row)
	if row[3] != 1 || row[1] != 0.2 || d.HeldOut || d.Test.Classes() != 4 || d.Test.Width != 2 {
		t.Errorf("first sample %v of %+v", row, d.Test)
	}
}

// TestGzip reads gzipped files with and without the name saying so.
func TestGzip(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "train-images-idx3-ubyte.gz", zipped(t, idx(magicImages, []uint32{2, 1, 1}, 5, 6)))
	write(t, dir, "train-labels-idx1-ubyte", zipped(t, idx(magicLabels, []uint32{2}, 0, 1)))
	d, err := Load(dir, 1, CSVOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !d.HeldOut || d.Train.Len() != 1 || d.Test.Len() != 1 {
		t.Errorf("%d training, %d test, held out %v", d.Train.Len(), d.Test.Len(), d.HeldOut)
	}
}

func TestCorruptIDX(t *testing.T) {
	images := idx(magicImages, []uint32{1, 2, 2}, 1, 2, 3, 4)
	labels := idx(magicLabels, []uint32{1}, 7)
	for _, tc := range []struct {
		name           string
		images, labels []byte
		want           string
	}{
		{"empty", nil, labels, "no header"},
		{"bad magic", idx(0x0d03, []uint32{1, 2, 2}, 1, 2, 3, 4), labels, "0x00000d03"},
		{"labels for images", labels, labels, "0x00000801"},
		{"short header", images[:9], labels, "header is cut short"},
		{"truncated", images[:len(images)-1], labels, "the file ends after 3"},
		{"too long", append(bytes.Clone(images), 0), labels, "holds more"},
		{"huge count", idx(magicImages, []uint32{math.MaxUint32, 28, 28}), labels, "limit"},
		{"huge side", idx(magicImages, []uint32{1, math.MaxUint32, math.MaxUint32}), labels, "pixels"},
		{"lying but allowed size", idx(magicImages, []uint32{2 << 10, 1 << 10, 1 << 10}, 1), labels, "the file ends after 1"},
		{"no pixels", idx(magicImages, []uint32{1, 0, 2}), labels, "pixels"},
		{"no images", idx(magicImages, []uint32{0, 2, 2}), labels, "no images"},
		{"truncated labels", images, labels[:8], "the file ends after 0"},
		{"other number of labels", images, idx(magicLabels, []uint32{2}, 7, 7), "2 labels"},
		{"truncated gzip", zipped(t, images)[:20], labels, "read "},
		{"damaged gzip", append(zipped(t, images)[:30], make([]byte, 20)...), labels, "read "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "train-images-idx3-ubyte", tc.images)
			write(t, dir, "train-labels-idx1-ubyte", tc.labels)
			_, err := Load(dir, 1, CSVOptions{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || hint.Of(err) == "" {
				t.Errorf("got %v (hint %q), want error with %q", err, hint.Of(err), tc.want)
			}
		})
	}
}

func TestCSV(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		opts       CSVOptions
		want       string // part of the error, "" for none
		labels     []int
	}{
		{"plain", "1,2,3\n0,4,5\n", CSVOptions{}, "", []int{1, 0}},
		{"header", "label,a,b\n1,2,3\n", CSVOptions{}, "", []int{1}},
		{"label last", "2,3,1\n", CSVOptions{Label: "last", Scale: 10}, "", []int{1}},
		{"ragged", "1,2,3\n1,2\n", CSVOptions{}, "CSV", nil},
		{"one column", "1\n", CSVOptions{}, "one column", nil},
		{"empty", "", CSVOptions{}, "no samples", nil},
		{"label", "-1,2\n", CSVOptions{}, "label", nil},
		{"value", "1,x\n", CSVOptions{}, "finite", nil},
		{"nan", "1,NaN\n", CSVOptions{}, "finite", nil},
		{"option", "1,2\n", CSVOptions{Label: "middle"}, "middle", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := ReadCSV(strings.NewReader(tc.text), tc.opts)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want error with %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.labels, s.Labels); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMissing(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/no/such/folder"} {
		if _, err := Load(path, 1, CSVOptions{}); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %v has no hint", path, err)
		}
	}
}

func FuzzReadImages(f *testing.F) {
	f.Add(idx(magicImages, []uint32{1, 2, 2}, 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, in []byte) {
		if s, err := ReadImages(bytes.NewReader(in)); err == nil && len(s.bytes)%s.Features != 0 {
			t.Errorf("%d bytes are not whole images of %d", len(s.bytes), s.Features)
		}
	})
}
