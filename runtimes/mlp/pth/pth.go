// Package pth reads the tensors of a PyTorch state_dict (.pth, .pt) as
// torch.save writes it: a zip archive with a pickle of protocol 2.
//
// A pickle is a program. This reader runs none of it: it knows the few opcodes
// and the seven names a state_dict needs, and refuses a file with anything
// else. It never writes, and knows nothing of networks.
package pth

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ferryos/ferry/runtimes/mlp/safetensors"
)

const (
	maxPickle = 16 << 20
	maxValues = 1 << 28 // of one tensor
)

// GlobalError says that a pickle names something other than tensors, which
// loading it with Python could run.
type GlobalError struct {
	Global string // module.name
}

func (e *GlobalError) Error() string {
	return fmt.Sprintf("refused: the pickle names %.100q, which is not part of a tensor", e.Global)
}

// Is reports whether the first bytes of a file are those of a zip archive.
func Is(head []byte) bool { return len(head) >= 4 && string(head[:4]) == "PK\x03\x04" }

// Read returns the tensors of the state_dict in r, in its order, as float32.
// A *GlobalError is in the chain of the error where the file holds more.
func Read(r io.ReaderAt, size int64) ([]safetensors.Tensor, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("corrupt .pth file: %w", err)
	}
	a := &archive{files: map[string]*zip.File{}, size: size, cache: map[string][]float32{}}
	for _, f := range z.File {
		if a.files[f.Name] != nil {
			return nil, fmt.Errorf("corrupt .pth file: %.60q is in the archive twice", f.Name)
		}
		a.files[f.Name] = f
		if prefix, ok := strings.CutSuffix(f.Name, "/data.pkl"); ok && !strings.Contains(prefix, "/") {
			a.prefix = prefix
		}
	}
	if a.prefix == "" {
		return nil, errors.New("not a .pth file: the archive holds no data.pkl")
	}
	if f := a.files[a.prefix+"/byteorder"]; f != nil {
		order, err := a.read(f, 16)
		if err != nil {
			return nil, err
		}
		if string(order) != "little" {
			return nil, fmt.Errorf("unsupported .pth file: byte order %q, want little", order)
		}
	}
	pickle, err := a.read(a.files[a.prefix+"/data.pkl"], maxPickle)
	if err != nil {
		return nil, err
	}
	v, err := unpickle(pickle)
	if err != nil {
		return nil, fmt.Errorf(".pth file: %w", err)
	}
	d, ok := v.(*dict)
	if !ok {
		return nil, errors.New(".pth file: it does not hold a state_dict, a dict of tensors")
	}
	return a.tensors(d)
}

type archive struct {
	files  map[string]*zip.File
	prefix string
	size   int64
	cache  map[string][]float32 // storages already read; tensors may share one
}

func (a *archive) tensors(d *dict) ([]safetensors.Tensor, error) {
	var out []safetensors.Tensor
	seen := map[string]bool{}
	total := int64(0)
	for i, k := range d.keys {
		name, ok := k.(string)
		if !ok { // its type alone: a few tuples in each other can be long to print
			return nil, fmt.Errorf(".pth file: a key is a %T, no name", k)
		}
		if seen[name] {
			return nil, fmt.Errorf(".pth file: key %.60q appears twice", name)
		}
		seen[name] = true
		v, ok := d.values[i].(*view)
		if !ok {
			return nil, fmt.Errorf(".pth file: %.60q is not a tensor; save model.state_dict() itself", name)
		}
		t, err := a.tensor(name, v, &total)
		if err != nil {
			return nil, fmt.Errorf(".pth file: tensor %.60q: %w", name, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// tensor copies a view's elements into row-major order. total counts the
// elements of all tensors: views with stride 0 may be larger than the file.
func (a *archive) tensor(name string, v *view, total *int64) (safetensors.Tensor, error) {
	t := safetensors.Tensor{Name: name}
	if len(v.shape) > 4 {
		return t, fmt.Errorf("%d dimensions, more than 4", len(v.shape))
	}
	count, last := int64(1), v.offset
	for i, n := range v.shape {
		if n > maxValues || v.strides[i] > maxValues {
			return t, fmt.Errorf("shape %v with strides %v is too large", v.shape, v.strides)
		}
		count *= n
		last += max(n-1, 0) * v.strides[i]
		if count > maxValues || last > a.size {
			return t, fmt.Errorf("shape %v with strides %v is too large", v.shape, v.strides)
		}
		t.Shape = append(t.Shape, int(n))
	}
	if *total += count; *total > maxValues {
		return t, fmt.Errorf("the tensors hold more than %d values", maxValues)
	}
	data, err := a.storage(v.storage)
	if err != nil {
		return t, err
	}
	if count > 0 && last >= int64(len(data)) {
		return t, fmt.Errorf("shape %v with strides %v from %d reaches beyond its storage of %d values", v.shape, v.strides, v.offset, len(data))
	}
	t.Data = make([]float32, 0, count)
	if count == 0 {
		return t, nil
	}
	index := make([]int64, len(v.shape))
	for {
		at := v.offset
		for i, x := range index {
			at += x * v.strides[i]
		}
		t.Data = append(t.Data, data[at])
		i := len(index) - 1
		for ; i >= 0; i-- {
			if index[i]++; index[i] < v.shape[i] {
				break
			}
			index[i] = 0
		}
		if i < 0 {
			return t, nil
		}
	}
}

func (a *archive) storage(s *storage) ([]float32, error) {
	if data, ok := a.cache[s.dtype+s.key]; ok {
		return data, nil
	}
	f := a.files[a.prefix+"/data/"+s.key]
	if f == nil {
		return nil, fmt.Errorf("the archive holds no storage %.40q", s.key)
	}
	raw, err := a.read(f, a.size)
	if err != nil {
		return nil, err
	}
	data, err := safetensors.Floats(s.dtype, raw)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != s.count {
		return nil, fmt.Errorf("storage %.40q holds %d values, want %d", s.key, len(data), s.count)
	}
	a.cache[s.dtype+s.key] = data
	return data, nil
}

// read returns the content of f, which must be stored, as torch.save does:
// a compressed one could grow without bound.
func (a *archive) read(f *zip.File, limit int64) ([]byte, error) {
	if f.Method != zip.Store {
		return nil, fmt.Errorf("unsupported .pth file: %.60q is compressed", f.Name)
	}
	if f.UncompressedSize64 > uint64(min(limit, a.size)) {
		return nil, fmt.Errorf("corrupt .pth file: %.60q says it holds %d bytes", f.Name, f.UncompressedSize64)
	}
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("corrupt .pth file: %.60q: %w", f.Name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1)) // to the end, where the checksum is compared
	if err != nil {
		return nil, fmt.Errorf("corrupt .pth file: %.60q: %w", f.Name, err)
	}
	return b, nil
}
