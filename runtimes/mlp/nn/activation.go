package nn

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Activation names g, applied to each element of a hidden layer.
type Activation string

// The activations the runtime knows.
const (
	ReLU     Activation = "relu"
	Sigmoid  Activation = "sigmoid"
	Tanh     Activation = "tanh"
	Identity Activation = "identity"
)

// Activations lists them in the order that help texts show.
var Activations = []Activation{ReLU, Sigmoid, Tanh, Identity}

// ParseActivation returns the activation of that name, whatever its case.
func ParseActivation(s string) (Activation, error) {
	if a := Activation(strings.ToLower(s)); a.Valid() {
		return a, nil
	}
	return "", fmt.Errorf("activation %q is not one of %s", s, activationList())
}

// Valid reports whether a is one of Activations.
func (a Activation) Valid() bool { return slices.Contains(Activations, a) }

func activationList() string {
	var s []string
	for _, a := range Activations {
		s = append(s, string(a))
	}
	return strings.Join(s, ", ")
}

// apply replaces each z by g(z).
func (a Activation) apply(z []float32) {
	switch a {
	case ReLU:
		for i, v := range z {
			z[i] = max(v, 0)
		}
	case Sigmoid:
		for i, v := range z {
			z[i] = float32(1 / (1 + math.Exp(-float64(v))))
		}
	case Tanh:
		for i, v := range z {
			z[i] = float32(math.Tanh(float64(v)))
		}
	case Identity:
	}
}

// backward multiplies each d by g'(z), given a = g(z): all four derivatives
// follow from the value, so z need not be kept.
func (a Activation) backward(d, value []float32) {
	switch a {
	case ReLU:
		for i, v := range value {
			if v == 0 {
				d[i] = 0
			}
		}
	case Sigmoid:
		for i, v := range value {
			d[i] *= v * (1 - v)
		}
	case Tanh:
		for i, v := range value {
			d[i] *= 1 - v*v
		}
	case Identity:
	}
}
