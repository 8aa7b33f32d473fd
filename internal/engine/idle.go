package engine

import (
	"context"

	"github.com/ferryos/ferry/internal/fault"
)

// idle stops a pod that asked for it once its last container has exited.
func (e *Engine) idle(ctx context.Context, p *pod) {
	pod := p.snapshot()
	if !pod.Spec.StopWhenIdle {
		return
	}
	for _, c := range e.containersOf(pod.ID) {
		if c.snapshot().State != StateExited {
			return
		}
	}
	e.background.Go(func() {
		if !e.exitsSaved(pod.ID) {
			return // the engine stops, and the runner has them for the next
		}
		if err := e.stopIdle(ctx, p); err != nil {
			e.opt.Log.Error("stop an idle pod", "pod", pod.ID, "error", err)
		}
	})
}

// stopIdle stops a pod unless a container of it runs or may yet.
func (e *Engine) stopIdle(ctx context.Context, p *pod) error {
	p.op.Lock()
	defer p.op.Unlock()
	for _, c := range e.containersOf(p.id) {
		if c.snapshot().State != StateExited {
			return nil // started again meanwhile
		}
	}
	return e.stopPod(ctx, p)
}

// ReleaseIdle returns once a pod that stops when it is idle has given back its
// address and host ports, if it is. Idempotent.
func (e *Engine) ReleaseIdle(ctx context.Context, podID string) error {
	p, err := e.findPod(podID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil || !p.snapshot().Spec.StopWhenIdle || !e.exitsSaved(podID) {
		return err
	}
	return e.stopIdle(ctx, p)
}
