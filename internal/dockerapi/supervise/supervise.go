// Package supervise keeps Docker's promises about containers that nobody
// watches: it starts those again whose restart policy says so, and runs their
// health checks.
//
// Only internal/dockerapi imports it, and tells it what happens. What is to be
// done is decided by pure functions, Decide and Check.Next; the Supervisor has
// the clocks. It knows nothing of the engine, and there is a goroutine only for
// a container that waits for its restart or has a health check.
package supervise

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Containers is what a Supervisor acts upon.
type Containers interface {
	// Start starts a container that has ended. One that runs already stays as it is.
	Start(ctx context.Context, id string) error
	// Probe runs a command in a container and returns its exit code once it
	// has ended. The end of ctx kills it.
	Probe(ctx context.Context, id string, command []string, out io.Writer) (code int, err error)
	// HealthChanged is told that a check has changed a container's health.
	HealthChanged(ctx context.Context, id string, status container.HealthStatus)
}

// Subject is a container: what is asked for it, and how it is.
type Subject struct {
	ID     string
	Dir    string // where its record is kept; goes with the container
	Policy container.RestartPolicy
	Check  *container.HealthConfig
	Shell  []string // of its image, for Check

	Running, Paused       bool
	StartedAt, FinishedAt time.Time // zero for one that was never started
	ExitCode              int
	NoStart               bool // its program could not be started
}

// View is what a Supervisor knows of a container.
type View struct {
	Restarting bool // it waits to be started again
	Restarts   int
	Health     *container.Health // nil without a health check; not to be changed
}

// Supervisor supervises any number of containers.
type Supervisor struct {
	containers Containers
	background func(func(context.Context))
	log        *slog.Logger

	// Lock order: mu, then a life's mu. Neither is held while Containers is called.
	mu    sync.Mutex
	lives map[string]*life
}

// life is the supervision of one container.
type life struct {
	mu      sync.Mutex
	dir     string
	rec     record
	running bool      // as far as was told
	ended   time.Time // FinishedAt of the last exit that was taken up
	removed bool
	restart *task // waits to start it, or does
	monitor *task // checks its health
}

// New returns a Supervisor. background runs a function on a goroutine whose
// context ends with the daemon, and waits for it.
func New(containers Containers, background func(func(context.Context)), log *slog.Logger) *Supervisor {
	return &Supervisor{containers: containers, background: background, log: log, lives: map[string]*life{}}
}

// task is a goroutine that can be ended.
type task struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (t *task) end() {
	if t != nil {
		t.cancel()
	}
}

func (s *Supervisor) begin(f func(context.Context)) *task {
	t, cancel := &task{done: make(chan struct{})}, make(chan context.CancelFunc)
	s.background(func(ctx context.Context) {
		defer close(t.done)
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		cancel <- stop
		f(ctx)
	})
	t.cancel = <-cancel
	return t
}

// life returns what is known of a container, from its record if it is new here.
func (s *Supervisor) life(id, dir string) (l *life, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, known = s.lives[id]; known {
		return l, true
	}
	rec, err := load(dir)
	if err != nil {
		s.log.Error("a container's restarts and health are forgotten", "container", id, "error", err)
	}
	l = &life{dir: dir, rec: rec}
	s.lives[id] = l
	return l, false
}

// set changes a life's record, in memory and on disk; l.mu is held.
func (s *Supervisor) set(l *life, change func(*record)) {
	before := l.rec
	change(&l.rec)
	if l.removed || before == l.rec {
		return
	}
	if err := l.rec.save(l.dir); err != nil {
		s.log.Error("record a container's restarts and health", "dir", l.dir, "error", err)
	}
}

// Look compares a container with what was told of it, for when things may have
// happened that were not told: at the daemon's start, above all.
func (s *Supervisor) Look(c Subject) {
	l, known := s.life(c.ID, c.Dir)
	l.mu.Lock()
	running := l.running
	l.mu.Unlock()
	switch {
	case c.Running && !running:
		s.started(l, c, known)
	case !c.Running && !c.StartedAt.IsZero() && (running || !known):
		s.exited(l, c, !known)
	}
}

// Started tells that a container was started.
func (s *Supervisor) Started(c Subject) {
	l, _ := s.life(c.ID, c.Dir)
	s.started(l, c, true)
}

func (s *Supervisor) started(l *life, c Subject, afresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running = true
	check, checked := CheckOf(c.Check, c.Shell)
	if !checked {
		return
	}
	if afresh || l.rec.Health == nil {
		s.set(l, func(r *record) {
			r.Health = &container.Health{Status: container.Starting, Log: []*container.HealthcheckResult{}}
		})
	}
	if !c.Paused {
		s.watch(l, c, check)
	}
}

// Exited tells that a container has ended.
func (s *Supervisor) Exited(c Subject) {
	l, _ := s.life(c.ID, c.Dir)
	s.exited(l, c, false)
}

func (s *Supervisor) exited(l *life, c Subject, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.FinishedAt.IsZero() && c.FinishedAt.Equal(l.ended) {
		return // Look was there before the event
	}
	l.running, l.ended = false, c.FinishedAt
	l.monitor.end()
	l.monitor = nil
	end := End{Code: c.ExitCode, Ran: c.FinishedAt.Sub(c.StartedAt), NoStart: c.NoStart, Stopped: l.rec.Stopped, Found: found}
	pause, again := Decide(c.Policy, end, l.rec.Restarts, l.rec.Pause)
	s.set(l, func(r *record) {
		if r.Health != nil { // as Docker has it of what does not run
			h := *r.Health
			h.Status = container.Unhealthy
			r.Health = &h
		}
		if again {
			r.Restarts++
			r.Pause = pause
		}
	})
	if !again || l.removed {
		return
	}
	if found {
		pause = 0 // whatever ended it, it has waited for the daemon
	}
	l.restart.end()
	var own *task
	own = s.begin(func(ctx context.Context) {
		s.startAfter(ctx, c.ID, pause)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.restart == own { // else it has ended again meanwhile
			l.restart = nil
		}
	})
	l.restart = own
}

func (s *Supervisor) startAfter(ctx context.Context, id string, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	if err := s.containers.Start(ctx, id); err != nil && ctx.Err() == nil {
		s.log.Error("restart a container", "container", id, "error", err)
	}
}

// Paused tells that a container is frozen: its health is not checked meanwhile.
func (s *Supervisor) Paused(c Subject) {
	l, _ := s.life(c.ID, c.Dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.monitor.end()
	l.monitor = nil
}

// Resumed tells that a container goes on.
func (s *Supervisor) Resumed(c Subject) {
	l, _ := s.life(c.ID, c.Dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	if check, ok := CheckOf(c.Check, c.Shell); ok && l.rec.Health != nil {
		s.watch(l, c, check)
	}
}

// Removed tells that a container is no more, before its directory goes.
func (s *Supervisor) Removed(id string) {
	s.mu.Lock()
	l := s.lives[id]
	delete(s.lives, id)
	s.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = true
	l.monitor.end()
	l.restart.end()
}

// StopByHand notes that a container is being stopped on purpose, before it is:
// it is not started again. A restart that is under way is over at its return.
func (s *Supervisor) StopByHand(id, dir string) {
	l, _ := s.life(id, dir)
	l.mu.Lock()
	s.set(l, func(r *record) { r.Stopped = true })
	restart := l.restart
	l.mu.Unlock()
	if restart != nil {
		restart.end()
		<-restart.done
	}
}

// StartByHand notes that a container is being started on purpose: its restarts
// are counted from now.
func (s *Supervisor) StartByHand(id, dir string) {
	l, _ := s.life(id, dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restart.end()
	l.restart = nil
	s.set(l, func(r *record) { r.Stopped, r.Restarts, r.Pause = false, 0, 0 })
}

// IDs returns the containers of which something is known.
func (s *Supervisor) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.lives))
}

// View returns what is known of a container.
func (s *Supervisor) View(id string) View {
	s.mu.Lock()
	l := s.lives[id]
	s.mu.Unlock()
	if l == nil {
		return View{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return View{Restarting: l.restart != nil && !l.running, Restarts: l.rec.Restarts, Health: l.rec.Health}
}

// watch begins to check a container's health; l.mu is held.
func (s *Supervisor) watch(l *life, c Subject, check Check) {
	l.monitor.end()
	// What an earlier daemon noted is a time of the wall clock, which may have been
	// put back since: the start period would then last for as long as that.
	begun := time.Now().Add(-max(0, time.Since(c.StartedAt)))
	l.monitor = s.begin(func(ctx context.Context) {
		for {
			l.mu.Lock()
			status := l.rec.Health.Status
			l.mu.Unlock()
			timer := time.NewTimer(check.Wait(time.Since(begun), status))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			up := time.Since(begun)
			s.result(ctx, l, c.ID, check, s.probe(ctx, c.ID, check), up)
		}
	})
}

// result takes up what a check has found of a container that was up so long
// when the check began, unless it was ended meanwhile.
func (s *Supervisor) result(ctx context.Context, l *life, id string, check Check, r container.HealthcheckResult, up time.Duration) {
	l.mu.Lock()
	if ctx.Err() != nil { // ended with l.mu held, so nothing falls between
		l.mu.Unlock()
		return
	}
	before := l.rec.Health.Status
	next := check.Next(*l.rec.Health, r, up)
	if next.Status != before { // the log alone is not worth a write every few seconds
		s.set(l, func(rec *record) { rec.Health = &next })
	} else {
		l.rec.Health = &next
	}
	l.mu.Unlock()
	if next.Status != before {
		s.containers.HealthChanged(ctx, id, next.Status)
	}
}

func (s *Supervisor) probe(ctx context.Context, id string, check Check) container.HealthcheckResult {
	ctx, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	var out limited
	r := container.HealthcheckResult{Start: time.Now()}
	code, err := s.containers.Probe(ctx, id, check.Command, &out)
	r.End, r.ExitCode, r.Output = time.Now(), code, out.String()
	switch {
	case ctx.Err() != nil:
		r.ExitCode = -1
		r.Output = fmt.Sprintf("Health check exceeded timeout (%v): %s", check.Timeout, r.Output)
	case err != nil:
		r.ExitCode, r.Output = -1, err.Error()
	}
	return r
}

// limited keeps the beginning of what is written to it, from any goroutine.
type limited struct {
	mu   sync.Mutex
	kept []byte
	more bool
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := min(maxOutput-len(l.kept), len(p))
	l.kept = append(l.kept, p[:room]...)
	l.more = l.more || room < len(p)
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.ToValidUTF8(string(slices.Clone(l.kept)), "\uFFFD")
	if l.more {
		text += "..."
	}
	return text
}
