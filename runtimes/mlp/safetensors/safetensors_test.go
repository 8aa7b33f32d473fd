package safetensors

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() *File {
	return &File{Metadata: map[string]string{"activation": "relu", "format": "pt"}, Tensors: []Tensor{
		{Name: "layers.0.weight", Shape: []int{2, 3}, Data: []float32{1, -2, 3, 4, 5, 6.5}},
		{Name: "layers.0.bias", Shape: []int{2}, Data: []float32{0.5, -0.5}},
	}}
}

func read(b []byte) (*File, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func raw(header string, data ...byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), data...)
}

func TestRoundTrip(t *testing.T) {
	b, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	again, err := Encode(sample())
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("the same content gave other bytes (%v)", err)
	}
	got, err := read(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sample(), got); d != "" {
		t.Error(d)
	}
}

func TestTypes(t *testing.T) {
	for _, tc := range []struct {
		dtype string
		data  []byte
	}{
		{"F64", []byte{0, 0, 0, 0, 0, 0, 0xf8, 0x3f}}, {"F32", []byte{0, 0, 0xc0, 0x3f}},
		{"F16", []byte{0, 0x3e}}, {"BF16", []byte{0xc0, 0x3f}},
	} {
		got, err := Floats(tc.dtype, tc.data)
		if err != nil || len(got) != 1 || got[0] != 1.5 {
			t.Errorf("%s: %v, %v, want 1.5", tc.dtype, got, err)
		}
	}
}

func TestCorrupt(t *testing.T) {
	good := `{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`
	for _, tc := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "too few"},
		{"header beyond the file", binary.LittleEndian.AppendUint64(nil, 1000), "header of 1000"},
		{"huge header", binary.LittleEndian.AppendUint64(nil, 1<<63), "header of"},
		{"no json", raw("hello"), "does not begin"},
		{"cut json", raw(`{"a":`), "header"},
		{"two values", raw(`{}{}`), "more than one"},
		{"truncated data", raw(good, 0, 0), "outside"},
		{"data left over", raw(good, 0, 0, 0, 0, 0), "the data at 5"},
		{"equal names", raw(`{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`), "twice"},
		{"overlap", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 0, 0, 0, 0), "overlap"},
		{"gap", raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, make([]byte, 8)...), "gap"},
		{"shape and length differ", raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 0, 0, 0, 0), "is not 4 bytes"},
		{"overflow", raw(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`), "dimension"},
		{"negative", raw(`{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}`), "dimension"},
		{"unknown type", raw(`{"a":{"dtype":"Q4","shape":[0],"data_offsets":[0,0]}}`), "unknown type"},
		{"unsupported type", raw(`{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}`, 0), "unsupported type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := read(tc.file); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want error with %q", err, tc.want)
			}
		})
	}
}

// FuzzRead checks that what is read can be written and read again, the same.
func FuzzRead(f *testing.F) {
	b, err := Encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(raw(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 0, 0, 0x80, 0x7f))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := read(in)
		if err != nil {
			return
		}
		b, err := Encode(got)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := read(b)
		if err != nil || len(again.Tensors) != len(got.Tensors) {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
