package autoscale

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestAverage(t *testing.T) {
	type sample struct {
		second float64
		value  float64
	}
	for _, tt := range []struct {
		name    string
		window  time.Duration
		samples []sample
		at      float64
		want    float64
		ok      bool
	}{
		{"nothing", 6 * time.Second, nil, 0, 0, false},
		{"one", 6 * time.Second, []sample{{0, 3}}, 0, 3, true},
		{"of one second", 6 * time.Second, []sample{{0, 3}, {0.9, 4}}, 0, 7, true},
		{"since the first", 6 * time.Second, []sample{{0, 3}, {1, 5}}, 1, 4, true},
		{"none between", 6 * time.Second, []sample{{0, 3}, {2, 6}}, 2, 3, true},
		{"none since", 6 * time.Second, []sample{{0, 3}, {1, 5}}, 4, 4, true},
		{"some are too old", 6 * time.Second, []sample{{0, 100}, {1, 5}, {5, 5}, {6, 2}}, 6, 2, true},
		{"some are too old, none since", 6 * time.Second, []sample{{0, 100}, {1, 6}, {2, 9}}, 7, 9, true},
		{"all are too old", 6 * time.Second, []sample{{0, 100}, {1, 6}}, 7, 0, false},
		{"anew after a pause", 6 * time.Second, []sample{{0, 100}, {6, 4}}, 6, 4, true},
		{"late", 6 * time.Second, []sample{{3, 4}, {1, 2}}, 3, 2, true},
		{"too late", 6 * time.Second, []sample{{6, 4}, {0, 100}}, 6, 4, true},
		{"a window of less than a second", time.Millisecond, []sample{{0, 3}, {1, 5}}, 1, 5, true},
	} {
		a := NewAverage(tt.window)
		at := func(second float64) time.Time { return start.Add(time.Duration(second * float64(time.Second))) }
		for _, s := range tt.samples {
			a.Add(at(s.second), s.value)
		}
		if got, ok := a.Value(at(tt.at)); math.Abs(got-tt.want) > 1e-9 || ok != tt.ok {
			t.Errorf("%s: %v, %v; want %v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// TestPeaks compares with a window that keeps everything.
func TestPeaks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const window = 20 * time.Second
	var p peaks
	all := map[int64]int{}
	now := start
	for range 10_000 {
		now = now.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
		value, tick := r.IntN(50), now.UnixNano()/int64(TickInterval)
		p = p.add(now, value, window)
		all[tick] = max(all[tick], value)
		want := 0
		for t := tick - 9; t <= tick; t++ {
			want = max(want, all[t])
		}
		if p.max() != want {
			t.Fatalf("at %v: %d, want %d", now, p.max(), want)
		}
	}
}
