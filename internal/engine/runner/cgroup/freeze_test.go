package cgroup

import (
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestUpdateKeepsThawed: an update while the group is frozen does not have a
// later one freeze it.
func TestUpdateKeepsThawed(t *testing.T) {
	g := newGroup(t, nil)
	run(t, g, "exec $b sleep 600")
	for _, step := range []struct {
		do     func() error
		frozen bool
	}{
		{g.Freeze, true}, {func() error { return g.Update(pidsLimit(50)) }, true},
		{g.Thaw, false}, {func() error { return g.Update(pidsLimit(60)) }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := frozen(t, g); got != step.frozen {
			t.Fatalf("frozen: %v, want %v", got, step.frozen)
		}
	}
}

// TestHammer calls what may be called concurrently.
func TestHammer(t *testing.T) {
	g := newGroup(t, limited())
	run(t, g, "while :; do $b true; done")
	var all sync.WaitGroup
	for _, do := range []func() error{
		g.Freeze, g.Thaw,
		func() error { return g.Update(pidsLimit(50)) },
		func() error { _, err := g.Stats(); return err },
		func() error { _, err := g.Processes(); return err },
	} {
		all.Go(func() {
			for range 50 {
				if err := do(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := g.Thaw(); err != nil || frozen(t, g) {
		t.Errorf("frozen at the end: %v", err)
	}
}

func pidsLimit(n int64) specs.LinuxResources {
	return specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &n}}
}
