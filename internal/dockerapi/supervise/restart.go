package supervise

import (
	"time"

	"github.com/moby/moby/api/types/container"
)

// The pauses before restarts, as Docker has them: each twice as long as the one
// before, from the shortest again once a run has lasted.
const (
	shortestPause = 100 * time.Millisecond
	longestPause  = time.Minute
	lasted        = 10 * time.Second
)

// End is how a run of a container ended.
type End struct {
	Code int
	Ran  time.Duration
	// NoStart says that the program could not even be started, which trying
	// again does not change.
	NoStart bool
	// Stopped says that somebody ended it by hand.
	Stopped bool
	// Found says that the daemon has just started and found it ended: it ended
	// while the daemon was away, or with the machine.
	Found bool
}

// Decide says whether a container that has ended is started again and after
// which pause. restarts is how many times it was already, last the pause before
// the run that ended.
//
//	policy          ended by itself          by hand   found ended      by hand, found ended
//	no              –                        –         –                –
//	always          again                    –         again            again
//	unless-stopped  again                    –         again            –
//	on-failure[:N]  again if it failed       –         as by itself     –
//	                and restarts < N
func Decide(policy container.RestartPolicy, e End, restarts int, last time.Duration) (pause time.Duration, again bool) {
	switch {
	case e.NoStart && !e.Found:
	case policy.IsAlways():
		again = !e.Stopped || e.Found
	case policy.IsUnlessStopped():
		again = !e.Stopped
	case policy.IsOnFailure():
		again = !e.Stopped && e.Code != 0 && (policy.MaximumRetryCount == 0 || restarts < policy.MaximumRetryCount)
	}
	if !again {
		return 0, false
	}
	if last == 0 || e.Ran >= lasted {
		return shortestPause, true
	}
	return min(2*last, longestPause), true
}
