package dataset

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ferryos/ferry/runtimes/mlp/atomicfile"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// Magic numbers of IDX files of unsigned bytes with one and three dimensions.
const (
	magicLabels = 0x00000801
	magicImages = 0x00000803
	maxSide     = 4096 // pixels
)

// LoadIDX reads the images and labels of one MNIST set, "train" or "t10k",
// from dir; each file may be plain or gzipped with .gz appended to its name.
func LoadIDX(dir, set string) (*Set, error) {
	imagePath, err := idxPath(dir, idxName(set, true))
	if err != nil {
		return nil, err
	}
	labelPath, err := idxPath(dir, idxName(set, false))
	if err != nil {
		return nil, err
	}
	var s *Set
	err = withFile(imagePath, func(r io.Reader) error {
		s, err = ReadImages(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = withFile(labelPath, func(r io.Reader) error {
		s.Labels, err = ReadLabels(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	if n := len(s.bytes) / s.Features; n != len(s.Labels) {
		return nil, hint.Errorf("Use the two files of one data set: the n-th label belongs to the n-th image.",
			"%s holds %d images but %s holds %d labels", imagePath, n, labelPath, len(s.Labels))
	}
	return s, nil
}

func idxPath(dir, name string) (string, error) {
	for _, n := range []string{name, name + ".gz"} {
		if p := find(dir, n); p != "" {
			return p, nil
		}
	}
	return "", hint.Errorf("Put MNIST's IDX files (or train.csv) there, or make a data set with 'mlp data generate --out "+dir+"'.",
		"data %s: no %s and no %s.gz", dir, name, name)
}

// withFile opens path, unpacks it when its content is gzip, whatever its name,
// and calls read; an error from read is returned with the file's name.
func withFile(path string, read func(io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	defer f.Close()
	var r io.Reader = bufio.NewReaderSize(f, 1<<16)
	if head, _ := r.(*bufio.Reader).Peek(2); bytes.Equal(head, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return inFile(path, err)
		}
		r = z
	}
	if err := read(r); err != nil {
		return inFile(path, err)
	}
	return nil
}

// ReadImages reads an IDX file of images, one unsigned byte a pixel. The set
// it returns has no labels yet.
func ReadImages(r io.Reader) (*Set, error) {
	dims, err := idxHeader(r, magicImages, 3)
	if err != nil {
		return nil, err
	}
	n, h, w := dims[0], dims[1], dims[2]
	if h < 1 || h > maxSide || w < 1 || w > maxSide {
		return nil, fmt.Errorf("corrupt IDX file: header says images of %d x %d pixels", h, w)
	}
	if n == 0 {
		return nil, errors.New("IDX file holds no images")
	}
	pixels, err := idxBody(r, n*h*w)
	if err != nil {
		return nil, err
	}
	return FromBytes(pixels, int(h), int(w), nil), nil
}

// ReadLabels reads an IDX file of labels, one unsigned byte each.
func ReadLabels(r io.Reader) ([]int, error) {
	dims, err := idxHeader(r, magicLabels, 1)
	if err != nil {
		return nil, err
	}
	body, err := idxBody(r, dims[0])
	if err != nil {
		return nil, err
	}
	labels := make([]int, len(body))
	for i, b := range body {
		labels[i] = int(b)
	}
	return labels, nil
}

func idxHeader(r io.Reader, magic uint32, dims int) ([]int64, error) {
	head := make([]byte, 4+4*dims)
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return nil, fmt.Errorf("corrupt IDX file: no header: %w", err)
	}
	if got := binary.BigEndian.Uint32(head); got != magic {
		return nil, fmt.Errorf("corrupt IDX file: it begins with 0x%08x, want 0x%08x", got, magic)
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return nil, fmt.Errorf("corrupt IDX file: the header is cut short: %w", err)
	}
	out := make([]int64, dims)
	for i := range out {
		out[i] = int64(binary.BigEndian.Uint32(head[4+4*i:]))
	}
	return out, nil
}

// idxBody reads exactly size bytes to the end of r. The buffer grows with what
// arrives, so that a header that lies costs no more than the file is long.
func idxBody(r io.Reader, size int64) ([]byte, error) {
	if size > MaxBytes {
		return nil, fmt.Errorf("corrupt IDX file: header says %d bytes, more than the limit of %d", size, int64(MaxBytes))
	}
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(r, size+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("corrupt IDX file after %d of %d bytes: %w", n, size, err)
	case n < size:
		return nil, fmt.Errorf("corrupt IDX file: header says %d bytes, the file ends after %d", size, n)
	case n > size:
		return nil, fmt.Errorf("corrupt IDX file: header says %d bytes, the file holds more", size)
	}
	return buf.Bytes(), nil
}

// WriteIDX writes a set of images as MNIST's two gzipped files into dir, each
// whole or not at all, in place of plain ones.
func WriteIDX(dir, set string, s *Set) error {
	height := s.Features / s.Width
	images := binary.BigEndian.AppendUint32(nil, magicImages)
	for _, v := range []int{s.Len(), height, s.Width} {
		images = binary.BigEndian.AppendUint32(images, uint32(v))
	}
	images = append(images, s.bytes...)
	labels := binary.BigEndian.AppendUint32(nil, magicLabels)
	labels = binary.BigEndian.AppendUint32(labels, uint32(s.Len()))
	for _, l := range s.Labels {
		labels = append(labels, byte(l))
	}
	for name, b := range map[string][]byte{idxName(set, true): images, idxName(set, false): labels} {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(b); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		if err := z.Close(); err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		path := filepath.Join(dir, name)
		if err := atomicfile.Write(path+".gz", packed.Bytes()); err != nil {
			return err
		}
		// A plain file of an older set would be read instead.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replace %s: %w", path, err)
		}
	}
	return nil
}
