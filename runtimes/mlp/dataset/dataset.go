// Package dataset reads labelled samples for the mlp runtime: MNIST's IDX
// files, plain or gzipped, and CSV.
//
// Every size in a file is checked before it is believed: a wrong file gives an
// error that names the file and the next step, and memory grows only with what
// is really there. The package knows nothing of networks.
package dataset

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// MaxBytes bounds the samples of one set, one byte a value for images and four
// for CSV: 30 times MNIST.
const MaxBytes = 2 << 30

// Set is a list of samples of equal width, each with a class. It is read-only.
type Set struct {
	Features int     // values in a sample
	Width    int     // of an image in pixels; 0 when samples are not images
	Labels   []int   // class of each sample, from 0
	Scale    float32 // what raw values are divided by: 255 for images

	bytes  []byte    // raw values of images; nil when values is set
	values []float32 // raw values of CSV
}

// FromBytes returns a set of images with one byte a pixel, row-major, height
// and width as given. labels must be as many as images.
func FromBytes(pixels []byte, height, width int, labels []int) *Set {
	return &Set{Features: height * width, Width: width, Labels: labels, Scale: 255, bytes: pixels}
}

// Len returns the number of samples.
func (s *Set) Len() int { return len(s.Labels) }

// Row writes the values of sample i, divided by Scale, into dst, which holds
// Features values.
func (s *Set) Row(i int, dst []float32) {
	if s.bytes != nil {
		for j, b := range s.bytes[i*s.Features : (i+1)*s.Features] {
			dst[j] = float32(b) / s.Scale
		}
		return
	}
	for j, v := range s.values[i*s.Features : (i+1)*s.Features] {
		dst[j] = v / s.Scale
	}
}

// Classes returns one more than the largest label.
func (s *Set) Classes() int {
	n := 0
	for _, l := range s.Labels {
		n = max(n, l+1)
	}
	return n
}

// pick returns the samples with the given indices.
func (s *Set) pick(idx []int) *Set {
	p := &Set{Features: s.Features, Width: s.Width, Scale: s.Scale}
	for _, i := range idx {
		p.Labels = append(p.Labels, s.Labels[i])
		if s.bytes != nil {
			p.bytes = append(p.bytes, s.bytes[i*s.Features:(i+1)*s.Features]...)
		} else {
			p.values = append(p.values, s.values[i*s.Features:(i+1)*s.Features]...)
		}
	}
	return p
}

// Data is what a training run reads.
type Data struct {
	Train, Test *Set
	HeldOut     bool // Test was taken from Train because the source had none
}

// Load reads path: a folder with MNIST's four IDX files or with train.csv and
// perhaps test.csv, or one CSV file. Where there is no test set, one sample in
// ten, chosen by seed, is held out of the training set.
func Load(path string, seed uint64, csv CSVOptions) (*Data, error) {
	d, err := load(path, csv)
	if err != nil {
		return nil, err
	}
	if d.Test == nil {
		if d.Train.Len() < 2 {
			return nil, hint.Errorf("Give it more samples, or a test set beside it.", "data %s: %d samples cannot be split into a training and a test set", path, d.Train.Len())
		}
		perm := rand.New(rand.NewPCG(seed, 0x7e57)).Perm(d.Train.Len())
		n := max(1, len(perm)/10)
		d.Test, d.Train, d.HeldOut = d.Train.pick(perm[:n]), d.Train.pick(perm[n:]), true
	}
	if d.Train.Features != d.Test.Features {
		return nil, hint.Errorf("Use a training and a test set that were made together.", "data %s: training samples have %d values, test samples %d", path, d.Train.Features, d.Test.Features)
	}
	return d, nil
}

func load(path string, csv CSVOptions) (*Data, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, hint.Errorf("Make a data set with 'mlp data generate --out DIR', or name a folder with MNIST's IDX files or a CSV file.", "data: %w", err)
	}
	if !info.IsDir() {
		train, err := loadCSV(path, csv)
		return &Data{Train: train}, err
	}
	if file := find(path, "train.csv"); file != "" {
		train, err := loadCSV(file, csv)
		if err != nil {
			return nil, err
		}
		d := &Data{Train: train}
		if file := find(path, "test.csv"); file != "" {
			d.Test, err = loadCSV(file, csv)
		}
		return d, err
	}
	train, err := LoadIDX(path, "train")
	if err != nil {
		return nil, err
	}
	d := &Data{Train: train}
	if find(path, idxName("t10k", true)) != "" || find(path, idxName("t10k", true)+".gz") != "" {
		d.Test, err = LoadIDX(path, "t10k")
	}
	return d, err
}

// LoadTest reads only the held-out samples of path, laid out as for Load.
func LoadTest(path string, seed uint64, csv CSVOptions) (*Set, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if find(path, idxName("t10k", true)) != "" || find(path, idxName("t10k", true)+".gz") != "" {
			return LoadIDX(path, "t10k")
		}
		if file := find(path, "test.csv"); file != "" {
			return loadCSV(file, csv)
		}
	}
	d, err := Load(path, seed, csv)
	if err != nil {
		return nil, err
	}
	return d.Test, nil
}

// find returns dir/name when it is there, else "".
func find(dir, name string) string {
	path := filepath.Join(dir, name)
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		return ""
	}
	return path
}

func idxName(set string, images bool) string {
	if images {
		return set + "-images-idx3-ubyte"
	}
	return set + "-labels-idx1-ubyte"
}

// inFile names the file in err and says what to do about a corrupt one.
func inFile(path string, err error) error {
	return hint.Wrap(fmt.Errorf("read %s: %w", path, err), "The file is damaged or of another kind: copy it again, or make a data set with 'mlp data generate --out DIR'.")
}
