package engine

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMergeEnv(t *testing.T) {
	base := []string{"A=1", "B=2", "C="}
	for _, tt := range []struct{ over, want []string }{
		{nil, base},
		{[]string{"B=3", "D=4"}, []string{"A=1", "B=3", "C=", "D=4"}},
		{[]string{"A", "C", "E"}, []string{"B=2"}},
		{[]string{"A", "A=5", "D=6", "D=7"}, []string{"B=2", "C=", "A=5", "D=7"}},
	} {
		if diff := cmp.Diff(tt.want, mergeEnv(base, tt.over)); diff != "" {
			t.Errorf("%v: %s", tt.over, diff)
		}
	}
	if diff := cmp.Diff([]string{"A=1", "B=2", "C="}, base); diff != "" {
		t.Errorf("the base is another: %s", diff)
	}
}

// TestCounter waits while others begin and end: a sync.WaitGroup panics then.
func TestCounter(t *testing.T) {
	var c counter
	c.wait(time.Hour) // nothing is under way
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 2000 {
				c.begin()()
			}
		})
		all.Go(func() {
			for range 2000 {
				c.wait(time.Hour)
			}
		})
	}
	all.Wait()
	end := c.begin()
	c.wait(time.Millisecond)
	end()
	c.wait(time.Hour)
}
