// Package autoscale decides how many pods a revision of a service needs, as
// Knative's Pod Autoscaler does (KPA: knative.dev/serving v0.51, its description of
// the system and pkg/autoscaler). A decision depends on nothing but the time, what was
// measured and what was decided before: all of it is an argument, so that traces
// can be replayed in no time.
package autoscale

import (
	"math"
	"time"
)

// TickInterval is how often a revision is decided on.
const TickInterval = 2 * time.Second

// Spec says how a revision is scaled. The metric is what Target, Total and the
// observations are in: requests at a time, or requests a second.
type Spec struct {
	// Target is how much of the metric a pod is to have on average; more than 0.
	// It is what was asked for, times the utilisation that is aimed at.
	Target float64
	// Total is how much of the metric a pod can take.
	Total float64
	// BurstCapacity is how much more may come at once without waiting for a pod:
	// 0 has requests go straight to pods whenever there are any, -1 never.
	BurstCapacity float64
	// PanicThreshold is the factor by which the demand of the panic window must
	// exceed the pods that are ready for the panic to begin: 2 for 200 %.
	PanicThreshold float64
	// MaxScaleUpRate and MaxScaleDownRate bound a step: to so many times the
	// ready pods, or to their so many-th part. Both are more than 1.
	MaxScaleUpRate, MaxScaleDownRate float64
	// StableWindow is for how long a panic outlasts its last cause.
	StableWindow time.Duration
	// ScaleDownDelay is how long a smaller demand must have lasted; 0 for no delay.
	ScaleDownDelay time.Duration
	// ActivationScale is the fewest pods while there is any demand, if more than 1.
	ActivationScale int
	// Reachable tells that a route leads to the revision. One that is not goes
	// down at once.
	Reachable bool
}

// Observation is what was measured of a revision.
type Observation struct {
	Stable float64 // the metric's average over the stable window, of all pods together
	Panic  float64 // over the panic window
	Ready  int     // pods that are ready
}

// State is what a decision leaves to the next one. The zero State is that of a
// revision with at most one pod; see Resume.
type State struct {
	panicSince time.Time // when the demand was last too much; zero: no panic
	panicPods  int       // the most that this panic has asked for
	delayed    peaks
}

// Resume is the state to begin with if ready pods are there already. Where there
// are several, what they are needed for is not known yet: it begins with a
// panic, which takes none of them away.
func Resume(now time.Time, ready int) State {
	if ready <= 1 {
		return State{}
	}
	return State{panicSince: now, panicPods: ready}
}

// Panicking reports whether short bursts count, and no pod is taken away.
func (s State) Panicking() bool { return !s.panicSince.IsZero() }

// Decision is what a revision is to have.
type Decision struct {
	Pods int
	// ExcessBurst is the burst, in units of the metric, that the ready pods could
	// take beyond BurstCapacity. Below 0 requests must go by a queue.
	ExcessBurst int
}

// Decide says how many pods the revision needs. Limits that users set on their
// number (min-scale, max-scale) are the caller's, and so is the way to zero.
func Decide(spec Spec, s State, now time.Time, o Observation) (Decision, State) {
	ready := math.Max(1, float64(o.Ready))
	stable, panicked := spec.pods(o.Stable, ready), spec.pods(o.Panic, ready)

	tooMuch := math.Ceil(o.Panic/spec.Target)/ready >= spec.PanicThreshold
	switch {
	case tooMuch:
		s.panicSince = now
	case s.Panicking() && now.After(s.panicSince.Add(spec.StableWindow)):
		s.panicSince, s.panicPods = time.Time{}, 0
	}
	pods := stable
	if s.Panicking() {
		s.panicPods = max(s.panicPods, stable, panicked)
		pods = s.panicPods
	}
	if spec.Reachable && spec.ScaleDownDelay > 0 {
		s.delayed = s.delayed.add(now, pods, spec.ScaleDownDelay)
		pods = s.delayed.max()
	}
	return Decision{Pods: pods, ExcessBurst: spec.excessBurst(o)}, s
}

// pods is how many pods some demand needs, within a step of those that are ready.
// A step up is of one pod at least, however low its rate.
func (spec Spec) pods(demand, ready float64) int {
	need := math.Ceil(demand / spec.Target)
	lowest := 0.0
	if spec.Reachable {
		lowest = math.Floor(ready / spec.MaxScaleDownRate)
	}
	pods := int(math.Min(math.Max(need, lowest), math.Ceil(spec.MaxScaleUpRate*ready)))
	if spec.ActivationScale > 1 && need > 0 {
		pods = max(pods, spec.ActivationScale)
	}
	return pods
}

func (spec Spec) excessBurst(o Observation) int {
	switch {
	case spec.BurstCapacity == 0:
		return 0
	case spec.BurstCapacity > 0:
		return int(math.Floor(float64(o.Ready)*spec.Total - spec.BurstCapacity - o.Panic))
	}
	return -1
}
