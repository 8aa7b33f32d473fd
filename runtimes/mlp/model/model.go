// Package model stores a trained network as a folder and reads one back: a
// safetensors file whose metadata names the activation, or a PyTorch
// state_dict of linear layers.
//
// It is where a file meets the runtime: whatever does not describe a network
// this runtime can run is refused here, before anything listens. Any package
// of the mlp runtime but nn and the file formats may import it.
package model

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/ferryos/ferry/runtimes/mlp/atomicfile"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/pth"
	"github.com/ferryos/ferry/runtimes/mlp/safetensors"
)

// Names of the files in a model's folder.
const (
	WeightsFile = "model.safetensors"
	MetricsFile = "metrics.json"
)

const nextStep = "Serve a model written by 'mlp train', or a PyTorch state_dict of linear layers (torch.save(model.state_dict(), ...))."

// Metrics is what a training run says about its model; it is the content of
// MetricsFile.
type Metrics struct {
	Accuracy     float64 `json:"accuracy"` // on held-out samples, 0 to 1
	Loss         float64 `json:"loss"`     // mean cross-entropy on held-out samples, nats
	Epochs       int     `json:"epochs"`
	Seed         uint64  `json:"seed"`
	Layers       []int   `json:"layers"` // widths, input first
	Activation   string  `json:"activation"`
	LearningRate float32 `json:"learningRate"`
	Momentum     float32 `json:"momentum"`
	BatchSize    int     `json:"batchSize"`
	TrainSamples int     `json:"trainSamples"`
	TestSamples  int     `json:"testSamples"`
	TrainSeconds float64 `json:"trainSeconds"`
}

// Save writes net and its metrics into dir, which it makes, each file whole or
// not at all; the metrics come last, so a folder that has them is complete.
// The weights' bytes depend on the network alone.
func Save(dir string, net *nn.Network, m Metrics) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return hint.Errorf("Name a writable folder with --out.", "save model: %w", err)
	}
	data, err := safetensors.Encode(encode(net))
	if err != nil {
		return fmt.Errorf("save model: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(dir, WeightsFile), data); err != nil {
		return err
	}
	report, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode metrics: %w", err)
	}
	return atomicfile.Write(filepath.Join(dir, MetricsFile), append(report, '\n'))
}

// encode names tensors as PyTorch would, layers.N.weight of shape out×in, so
// that other tools read the file too.
func encode(net *nn.Network) *safetensors.File {
	f := &safetensors.File{Metadata: map[string]string{"activation": string(net.Activation), "format": "pt"}}
	for i, l := range net.Layers {
		in, out := l.In(), l.Out()
		w := make([]float32, in*out)
		for r := range in {
			for c := range out {
				w[c*in+r] = l.W.Data[r*out+c]
			}
		}
		name := "layers." + strconv.Itoa(i)
		f.Tensors = append(f.Tensors,
			safetensors.Tensor{Name: name + ".weight", Shape: []int{out, in}, Data: w},
			safetensors.Tensor{Name: name + ".bias", Shape: []int{out}, Data: l.B})
	}
	return f
}

// LoadMetrics reads the metrics in a model's folder.
func LoadMetrics(dir string) (Metrics, error) {
	var m Metrics
	b, err := os.ReadFile(filepath.Join(dir, MetricsFile))
	if err != nil {
		return m, hint.Errorf("Train a model first: 'mlp train --out DIR'.", "read metrics: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, hint.Errorf("Train the model again.", "read metrics of %s: %w", dir, err)
	}
	return m, nil
}

// Load reads a network from a safetensors or .pth file, told apart by content,
// or from a folder that holds one such file. act is used where the file does
// not name an activation, as a .pth file never does. Every error carries a
// hint.
func Load(path string, act nn.Activation) (*nn.Network, error) {
	file, err := locate(path)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("load model: %w", err), nextStep)
	}
	net, err := loadFile(file, act)
	if err != nil {
		return nil, hint.Wrap(fmt.Errorf("load model %s: %w", file, err), nextStep)
	}
	return net, nil
}

// locate returns the one file of weights at or below path.
func locate(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return path, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".safetensors", ".pth", ".pt":
			found = append(found, e.Name())
		}
	}
	switch {
	case slices.Contains(found, WeightsFile):
		return filepath.Join(path, WeightsFile), nil
	case len(found) == 1:
		return filepath.Join(path, found[0]), nil
	case len(found) > 1:
		return "", fmt.Errorf("%s holds %d files of weights (%s)", path, len(found), strings.Join(found, ", "))
	}
	return "", fmt.Errorf("%s holds no .safetensors, .pth or .pt file", path)
}

func loadFile(path string, act nn.Activation) (*nn.Network, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, fmt.Errorf("file of %d bytes is no model: %w", info.Size(), err)
	}
	var tensors []safetensors.Tensor
	if pth.Is(head) {
		if tensors, err = pth.Read(f, info.Size()); err != nil {
			return nil, err
		}
	} else {
		s, err := safetensors.Read(f, info.Size())
		if err != nil {
			return nil, err
		}
		if name := s.Metadata["activation"]; name != "" {
			if act, err = nn.ParseActivation(name); err != nil {
				return nil, err
			}
		}
		tensors = s.Tensors
	}
	return assemble(tensors, act)
}

// layerName splits fc1.weight or layers.0.bias into prefix and kind.
var layerName = regexp.MustCompile(`^(.+)\.(weight|bias)$`)

type pair struct {
	prefix       string
	weight, bias *safetensors.Tensor
}

// assemble makes a network of pairs of weight and bias, chained in the natural
// order of their names: layers.2 before layers.10.
func assemble(tensors []safetensors.Tensor, act nn.Activation) (*nn.Network, error) {
	layers, err := pairUp(tensors)
	if err != nil {
		return nil, err
	}
	var sizes []int
	for i, l := range layers {
		shape := l.weight.Shape
		if i == 0 {
			sizes = append(sizes, shape[1])
		}
		if shape[1] != sizes[i] {
			return nil, fmt.Errorf("model does not fit this runtime: %s.weight takes %d values, the layer before gives %d", l.prefix, shape[1], sizes[i])
		}
		sizes = append(sizes, shape[0])
	}
	net, err := nn.Zero(sizes, act)
	if err != nil {
		return nil, fmt.Errorf("model does not fit this runtime: %w", err)
	}
	for i, l := range layers {
		in, out := sizes[i], sizes[i+1]
		for c := range out {
			for r := range in {
				net.Layers[i].W.Data[r*out+c] = l.weight.Data[c*in+r]
			}
		}
		copy(net.Layers[i].B, l.bias.Data)
	}
	return net, net.CheckFinite()
}

func pairUp(tensors []safetensors.Tensor) ([]pair, error) {
	byName := map[string]*pair{}
	for i := range tensors {
		t := &tensors[i]
		m := layerName.FindStringSubmatch(t.Name)
		if m == nil {
			return nil, fmt.Errorf("model does not fit this runtime: tensor %.60q is no weight or bias of a linear layer", t.Name)
		}
		p := byName[m[1]]
		if p == nil {
			p = &pair{prefix: m[1]}
			byName[m[1]] = p
		}
		if m[2] == "weight" {
			p.weight = t
		} else {
			p.bias = t
		}
	}
	var layers []pair
	for _, p := range byName {
		switch {
		case p.weight == nil || p.bias == nil:
			return nil, fmt.Errorf("model does not fit this runtime: layer %.60q lacks its weight or bias", p.prefix)
		case len(p.weight.Shape) != 2 || len(p.bias.Shape) != 1 || p.bias.Shape[0] != p.weight.Shape[0]:
			return nil, fmt.Errorf("model does not fit this runtime: %.60s.weight has shape %v and its bias %v, want [out in] and [out]", p.prefix, p.weight.Shape, p.bias.Shape)
		}
		layers = append(layers, *p)
	}
	if len(layers) == 0 {
		return nil, fmt.Errorf("model does not fit this runtime: it holds no tensors")
	}
	slices.SortFunc(layers, func(a, b pair) int { return compareNatural(a.prefix, b.prefix) })
	return layers, nil
}

var digits = regexp.MustCompile(`[0-9]+|[^0-9]+`)

// compareNatural orders names with their numbers taken as numbers.
func compareNatural(a, b string) int {
	x, y := digits.FindAllString(a, -1), digits.FindAllString(b, -1)
	for i := range min(len(x), len(y)) {
		n, err1 := strconv.ParseUint(x[i], 10, 64)
		m, err2 := strconv.ParseUint(y[i], 10, 64)
		if err1 == nil && err2 == nil && n != m {
			if n < m {
				return -1
			}
			return 1
		}
		if c := strings.Compare(x[i], y[i]); c != 0 && (err1 != nil || err2 != nil) {
			return c
		}
	}
	if c := len(x) - len(y); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
