package pth

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ferryos/ferry/runtimes/mlp/safetensors"
)

// pickler writes the opcodes that torch.save writes.
type pickler struct{ bytes.Buffer }

func (p *pickler) op(s string) *pickler { p.WriteString(s); return p }

func (p *pickler) str(s string) *pickler {
	p.WriteByte('X')
	p.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(s))))
	return p.op(s)
}

func (p *pickler) int(n int) *pickler {
	p.WriteByte('J')
	p.Write(binary.LittleEndian.AppendUint32(nil, uint32(n)))
	return p
}

func (p *pickler) tuple(ints ...int) *pickler {
	p.op("(")
	for _, n := range ints {
		p.int(n)
	}
	return p.op("t")
}

// tensor writes _rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict()).
func (p *pickler) tensor(class, key string, count, offset int, shape, strides []int) *pickler {
	p.op("ctorch._utils\n_rebuild_tensor_v2\n((").str("storage").op("ctorch\n" + class + "\n").str(key).str("cpu").int(count).op("tQ")
	p.int(offset).tuple(shape...).tuple(strides...)
	return p.op("\x89ccollections\nOrderedDict\n)RtR")
}

func stateDict(body func(*pickler)) []byte {
	p := &pickler{}
	p.op("\x80\x02ccollections\nOrderedDict\n)Rq\x00(")
	body(p)
	p.op("u}").str("_metadata").op("ccollections\nOrderedDict\n)Rsb.")
	return p.Bytes()
}

func archiveOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, name := range []string{"m/data.pkl", "m/byteorder", "m/data/0", "m/data/1", "m/version"} {
		b, ok := files[name]
		if !ok {
			continue
		}
		f, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func floats(v ...float32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return b
}

func linear() map[string][]byte {
	return map[string][]byte{
		"m/data.pkl": stateDict(func(p *pickler) {
			p.str("fc.weight").tensor("FloatStorage", "0", 6, 0, []int{2, 3}, []int{1, 2}) // transposed
			p.str("fc.bias").tensor("FloatStorage", "1", 2, 0, []int{2}, []int{1})
		}),
		"m/byteorder": []byte("little"),
		"m/data/0":    floats(1, 2, 3, 4, 5, 6),
		"m/data/1":    floats(7, 8),
	}
}

func read(b []byte) ([]safetensors.Tensor, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func TestRead(t *testing.T) {
	got, err := read(archiveOf(t, linear()))
	if err != nil {
		t.Fatal(err)
	}
	want := []safetensors.Tensor{
		{Name: "fc.weight", Shape: []int{2, 3}, Data: []float32{1, 3, 5, 2, 4, 6}},
		{Name: "fc.bias", Shape: []int{2}, Data: []float32{7, 8}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestMalicious checks that whatever could run code, and every opcode beyond
// those of tensors, is refused by name.
func TestMalicious(t *testing.T) {
	for _, tc := range []struct{ name, pickle, want string }{
		{"os.system", "\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "posix.system"},
		{"builtins.eval", "\x80\x02cbuiltins\neval\n.", "builtins.eval"},
		{"torch.load", "\x80\x02ctorch.serialization\nload\n.", "torch.serialization.load"},
		{"look-alike", "\x80\x02ctorch._utils\n_rebuild_tensor_v2x\n.", "_rebuild_tensor_v2x"},
		{"inst", "\x80\x02(iposix\nsystem\n.", "opcode 0x69"},
		{"obj", "\x80\x02(o.", "opcode 0x6f"},
		{"newobj", "\x80\x02)\x81.", "opcode 0x81"},
		{"stack_global", "\x80\x02\x93.", "opcode 0x93"},
		{"ext1", "\x80\x02\x82\x01.", "opcode 0x82"},
		{"persid", "\x80\x02Pevil\n.", "opcode 0x50"},
		{"protocol 4", "\x80\x04}.", "protocol 4"},
		{"call of a dict", "\x80\x02})R.", "call of something"},
		{"call with arguments", "\x80\x02ccollections\nOrderedDict\n]\x85R.", "call of something"},
		{"attributes of a tuple", "\x80\x02)}b.", "attributes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := read(archiveOf(t, map[string][]byte{"m/data.pkl": []byte(tc.pickle)}))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want error with %q", err, tc.want)
			}
			var g *GlobalError
			if strings.Contains(tc.pickle, "\x02c") && strings.Contains(tc.want, ".") && !errors.As(err, &g) {
				t.Errorf("%v is no GlobalError", err)
			}
		})
	}
}

// laughs is a dict with a key that is a pair of twice the same pair, and so on
// to the given depth: short to write, never printed to its end.
func laughs(depth int) []byte {
	return stateDict(func(p *pickler) {
		p.str("ha")
		for range depth {
			p.op("q\x01h\x01\x86") // remember it, take it once more, make a pair of the two
		}
		p.tensor("FloatStorage", "0", 6, 0, []int{6}, []int{1})
	})
}

func TestCorrupt(t *testing.T) {
	one := func(shape, strides []int, offset, count int) func(map[string][]byte) {
		return func(m map[string][]byte) {
			m["m/data.pkl"] = stateDict(func(p *pickler) {
				p.str("w").tensor("FloatStorage", "0", count, offset, shape, strides)
			})
		}
	}
	for _, tc := range []struct {
		name   string
		change func(map[string][]byte)
	}{
		{"no pickle", func(m map[string][]byte) { delete(m, "m/data.pkl") }},
		{"short pickle", func(m map[string][]byte) { m["m/data.pkl"] = m["m/data.pkl"][:40] }},
		{"empty pickle", func(m map[string][]byte) { m["m/data.pkl"] = nil }},
		{"no storage", func(m map[string][]byte) { delete(m, "m/data/0") }},
		{"short storage", func(m map[string][]byte) { m["m/data/0"] = floats(1) }},
		{"big endian", func(m map[string][]byte) { m["m/byteorder"] = []byte("big") }},
		{"beyond the storage", one([]int{7}, []int{1}, 0, 6)},
		{"offset beyond the storage", one([]int{2}, []int{1}, 5, 6)},
		{"huge by stride 0", one([]int{1 << 27, 1 << 27}, []int{0, 0}, 0, 6)},
		{"other rank of strides", one([]int{2, 3}, []int{1}, 0, 6)},
		{"not a dict", func(m map[string][]byte) { m["m/data.pkl"] = []byte("\x80\x02].") }},
		{"name twice", func(m map[string][]byte) {
			m["m/data.pkl"] = stateDict(func(p *pickler) {
				p.str("w").tensor("FloatStorage", "0", 6, 0, []int{6}, []int{1}).str("w").tensor("FloatStorage", "0", 6, 0, []int{6}, []int{1})
			})
		}},
		{"name of two to the 40 parts", func(m map[string][]byte) { m["m/data.pkl"] = laughs(40) }},
		{"value is no tensor", func(m map[string][]byte) {
			m["m/data.pkl"] = stateDict(func(p *pickler) { p.str("epoch").int(3) })
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := linear()
			tc.change(m)
			if got, err := read(archiveOf(t, m)); err == nil {
				t.Errorf("read %v", got)
			}
		})
	}
	if _, err := read([]byte("PK\x03\x04 and no more")); err == nil {
		t.Error("half a zip was read")
	}
}

func FuzzUnpickle(f *testing.F) {
	f.Add(linear()["m/data.pkl"])
	f.Add([]byte("\x80\x02cposix\nsystem\n."))
	f.Add(laughs(40))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := linear()
		b["m/data.pkl"] = in
		_, _ = read(archiveOf(t, b)) // must neither panic nor hang
	})
}
