package engine

import (
	"context"
	"time"

	"github.com/ferryos/ferry/internal/fault"
)

// Wait returns the container once it has exited; NotFound if it is removed first.
func (e *Engine) Wait(ctx context.Context, id string) (Container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return Container{}, err
	}
	select {
	case <-c.end():
	case <-ctx.Done():
		return Container{}, ctx.Err()
	}
	s := c.snapshot()
	if s.State != StateExited {
		return s, fault.New(fault.NotFound, "container %s was removed before it ran", s.ID)
	}
	return s, nil
}

// Settled returns the container once a start, stop or removal that is under way
// is done.
func (e *Engine) Settled(id string) (Container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return Container{}, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	return c.snapshot(), nil
}

// end returns a channel that is closed once what runs now has ended.
func (c *container) end() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// waitEnd waits at most limit for a container's end and reports whether it came.
func waitEnd(ctx context.Context, ended <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(max(limit, 0))
	defer timer.Stop()
	select {
	case <-ended:
		return true
	default:
	}
	select {
	case <-ended:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
