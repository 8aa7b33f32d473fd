package nn

import (
	"fmt"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// SGD holds the hyperparameters of stochastic gradient descent:
//
//	v ← μ·v + ∇θ + λ·θ    θ ← θ − η·v
//
// λ applies to weights and not to biases.
type SGD struct {
	Rate        float32 // η > 0
	Momentum    float32 // 0 ≤ μ < 1
	WeightDecay float32 // λ ≥ 0
}

// Validate returns an error that names the value out of range.
func (s SGD) Validate() error {
	switch {
	case !(s.Rate > 0) || s.Rate > 1e3:
		return fmt.Errorf("learning rate %v is not above 0 and at most 1000", s.Rate)
	case !(s.Momentum >= 0 && s.Momentum < 1):
		return fmt.Errorf("momentum %v is not at least 0 and below 1", s.Momentum)
	case !(s.WeightDecay >= 0 && s.WeightDecay <= 1):
		return fmt.Errorf("weight decay %v is not between 0 and 1", s.WeightDecay)
	}
	return nil
}

// Trainer descends on one network. It belongs to one goroutine.
type Trainer struct {
	*Pass
	sgd    SGD
	deltas []blas32.General // ∂loss/∂z of each layer
	vel    []Layer          // velocities, and within a step the gradients
}

// NewTrainer returns a Trainer that changes net, in batches of at most batch
// samples.
func NewTrainer(net *Network, sgd SGD, batch int) *Trainer {
	t := &Trainer{Pass: net.NewPass(batch), sgd: sgd}
	for _, l := range net.Layers {
		t.deltas = append(t.deltas, matrix(batch, l.Out()))
		t.vel = append(t.vel, Layer{W: matrix(l.In(), l.Out()), B: vector(l.Out())})
	}
	return t
}

// Step takes one step of descent on the batch in Input, whose classes are
// labels (as many as rows, each below Classes), and returns the score of the
// network as it was before.
func (t *Trainer) Step(labels []int) Score {
	t.Forward()
	score := t.Score(labels)
	t.backward(labels)
	for i, l := range t.net.Layers {
		v := t.vel[i]
		if t.sgd.WeightDecay != 0 {
			axpy(t.sgd.WeightDecay, l.W.Data, v.W.Data)
		}
		axpy(-t.sgd.Rate, v.W.Data, l.W.Data)
		axpy(-t.sgd.Rate, v.B, l.B)
	}
	return score
}

// backward sets each velocity to μ·v + ∇θ, the gradient being that of the
// batch's mean cross-entropy.
func (t *Trainer) backward(labels []int) {
	layers := t.net.Layers
	last := len(layers) - 1
	for i := range t.deltas {
		t.deltas[i].Rows = t.rows
	}
	// Softmax and cross-entropy together have the gradient (p − y)/rows.
	d := t.deltas[last]
	copy(d.Data, t.acts[last+1].Data[:t.rows*d.Cols])
	for r, label := range labels {
		row(d, r)[label]--
	}
	scal(1/float32(t.rows), d.Data[:t.rows*d.Cols])

	for i := last; i >= 0; i-- {
		d := t.deltas[i]
		blas32.Gemm(blas.Trans, blas.NoTrans, 1, t.acts[i], d, t.sgd.Momentum, t.vel[i].W)
		scal(t.sgd.Momentum, t.vel[i].B)
		for r := range t.rows {
			axpy(1, row(d, r), t.vel[i].B)
		}
		if i > 0 {
			below := t.deltas[i-1]
			blas32.Gemm(blas.NoTrans, blas.Trans, 1, d, layers[i].W, 0, below)
			n := t.rows * below.Cols
			t.net.Activation.backward(below.Data[:n], t.acts[i].Data[:n])
		}
	}
}

func axpy(alpha float32, x, y []float32) {
	blas32.Axpy(alpha, blas32.Vector{N: len(x), Inc: 1, Data: x}, blas32.Vector{N: len(y), Inc: 1, Data: y})
}

func scal(alpha float32, x []float32) {
	blas32.Scal(alpha, blas32.Vector{N: len(x), Inc: 1, Data: x})
}
