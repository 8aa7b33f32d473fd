// Package lifecycle starts and stops the long-lived parts of a process.
//
// A Group is a list: Start runs it in order, Stop in reverse. Dependencies are
// the order of the list, nothing else, so reading the list in internal/app is
// reading what runs. Any package may import lifecycle; it imports nothing of
// Ferry.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Component is a long-lived part of the process.
//
// Start returns when the component can be used, or with the reason it cannot;
// after an error nothing of it runs. The context given to Start bounds the
// start alone: what goes on running ends at Stop. Stop returns when everything
// the component started has ended or ctx is done; it is called once, only
// after a successful Start.
type Component interface {
	Name() string
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
}

// Group is a list of components run as one. The zero value is not usable; see New.
type Group struct {
	log     *slog.Logger
	list    []Component
	started []Component
	onState func(name, state string, took time.Duration)
}

// New returns a Group of the components, in start order.
func New(log *slog.Logger, list ...Component) *Group {
	return &Group{log: log, list: list, onState: func(string, string, time.Duration) {}}
}

// OnState has f called at each change: state is "starting", "started" or
// "failed", took the time the start needed (0 at "starting"). Call before Start.
func (g *Group) OnState(f func(name, state string, took time.Duration)) { g.onState = f }

// Start starts the components in order. When one fails, those already started
// are stopped again in reverse and the error names the one that failed.
func (g *Group) Start(ctx context.Context) error {
	for _, c := range g.list {
		begin := time.Now()
		g.onState(c.Name(), "starting", 0)
		if err := c.Start(ctx); err != nil {
			g.onState(c.Name(), "failed", time.Since(begin))
			err = fmt.Errorf("start %s: %w", c.Name(), err)
			return errors.Join(err, g.Stop(context.WithoutCancel(ctx)))
		}
		g.onState(c.Name(), "started", time.Since(begin))
		g.log.Info("component started", "component", c.Name(), "took", time.Since(begin))
		g.started = append(g.started, c)
	}
	return nil
}

// Stop stops what was started, in reverse, and returns all errors joined. It
// goes on past a failing component: the others must still put back what they changed.
func (g *Group) Stop(ctx context.Context) error {
	var errs []error
	for i := len(g.started) - 1; i >= 0; i-- {
		c := g.started[i]
		begin := time.Now()
		if err := c.Stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", c.Name(), err))
		}
		g.log.Info("component stopped", "component", c.Name(), "took", time.Since(begin))
	}
	g.started = nil
	return errors.Join(errs...)
}

// Func is a Component made of two functions; a nil one does nothing.
type Func struct {
	Label   string
	OnStart func(ctx context.Context) error
	OnStop  func(ctx context.Context) error
}

// Name implements Component.
func (f Func) Name() string { return f.Label }

// Start implements Component.
func (f Func) Start(ctx context.Context) error {
	if f.OnStart == nil {
		return nil
	}
	return f.OnStart(ctx)
}

// Stop implements Component.
func (f Func) Stop(ctx context.Context) error {
	if f.OnStop == nil {
		return nil
	}
	return f.OnStop(ctx)
}
