package autoscale

import (
	"testing"
	"time"
)

// start is when tests begin.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// spec is Knative's default of a revision: at most 100 requests at a time, 70 aimed at.
func spec() Spec {
	return Spec{Target: 70, Total: 100, BurstCapacity: 211, PanicThreshold: 2, MaxScaleUpRate: 1000, MaxScaleDownRate: 2,
		StableWindow: time.Minute, Reachable: true}
}

func TestDecide(t *testing.T) {
	with := func(change func(*Spec)) Spec {
		s := spec()
		change(&s)
		return s
	}
	for _, tt := range []struct {
		name string
		spec Spec
		o    Observation
		want Decision
	}{
		{"nothing", spec(), Observation{}, Decision{0, -211}},
		{"a little", spec(), Observation{0.1, 0.1, 1}, Decision{1, -112}},
		{"as much as is aimed at", spec(), Observation{140, 140, 2}, Decision{2, -151}},
		{"a little more", spec(), Observation{140.1, 140.1, 2}, Decision{3, -152}},
		{"a burst that stays below the panic does not count", spec(), Observation{70, 139, 2}, Decision{1, -150}},
		{"a burst", spec(), Observation{70, 280, 2}, Decision{4, -291}},
		{"half goes at a time", spec(), Observation{0, 0, 10}, Decision{5, 789}},
		{"half of one is none", spec(), Observation{0, 0, 1}, Decision{0, -111}},
		{"half, rounded down", spec(), Observation{0, 0, 5}, Decision{2, 289}},
		{"what nobody can reach goes at once", with(func(s *Spec) { s.Reachable = false }), Observation{0, 0, 10}, Decision{0, 789}},
		{"up by the rate at most", with(func(s *Spec) { s.MaxScaleUpRate = 3 }), Observation{7000, 7000, 2}, Decision{6, -7011}},
		{"up by one at least", with(func(s *Spec) { s.MaxScaleUpRate = 1.1; s.Target = 1; s.PanicThreshold = 100 }), Observation{3, 3, 2}, Decision{3, -14}},
		{"from none as from one", with(func(s *Spec) { s.MaxScaleUpRate = 4 }), Observation{7000, 7000, 0}, Decision{4, -7211}},
		{"activation", with(func(s *Spec) { s.ActivationScale = 3 }), Observation{1, 1, 0}, Decision{3, -212}},
		{"no activation without demand", with(func(s *Spec) { s.ActivationScale = 3 }), Observation{0, 0, 1}, Decision{0, -111}},
		{"activation is not a limit", with(func(s *Spec) { s.ActivationScale = 3 }), Observation{350, 350, 4}, Decision{5, -161}},
		{"no burst capacity", with(func(s *Spec) { s.BurstCapacity = 0 }), Observation{70, 70, 1}, Decision{1, 0}},
		{"always by the queue", with(func(s *Spec) { s.BurstCapacity = -1 }), Observation{0, 0, 100}, Decision{50, -1}},
		{"more burst than asked for", spec(), Observation{70, 70, 10}, Decision{5, 719}},
	} {
		if got, _ := Decide(tt.spec, State{}, start, tt.o); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// step is a decision of a sequence: what is there at a time, and what is wanted.
type step struct {
	after         time.Duration
	stable, panic float64
	ready         int
	pods          int
	panicking     bool
}

func decideAll(t *testing.T, spec Spec, s State, steps []step) {
	t.Helper()
	for _, st := range steps {
		var d Decision
		before := s
		d, s = Decide(spec, s, start.Add(st.after), Observation{st.stable, st.panic, st.ready})
		if d.Pods != st.pods || s.Panicking() != st.panicking {
			t.Errorf("after %v: %d pods, panicking %v; want %d and %v", st.after, d.Pods, s.Panicking(), st.pods, st.panicking)
		}
		if again, _ := Decide(spec, before, start.Add(st.after), Observation{st.stable, st.panic, st.ready}); again != d {
			t.Errorf("after %v: %+v, and once more %+v", st.after, d, again)
		}
	}
}

// TestPanic: a panic only adds pods, and ends a stable window after its last cause.
func TestPanic(t *testing.T) {
	decideAll(t, spec(), State{}, []step{
		{0, 10, 60, 1, 1, false},
		{2 * time.Second, 20, 141, 1, 3, true},
		{4 * time.Second, 30, 71, 1, 3, true}, // extended: 2 pods of 1
		{6 * time.Second, 30, 300, 3, 5, true},
		{8 * time.Second, 30, 0, 5, 5, true},
		{64 * time.Second, 30, 0, 5, 5, true}, // the last cause was after 4 s: 5 of 3 are not twice
		{64*time.Second + 1, 30, 0, 5, 2, false},
	})
	decideAll(t, spec(), State{}, []step{
		{0, 0, 141, 1, 3, true},
		{2 * time.Second, 560, 0, 3, 8, true}, // what is stable counts if it is more
		{61 * time.Second, 70, 0, 8, 4, false},
	})
}

// TestResume: what was there is kept until a stable window has passed.
func TestResume(t *testing.T) {
	for ready, panicking := range map[int]bool{0: false, 1: false, 2: true, 10: true} {
		if s := Resume(start, ready); s.Panicking() != panicking {
			t.Errorf("with %d pods, panicking: %v", ready, s.Panicking())
		}
	}
	decideAll(t, spec(), Resume(start, 10), []step{
		{2 * time.Second, 1, 1, 10, 10, true},
		{60 * time.Second, 1, 1, 10, 10, true},
		{61 * time.Second, 1, 1, 10, 5, false},
	})
}

// TestScaleDownDelay: fewer pods once the demand was less for long enough.
func TestScaleDownDelay(t *testing.T) {
	s := spec()
	s.ScaleDownDelay, s.MaxScaleDownRate, s.PanicThreshold = 10*time.Second, 1000, 1000
	decideAll(t, s, State{}, []step{
		{0, 280, 280, 4, 4, false},
		{2 * time.Second, 140, 140, 4, 4, false},
		{4 * time.Second, 210, 210, 4, 4, false},
		{8 * time.Second, 0, 0, 4, 4, false},
		{10 * time.Second, 0, 0, 4, 3, false}, // the 4 are ten seconds ago
		{12 * time.Second, 700, 700, 3, 10, false},
		{22 * time.Second, 0, 0, 10, 0, false},
	})
	s.Reachable = false
	decideAll(t, s, State{}, []step{{0, 280, 280, 4, 4, false}, {2 * time.Second, 0, 0, 4, 0, false}})
}
