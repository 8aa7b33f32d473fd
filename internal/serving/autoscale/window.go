package autoscale

import (
	"math"
	"slices"
	"time"
)

// peaks are the values that may still be the largest of a time window: the
// first is, and each later one is smaller and newer.
type peaks []peak

type peak struct {
	tick  int64 // of TickInterval, since 1970
	value int
}

// add returns the window at now, with a value more. Values of one tick count as
// the largest of them.
func (p peaks) add(now time.Time, value int, window time.Duration) peaks {
	tick := now.UnixNano() / int64(TickInterval)
	ticks := int64(math.Ceil(float64(window) / float64(TickInterval)))
	out := slices.Clone(p) // the caller's state stays as it was
	if n := len(out); n > 0 && out[n-1].tick == tick {
		value = max(value, out[n-1].value)
	}
	for len(out) > 0 && out[len(out)-1].value <= value {
		out = out[:len(out)-1]
	}
	for len(out) > 0 && tick-out[0].tick >= ticks {
		out = out[1:]
	}
	if n := len(out); n > 0 && out[n-1].tick == tick {
		return out
	}
	return append(out, peak{tick, value})
}

func (p peaks) max() int { return p[0].value }

// sampleInterval is what an Average keeps apart.
const sampleInterval = time.Second

// Average is the average of a metric over the last time, a window, of samples
// that come about once a second. Seconds without a sample before the last count
// as 0, those after it not at all. Before a whole window has passed since the
// first sample, or since none had come for as long as a window, the average is of the time
// since then. It is not safe for concurrent use.
type Average struct {
	window      time.Duration
	seconds     []float64 // ring, by the second since 1970
	first, last int64     // seconds of samples; last is 0 before the first
}

// NewAverage returns an Average over a window of whole seconds, at least one.
func NewAverage(window time.Duration) *Average {
	n := max(1, int(math.Ceil(float64(window)/float64(sampleInterval))))
	return &Average{window: window, seconds: make([]float64, n)}
}

// Add adds a sample. Those of one second add up: a caller that samples several
// pods gives the sum of them, or each by itself. One that is older than the window is dropped.
func (a *Average) Add(at time.Time, value float64) {
	second, n := at.Unix(), int64(len(a.seconds))
	switch {
	case a.last == 0 || second-a.last >= n: // nothing of the window is left
		clear(a.seconds)
		a.first, a.last = second, second
	case second <= a.last-n:
		return
	case second < a.first:
		a.first = second
	}
	for s := a.last + 1; s <= second; s++ {
		a.seconds[s%n] = 0
	}
	a.last = max(a.last, second)
	a.seconds[second%n] += value
}

// Value is the average at a time; ok is false if no sample is as young as the window.
func (a *Average) Value(now time.Time) (average float64, ok bool) {
	second, n := now.Unix(), int64(len(a.seconds))
	if a.last == 0 || second-a.last >= n {
		return 0, false
	}
	oldest := max(a.first, max(second, a.last)-n+1)
	sum := 0.0
	for s := oldest; s <= a.last; s++ {
		sum += a.seconds[s%n]
	}
	return sum / float64(a.last-oldest+1), true
}
