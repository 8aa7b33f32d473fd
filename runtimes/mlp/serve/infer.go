package serve

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/ferryos/ferry/runtimes/mlp/nn"
)

// Names and bounds of the tensors that a model of this runtime has.
const (
	inputName  = "input"
	probsName  = "probabilities"
	className  = "class"
	platform   = "ferry_mlp"
	maxRows    = 4096 // samples in one request
	batchRows  = 64   // samples multiplied at a time
	serverName = "ferry-mlp"
)

// requestError is a client's mistake: status 400, INVALID_ARGUMENT.
type requestError struct{ msg string }

func (e *requestError) Error() string { return e.msg }

func badRequest(format string, args ...any) error {
	return &requestError{fmt.Sprintf(format, args...)}
}

// notFoundError names a model or version that is not served here: 404, NOT_FOUND.
type notFoundError struct{ msg string }

func (e *notFoundError) Error() string { return e.msg }

// Model is the network under the name that clients ask for.
type Model struct {
	Name    string
	Version string
	Net     *nn.Network

	passes sync.Pool // *nn.Pass of batchRows rows
}

// check returns a notFoundError unless name and version are the model's; an
// empty version means any.
func (m *Model) check(name, version string) error {
	if name != m.Name {
		return &notFoundError{fmt.Sprintf("model %q is not served here, %q is", name, m.Name)}
	}
	if version != "" && version != m.Version {
		return &notFoundError{fmt.Sprintf("model %q has no version %q here, %q is served", name, version, m.Version)}
	}
	return nil
}

// tensorMeta describes one tensor as both protocols show it.
type tensorMeta struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

func (m *Model) inputs() []tensorMeta {
	return []tensorMeta{{inputName, "FP32", []int64{-1, int64(m.Net.Inputs())}}}
}

func (m *Model) outputs() []tensorMeta {
	return []tensorMeta{{probsName, "FP32", []int64{-1, int64(m.Net.Classes())}}, {className, "INT64", []int64{-1}}}
}

// rows returns how many samples a tensor of that description holds. The first
// dimension counts samples; the others together are a sample's values, so an
// image may come as [n 28 28] too.
func (m *Model) rows(name, datatype string, shape []int64, values int) (int, error) {
	if name != inputName {
		return 0, badRequest("input %q is unknown, the model takes %q", name, inputName)
	}
	if datatype != "FP32" && datatype != "FP64" {
		return 0, badRequest("input %q has datatype %q, want FP32 or FP64", name, datatype)
	}
	if len(shape) < 2 || shape[0] < 1 || shape[0] > maxRows {
		return 0, badRequest("input %q has shape %v, want [n %d] with n from 1 to %d", name, shape, m.Net.Inputs(), maxRows)
	}
	width := int64(1)
	for _, d := range shape[1:] {
		if d < 1 || d > int64(m.Net.Inputs()) || width > int64(m.Net.Inputs()) {
			width = 0
			break
		}
		width *= d
	}
	if width != int64(m.Net.Inputs()) {
		return 0, badRequest("input %q has shape %v, want [n %d]", name, shape, m.Net.Inputs())
	}
	if int64(values) != shape[0]*width {
		return 0, badRequest("input %q of shape %v holds %d values, want %d", name, shape, values, shape[0]*width)
	}
	return int(shape[0]), nil
}

// answer is the result for each sample of a request.
type answer struct {
	probs   []float32 // rows × classes
	classes []int64
}

// infer runs the network on rows samples, row-major.
func (m *Model) infer(values []float32, rows int) (answer, error) {
	for i, v := range values {
		if v-v != 0 {
			return answer{}, badRequest("input %q value %d is %v, want a finite number", inputName, i, v)
		}
	}
	pass, ok := m.passes.Get().(*nn.Pass)
	if !ok {
		pass = m.Net.NewPass(batchRows)
	}
	defer m.passes.Put(pass)
	in, out := m.Net.Inputs(), m.Net.Classes()
	a := answer{probs: make([]float32, 0, rows*out), classes: make([]int64, 0, rows)}
	for at := 0; at < rows; at += batchRows {
		n := min(batchRows, rows-at)
		copy(pass.Input(n), values[at*in:(at+n)*in])
		a.probs = append(a.probs, pass.Forward()...)
	}
	for r := range rows {
		q := a.probs[r*out : (r+1)*out]
		if slices.ContainsFunc(q, func(p float32) bool { return math.IsNaN(float64(p)) }) {
			return answer{}, badRequest("sample %d is outside the range that the model can compute", r)
		}
		a.classes = append(a.classes, int64(nn.Argmax(q)))
	}
	return a, nil
}

// wanted reports which outputs a request asks for: all when it names none.
func wanted(names []string) (probs, class bool, err error) {
	for _, n := range names {
		switch n {
		case probsName:
			probs = true
		case className:
			class = true
		default:
			return false, false, badRequest("output %q is unknown, the model gives %q and %q", n, probsName, className)
		}
	}
	if len(names) == 0 {
		return true, true, nil
	}
	return probs, class, nil
}
