package nn

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
)

// reference computes the mean cross-entropy in float64 with plain loops: an
// implementation that shares nothing with the one under test.
func reference(n *Network, params [][]float64, x []float64, labels []int) float64 {
	var loss float64
	in := n.Inputs()
	for r, label := range labels {
		a := x[r*in : (r+1)*in]
		for i, l := range n.Layers {
			z := make([]float64, l.Out())
			for j := range z {
				z[j] = params[2*i+1][j]
				for k := range a {
					z[j] += a[k] * params[2*i][k*l.Out()+j]
				}
				if i < len(n.Layers)-1 {
					switch n.Activation {
					case ReLU:
						z[j] = math.Max(0, z[j])
					case Sigmoid:
						z[j] = 1 / (1 + math.Exp(-z[j]))
					case Tanh:
						z[j] = math.Tanh(z[j])
					case Identity:
					}
				}
			}
			a = z
		}
		var sum float64
		for _, z := range a {
			sum += math.Exp(z)
		}
		loss += math.Log(sum) - a[label]
	}
	return loss / float64(len(labels))
}

// TestGradient compares every gradient with a central finite difference.
func TestGradient(t *testing.T) {
	for _, act := range Activations {
		for _, sizes := range [][]int{{7, 4}, {7, 9, 4}, {7, 9, 6, 4}} {
			t.Run(fmt.Sprintf("%s/%d-layers", act, len(sizes)-1), func(t *testing.T) {
				checkGradient(t, sizes, act)
			})
		}
	}
}

func checkGradient(t *testing.T, sizes []int, act Activation) {
	net, err := New(sizes, act, 3)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	const rows = 5
	tr := NewTrainer(net, SGD{Rate: 1}, rows)
	x := make([]float64, rows*sizes[0])
	in := tr.Input(rows)
	for i := range in {
		in[i] = float32(rng.NormFloat64())
		x[i] = float64(in[i])
	}
	labels := []int{0, 3, 1, 2, 3}
	var params [][]float64
	for _, l := range net.Layers {
		for i := range l.B {
			l.B[i] = float32(rng.NormFloat64()) // zero biases would hide a wrong use of them
		}
		params = append(params, widen(l.W.Data), widen(l.B))
	}
	if got, want := tr.lossAt(labels), reference(net, params, x, labels); math.Abs(got-want) > 1e-5 {
		t.Fatalf("loss %v, want %v", got, want)
	}
	tr.backward(labels)
	const eps = 1e-5
	for i, v := range tr.vel {
		for k, g := range [][]float32{v.W.Data, v.B} {
			p := params[2*i+k]
			for j := range p {
				old := p[j]
				p[j] = old + eps
				up := reference(net, params, x, labels)
				p[j] = old - eps
				down := reference(net, params, x, labels)
				p[j] = old
				want := (up - down) / (2 * eps)
				if math.Abs(float64(g[j])-want) > 1e-5+1e-4*math.Abs(want) {
					t.Fatalf("layer %d parameter %d/%d: gradient %v, finite difference %v", i, k, j, g[j], want)
				}
			}
		}
	}
}

func (t *Trainer) lossAt(labels []int) float64 {
	t.Forward()
	return t.Score(labels).Loss
}

func widen(v []float32) []float64 {
	w := make([]float64, len(v))
	for i, x := range v {
		w[i] = float64(x)
	}
	return w
}

// TestStep checks the update rule on values worked out by hand.
func TestStep(t *testing.T) {
	net, err := Zero([]int{1, 2}, Identity)
	if err != nil {
		t.Fatal(err)
	}
	tr := NewTrainer(net, SGD{Rate: 0.5, Momentum: 0.5, WeightDecay: 0.1}, 1)
	tr.Input(1)[0] = 2
	// p = (.5, .5), so ∇W = 2·(−.5, .5) and ∇b = (−.5, .5).
	tr.Step([]int{0})
	l := net.Layers[0]
	if l.W.Data[0] != 0.5 || l.W.Data[1] != -0.5 || l.B[0] != 0.25 || l.B[1] != -0.25 {
		t.Fatalf("after one step: W %v b %v", l.W.Data, l.B)
	}
	// logits ±1.25: p0 = 1/(1+e^-2.5); v = .5·(−1) + 2·(p0−1) + .1·.5
	p0 := 1 / (1 + math.Exp(-2.5))
	want := 0.5 - 0.5*(-0.5+2*(p0-1)+0.05)
	tr.Step([]int{0})
	if math.Abs(float64(l.W.Data[0])-want) > 1e-6 {
		t.Fatalf("after two steps: W0 %v, want %v", l.W.Data[0], want)
	}
}

func trainSome(t *testing.T, procs int) *Network {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
	net, err := New([]int{200, 150, 70, 10}, Tanh, 42)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(9, 9))
	tr := NewTrainer(net, SGD{Rate: 0.1, Momentum: 0.9, WeightDecay: 1e-4}, 130)
	for range 20 {
		rows := 100 + rng.IntN(31)
		in := tr.Input(rows)
		labels := make([]int, rows)
		for i := range in {
			in[i] = rng.Float32()
		}
		for i := range labels {
			labels[i] = rng.IntN(10)
		}
		tr.Step(labels)
	}
	return net
}

// TestSameBits trains with one and with many processors: gonum multiplies
// blocks in parallel, and the result must not depend on how many at a time.
func TestSameBits(t *testing.T) {
	want := trainSome(t, 1)
	for _, procs := range []int{1, 2, 3, 8} {
		got := trainSome(t, procs)
		for i := range want.Layers {
			for j, w := range want.Layers[i].W.Data {
				if math.Float32bits(w) != math.Float32bits(got.Layers[i].W.Data[j]) {
					t.Fatalf("GOMAXPROCS %d: layer %d weight %d is %v, with 1 it was %v", procs, i, j, got.Layers[i].W.Data[j], w)
				}
			}
			for j, b := range want.Layers[i].B {
				if b != got.Layers[i].B[j] {
					t.Fatalf("GOMAXPROCS %d: layer %d bias %d differs", procs, i, j)
				}
			}
		}
	}
}

// TestRowsIndependent checks that a sample's answer is the same bits alone and
// within a batch, so that batching is invisible to clients.
func TestRowsIndependent(t *testing.T) {
	net, err := New([]int{300, 260, 10}, ReLU, 1)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	p := net.NewPass(100)
	x := make([]float32, 100*300)
	for i := range x {
		x[i] = rng.Float32()
	}
	copy(p.Input(100), x)
	all := append([]float32(nil), p.Forward()...)
	one := net.NewPass(1)
	for r := range 100 {
		copy(one.Input(1), x[r*300:(r+1)*300])
		for j, q := range one.Forward() {
			if q != all[r*10+j] {
				t.Fatalf("row %d class %d: %v alone, %v in a batch", r, j, q, all[r*10+j])
			}
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, sizes := range [][]int{nil, {3}, {3, 0}, {-1, 2}, {1 << 21, 2}, {1 << 20, 1 << 20}, make([]int, 100)} {
		if _, err := New(sizes, ReLU, 1); err == nil {
			t.Errorf("New(%v) succeeded", sizes)
		}
	}
	if _, err := New([]int{1, 2}, "gelu", 1); err == nil {
		t.Error("New with activation gelu succeeded")
	}
	nan := float32(math.NaN())
	for _, s := range []SGD{{}, {Rate: -1}, {Rate: nan}, {Rate: 1, Momentum: 1}, {Rate: 1, Momentum: nan}, {Rate: 1, WeightDecay: -1}} {
		if s.Validate() == nil {
			t.Errorf("%+v is valid", s)
		}
	}
	net, err := New([]int{2, 2}, ReLU, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := net.CheckFinite(); err != nil {
		t.Error(err)
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		net.Layers[0].B[1] = float32(bad)
		if net.CheckFinite() == nil {
			t.Errorf("bias %v passes", bad)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	for _, density := range []float64{0.2, 1} {
		b.Run(fmt.Sprintf("784-500-10/density=%.1f", density), func(b *testing.B) {
			net, err := New([]int{784, 500, 10}, ReLU, 1)
			if err != nil {
				b.Fatal(err)
			}
			const batch = 64
			tr := NewTrainer(net, SGD{Rate: 1e-4, Momentum: 0.9}, batch)
			rng := rand.New(rand.NewPCG(1, 1))
			in := tr.Input(batch)
			for i := range in {
				if rng.Float64() < density {
					in[i] = rng.Float32()
				}
			}
			labels := make([]int, batch)
			for b.Loop() {
				tr.Step(labels)
			}
			b.ReportMetric(batch*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
		})
	}
}
