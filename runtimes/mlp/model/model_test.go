package model

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/safetensors"
)

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	sizes := []int{4}
	for range 11 {
		sizes = append(sizes, 3) // layers.10 must follow layers.9
	}
	want, err := nn.New(append(sizes, 2), nn.Tanh, 7)
	if err != nil {
		t.Fatal(err)
	}
	m := Metrics{Accuracy: 0.5, Seed: 1<<64 - 1, Layers: sizes}
	if err := Save(dir, want, m); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, nn.ReLU)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	again, err := LoadMetrics(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, again); d != "" {
		t.Error(d)
	}
}

// TestDoesNotFit checks that a model that this runtime cannot run is refused
// with a message and the next step.
func TestDoesNotFit(t *testing.T) {
	tensor := func(name string, shape ...int) safetensors.Tensor {
		n := 1
		for _, d := range shape {
			n *= d
		}
		return safetensors.Tensor{Name: name, Shape: shape, Data: make([]float32, n)}
	}
	type list = []safetensors.Tensor
	for _, tc := range []struct {
		name    string
		tensors list
		want    string
	}{
		{"nothing", nil, "no tensors"},
		{"other names", list{tensor("conv.kernel", 2, 2)}, "conv.kernel"},
		{"no bias", list{tensor("fc.weight", 2, 2)}, "lacks"},
		{"convolution", list{tensor("c.weight", 2, 2, 3, 3), tensor("c.bias", 2)}, "want [out in]"},
		{"bias of other width", list{tensor("fc.weight", 2, 2), tensor("fc.bias", 3)}, "want [out in]"},
		{"layers do not chain", list{tensor("a.weight", 3, 2), tensor("a.bias", 3), tensor("b.weight", 2, 4), tensor("b.bias", 2)}, "takes 4 values"},
		{"empty layer", list{tensor("a.weight", 0, 2), tensor("a.bias", 0)}, "width 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := safetensors.Encode(&safetensors.File{Tensors: tc.tensors})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, WeightsFile), b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = Load(dir, nn.ReLU)
			if err == nil || !strings.Contains(err.Error(), tc.want) || hint.Of(err) == "" {
				t.Errorf("got %v (hint %q), want error with %q", err, hint.Of(err), tc.want)
			}
		})
	}
}

func TestNoModel(t *testing.T) {
	two := t.TempDir()
	for _, name := range []string{"a.pth", "b.safetensors"} {
		if err := os.WriteFile(filepath.Join(two, name), []byte("PK"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{t.TempDir(), "/no/such/model", two, filepath.Join(two, "a.pth"), filepath.Join(two, "b.safetensors")} {
		if _, err := Load(path, nn.ReLU); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %v has no hint", path, err)
		}
	}
}
