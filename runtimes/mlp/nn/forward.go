package nn

import (
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// Pass holds the activations of one forward pass of up to Rows samples. It
// belongs to one goroutine at a time and is reused from batch to batch.
type Pass struct {
	net  *Network
	rows int              // of the present batch
	acts []blas32.General // acts[0] is the input, the last the probabilities
}

// NewPass returns a Pass for batches of at most rows samples.
func (n *Network) NewPass(rows int) *Pass {
	p := &Pass{net: n}
	for _, s := range n.Sizes() {
		p.acts = append(p.acts, matrix(rows, s))
	}
	return p
}

// Rows returns the largest batch the pass takes.
func (p *Pass) Rows() int { return len(p.acts[0].Data) / p.acts[0].Cols }

// Input returns the first rows rows of the input, one sample a row, for the
// caller to fill before Forward. rows must be at least 1 and at most Rows.
func (p *Pass) Input(rows int) []float32 {
	p.rows = rows
	for i := range p.acts {
		p.acts[i].Rows = rows
	}
	return p.acts[0].Data[:rows*p.acts[0].Cols]
}

// Forward computes f(x;θ) for the input and returns the probabilities, one
// row of Classes for each sample. The slice is overwritten by the next Forward.
func (p *Pass) Forward() []float32 {
	last := len(p.net.Layers) - 1
	for i, l := range p.net.Layers {
		out := p.acts[i+1]
		for r := range p.rows {
			copy(row(out, r), l.B)
		}
		blas32.Gemm(blas.NoTrans, blas.NoTrans, 1, p.acts[i], l.W, 1, out)
		if i < last {
			p.net.Activation.apply(out.Data[:p.rows*out.Cols])
		}
	}
	out := p.acts[last+1]
	for r := range p.rows {
		softmax(row(out, r))
	}
	return out.Data[:p.rows*out.Cols]
}

// Score is what a network gets right.
type Score struct {
	Loss    float64 // mean cross-entropy, nats
	Correct int
	Samples int
}

// Accuracy returns the share that is right, 0 to 1.
func (s Score) Accuracy() float64 {
	if s.Samples == 0 {
		return 0
	}
	return float64(s.Correct) / float64(s.Samples)
}

// Add merges another score into s.
func (s *Score) Add(o Score) {
	n := s.Samples + o.Samples
	if n == 0 {
		return
	}
	s.Loss = (s.Loss*float64(s.Samples) + o.Loss*float64(o.Samples)) / float64(n)
	s.Correct += o.Correct
	s.Samples = n
}

// Score compares the probabilities of the last Forward with the labels.
func (p *Pass) Score(labels []int) Score {
	probs := p.acts[len(p.acts)-1]
	s := Score{Samples: len(labels)}
	for r, label := range labels {
		q := row(probs, r)
		// A probability that underflowed would make the mean infinite.
		s.Loss -= math.Log(max(float64(q[label]), 1e-30))
		if Argmax(q) == label {
			s.Correct++
		}
	}
	s.Loss /= float64(max(len(labels), 1))
	return s
}

// Argmax returns the index of the largest value, the first of equals.
func Argmax(v []float32) int {
	best := 0
	for i, x := range v {
		if x > v[best] {
			best = i
		}
	}
	return best
}

// softmax turns logits into probabilities in place; the largest logit is taken
// off first so that no exponential overflows.
func softmax(z []float32) {
	top := z[Argmax(z)]
	var sum float64
	for i, v := range z {
		e := math.Exp(float64(v - top))
		z[i] = float32(e)
		sum += e
	}
	for i := range z {
		z[i] = float32(float64(z[i]) / sum)
	}
}

func row(m blas32.General, r int) []float32 { return m.Data[r*m.Cols : (r+1)*m.Cols] }
