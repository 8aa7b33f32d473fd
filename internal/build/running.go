package build

import (
	"context"
	"sync"

	"github.com/ferryos/ferry/internal/fault"
)

// runningBuilds are the builds that may be cancelled by the ID their client gave.
type runningBuilds struct {
	mu sync.Mutex
	m  map[string]context.CancelCauseFunc
}

// add notes a build until forget.
func (r *runningBuilds) add(id string, cancel context.CancelCauseFunc) (forget func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m[id] != nil {
		return nil, fault.New(fault.Conflict, "a build with the ID %q runs already", id)
	}
	if r.m == nil {
		r.m = map[string]context.CancelCauseFunc{}
	}
	r.m[id] = cancel
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.m, id)
	}, nil
}

// end cancels a build. One that has ended already is as it should be.
func (r *runningBuilds) end(id string) error {
	if id == "" {
		return fault.New(fault.Invalid, "build ID not provided")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if cancel := r.m[id]; cancel != nil {
		cancel(fault.New(fault.Conflict, "the build was cancelled"))
	}
	return nil
}
