// Package nn is the feed-forward network f(x;θ) of the mlp runtime: layers
// a(l) = g(W(l)·a(l-1) + b(l)), a softmax over the last, its cross-entropy,
// backpropagation and stochastic gradient descent.
//
// Matrices are float32 and multiplied by gonum's BLAS. The package reads no
// files and prints nothing; any package of the runtime may import it.
package nn

import (
	"fmt"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/blas/blas32"
)

// Bounds on a network, far above what the runtime is for; they keep a wrong
// number in a file or flag from asking for all memory.
const (
	maxLayers = 64
	maxWidth  = 1 << 20
	maxParams = 1 << 28 // 1 GiB of float32
)

// Layer is one affine map. W is In×Out, row-major: the transpose of the usual
// W(l), so that a batch, one sample a row, is multiplied from the left and
// BLAS can skip the zeros of sparse inputs such as images of digits.
type Layer struct {
	W blas32.General // In×Out
	B []float32      // Out
}

// In returns the layer's number of inputs.
func (l Layer) In() int { return l.W.Rows }

// Out returns the layer's number of outputs.
func (l Layer) Out() int { return l.W.Cols }

// Network is a chain of layers. Activation follows every layer but the last,
// whose outputs are the logits of a softmax. A Network is read-only for Infer,
// so any number of goroutines may infer with it at the same time.
type Network struct {
	Layers     []Layer
	Activation Activation
}

// New returns a network with the given widths, input first, and weights drawn
// from seed: He's scale for ReLU, Glorot's for the others, zero biases.
func New(sizes []int, act Activation, seed uint64) (*Network, error) {
	n, err := Zero(sizes, act)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(seed, 0x6e6e)) // second word: keeps this stream apart from other users of the seed
	for _, l := range n.Layers {
		scale := math.Sqrt(2 / float64(l.In()+l.Out()))
		if act == ReLU {
			scale = math.Sqrt(2 / float64(l.In()))
		}
		for i := range l.W.Data {
			l.W.Data[i] = float32(rng.NormFloat64() * scale)
		}
	}
	return n, nil
}

// Zero returns a network with the given widths, input first, and zero weights,
// for a caller that fills them in. The errors name what is out of bounds.
func Zero(sizes []int, act Activation) (*Network, error) {
	if !act.Valid() {
		return nil, fmt.Errorf("activation %q is not one of %s", act, activationList())
	}
	if len(sizes) < 2 || len(sizes) > maxLayers+1 {
		return nil, fmt.Errorf("network has %d layers, want 1 to %d", len(sizes)-1, maxLayers)
	}
	params := 0
	for i, s := range sizes {
		if s < 1 || s > maxWidth {
			return nil, fmt.Errorf("layer width %d is not between 1 and %d", s, maxWidth)
		}
		if i > 0 {
			params += (sizes[i-1] + 1) * s
		}
		if params > maxParams {
			return nil, fmt.Errorf("network %v has more than %d parameters", sizes, maxParams)
		}
	}
	n := &Network{Activation: act}
	for i := 1; i < len(sizes); i++ {
		n.Layers = append(n.Layers, Layer{W: matrix(sizes[i-1], sizes[i]), B: vector(sizes[i])})
	}
	return n, nil
}

// Sizes returns the widths, input first.
func (n *Network) Sizes() []int {
	sizes := []int{n.Inputs()}
	for _, l := range n.Layers {
		sizes = append(sizes, l.Out())
	}
	return sizes
}

// Inputs returns the width of a sample.
func (n *Network) Inputs() int { return n.Layers[0].In() }

// Classes returns the number of classes.
func (n *Network) Classes() int { return n.Layers[len(n.Layers)-1].Out() }

// Params returns the number of weights and biases.
func (n *Network) Params() int {
	p := 0
	for _, l := range n.Layers {
		p += l.In()*l.Out() + l.Out()
	}
	return p
}

// CheckFinite returns an error that names the first layer with a NaN or
// infinite parameter.
func (n *Network) CheckFinite() error {
	for i, l := range n.Layers {
		if !finite(l.W.Data) || !finite(l.B) {
			return fmt.Errorf("layer %d holds NaN or infinite weights", i)
		}
	}
	return nil
}

func finite(v []float32) bool {
	for _, x := range v {
		// x-x is 0 for finite x and NaN for both infinities and NaN.
		if x-x != 0 {
			return false
		}
	}
	return true
}

// vector allocates n floats at an address that is a multiple of 16. gonum's
// dot product sums in an order that depends on alignment, and the runtime
// promises the same bits from the same seed; Go aligns allocations of 64 bytes
// and more to 16.
func vector(n int) []float32 { return make([]float32, n, max(n, 16)) }

func matrix(rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: vector(rows * cols)}
}
