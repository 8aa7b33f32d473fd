// Package safetensors writes and reads the safetensors format: eight bytes of
// header length, a JSON header, then the tensors' bytes, little-endian.
//
// The reader trusts nothing: the header's length is bounded, and every tensor
// must lie within the file, be as long as its shape says, and touch its
// neighbours without overlap or gap. The package knows nothing of networks.
package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/x448/float16"
)

// Bounds on a header. The format's own limit is 100 MB; networks of this
// runtime need less than a kilobyte a layer.
const (
	maxHeader  = 16 << 20
	maxTensors = 1 << 16
	maxDims    = 8
)

// File is the content of a safetensors file.
type File struct {
	Metadata map[string]string
	Tensors  []Tensor // in the order of their bytes
}

// Tensor is one named array of float32, row-major.
type Tensor struct {
	Name  string
	Shape []int
	Data  []float32
}

type entry struct {
	DType   string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Offsets []int64 `json:"data_offsets"`
}

// Encode returns f as the bytes of a file, tensors as F32 in the order given,
// metadata sorted by key: the same content gives the same bytes.
func Encode(f *File) ([]byte, error) {
	var h bytes.Buffer
	h.WriteByte('{')
	if len(f.Metadata) > 0 {
		meta, err := json.Marshal(f.Metadata) // sorts the keys
		if err != nil {
			return nil, fmt.Errorf("encode metadata: %w", err)
		}
		fmt.Fprintf(&h, `"__metadata__":%s`, meta)
	}
	size := int64(0)
	for i, t := range f.Tensors {
		if i > 0 || len(f.Metadata) > 0 {
			h.WriteByte(',')
		}
		e := entry{DType: "F32", Offsets: []int64{size, size + 4*int64(len(t.Data))}}
		for _, d := range t.Shape {
			e.Shape = append(e.Shape, int64(d))
		}
		if n, err := elements(e.Shape); err != nil || n != int64(len(t.Data)) {
			return nil, fmt.Errorf("tensor %q of shape %v holds %d values", t.Name, t.Shape, len(t.Data))
		}
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, fmt.Errorf("encode name: %w", err)
		}
		body, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("encode tensor %q: %w", t.Name, err)
		}
		fmt.Fprintf(&h, "%s:%s", name, body)
		size = e.Offsets[1]
	}
	h.WriteByte('}')
	for h.Len()%8 != 0 {
		h.WriteByte(' ') // aligns the data, as the format asks
	}
	out := binary.LittleEndian.AppendUint64(make([]byte, 0, int64(8+h.Len())+size), uint64(h.Len()))
	out = append(out, h.Bytes()...)
	for _, t := range f.Tensors {
		for _, v := range t.Data {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
	}
	return out, nil
}

// Read reads a file of the given size. F32, F64, F16 and BF16 tensors become
// float32; a tensor of another type is an error that names it.
func Read(r io.ReaderAt, size int64) (*File, error) {
	var length [8]byte
	if size < 8 {
		return nil, fmt.Errorf("corrupt safetensors file: %d bytes are too few for a header", size)
	}
	if _, err := r.ReadAt(length[:], 0); err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	n := binary.LittleEndian.Uint64(length[:])
	if n > maxHeader || int64(n) > size-8 {
		return nil, fmt.Errorf("corrupt safetensors file: header of %d bytes in a file of %d (limit %d)", n, size, maxHeader)
	}
	head := make([]byte, n)
	if _, err := r.ReadAt(head, 8); err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	h, err := parseHeader(head, size-8-int64(n))
	if err != nil {
		return nil, fmt.Errorf("corrupt safetensors file: %w", err)
	}
	f := &File{Metadata: h.metadata}
	for _, e := range h.entries {
		t, err := readTensor(r, 8+int64(n), e)
		if err != nil {
			return nil, fmt.Errorf("safetensors: tensor %q: %w", e.name, err)
		}
		f.Tensors = append(f.Tensors, t)
	}
	return f, nil
}

type header struct {
	metadata map[string]string
	entries  []namedEntry
}

type namedEntry struct {
	name string
	entry
}

// parseHeader decodes and checks a header; data is the number of bytes behind
// it. encoding/json takes the last of equal keys in silence, and the format
// forbids equal keys, so the outer object is walked token by token.
func parseHeader(head []byte, data int64) (*header, error) {
	if len(head) == 0 || head[0] != '{' {
		return nil, errors.New("the header does not begin with {")
	}
	h := &header{}
	seen := map[string]bool{}
	dec := json.NewDecoder(bytes.NewReader(head))
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		name, ok := tok.(string)
		if !ok || seen[name] {
			return nil, fmt.Errorf("header: name %.60q appears twice", fmt.Sprint(tok))
		}
		seen[name] = true
		if name == "__metadata__" {
			if err := dec.Decode(&h.metadata); err != nil {
				return nil, fmt.Errorf("header: metadata: %w", err)
			}
			continue
		}
		e := namedEntry{name: name}
		if err := dec.Decode(&e.entry); err != nil {
			return nil, fmt.Errorf("header: tensor %.60q: %w", name, err)
		}
		if h.entries = append(h.entries, e); len(h.entries) > maxTensors {
			return nil, fmt.Errorf("header: more than %d tensors", maxTensors)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if rest := head[dec.InputOffset():]; len(bytes.Trim(rest, " \t\r\n")) > 0 {
		return nil, errors.New("header: more than one JSON value")
	}
	return h, h.checkLayout(data)
}

// checkLayout sorts the entries by offset and requires them to cover exactly
// data bytes, each as long as its shape and type say.
func (h *header) checkLayout(data int64) error {
	for _, e := range h.entries {
		width, ok := widths[e.DType]
		if !ok {
			return fmt.Errorf("tensor %.60q has unknown type %.20q", e.name, e.DType)
		}
		n, err := elements(e.Shape)
		if err != nil {
			return fmt.Errorf("tensor %.60q: %w", e.name, err)
		}
		if len(e.Offsets) != 2 || e.Offsets[0] < 0 || e.Offsets[1] < e.Offsets[0] || e.Offsets[1] > data {
			return fmt.Errorf("tensor %.60q: offsets %v lie outside the %d bytes of data", e.name, e.Offsets, data)
		}
		if got := e.Offsets[1] - e.Offsets[0]; n > data || got != n*width {
			return fmt.Errorf("tensor %.60q: %s of shape %v is not %d bytes", e.name, e.DType, e.Shape, got)
		}
	}
	slices.SortFunc(h.entries, func(a, b namedEntry) int {
		// Empty tensors share an offset with their neighbour; the end and the
		// name settle the order.
		for i := range 2 {
			if c := a.Offsets[i] - b.Offsets[i]; c != 0 {
				return int(max(-1, min(1, c)))
			}
		}
		return strings.Compare(a.name, b.name)
	})
	end := int64(0)
	for _, e := range h.entries {
		if e.Offsets[0] != end {
			return fmt.Errorf("tensor %.60q begins at %d, want %d: tensors overlap or leave a gap", e.name, e.Offsets[0], end)
		}
		end = e.Offsets[1]
	}
	if end != data {
		return fmt.Errorf("the tensors end at %d, the data at %d", end, data)
	}
	return nil
}

var widths = map[string]int64{
	"F64": 8, "F32": 4, "F16": 2, "BF16": 2,
	"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}

func elements(shape []int64) (int64, error) {
	if len(shape) > maxDims {
		return 0, fmt.Errorf("%d dimensions, more than %d", len(shape), maxDims)
	}
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > 1<<31 {
			return 0, fmt.Errorf("dimension %d", d)
		}
		if n *= d; n > 1<<32 {
			return 0, fmt.Errorf("shape %v is too large", shape)
		}
	}
	return n, nil
}

func readTensor(r io.ReaderAt, base int64, e namedEntry) (Tensor, error) {
	t := Tensor{Name: e.name}
	for _, d := range e.Shape {
		t.Shape = append(t.Shape, int(d))
	}
	raw := make([]byte, e.Offsets[1]-e.Offsets[0]) // within the file, so bounded by it
	if _, err := r.ReadAt(raw, base+e.Offsets[0]); err != nil {
		return t, err
	}
	var err error
	t.Data, err = Floats(e.DType, raw)
	return t, err
}

// Floats decodes little-endian values of type F32, F64, F16 or BF16.
func Floats(dtype string, raw []byte) ([]float32, error) {
	le := binary.LittleEndian
	var out []float32
	switch dtype {
	case "F32":
		out = make([]float32, len(raw)/4)
		for i := range out {
			out[i] = math.Float32frombits(le.Uint32(raw[4*i:]))
		}
	case "F64":
		out = make([]float32, len(raw)/8)
		for i := range out {
			out[i] = float32(math.Float64frombits(le.Uint64(raw[8*i:])))
		}
	case "F16":
		out = make([]float32, len(raw)/2)
		for i := range out {
			out[i] = float16.Frombits(le.Uint16(raw[2*i:])).Float32()
		}
	case "BF16":
		out = make([]float32, len(raw)/2)
		for i := range out {
			out[i] = math.Float32frombits(uint32(le.Uint16(raw[2*i:])) << 16)
		}
	default:
		return nil, fmt.Errorf("unsupported type %s, want F32, F64, F16 or BF16", dtype)
	}
	return out, nil
}
