package cri

import (
	"context"
	"sync"

	"github.com/ferryos/ferry/internal/fault"
)

// gate keeps calls that change something out of an engine that has stopped:
// the kubelet's loops end with the process alone.
type gate struct {
	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

// enter begins a call that ends with leave.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, asStatus(fault.New(fault.Unavailable, "the container runtime has stopped"))
	}
	g.calls.Add(1)
	return g.calls.Done, nil
}

// close refuses further calls and waits, no longer than ctx, for those begun.
func (g *gate) close(ctx context.Context) {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	done := make(chan struct{})
	go func() { g.calls.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
