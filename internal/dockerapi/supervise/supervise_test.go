package supervise

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

// limit bounds what a test waits for; nothing comes near it unless it is broken.
const limit = 20 * time.Second

// machine is containers in memory: a start is told at once.
type machine struct {
	t *testing.T
	s *Supervisor

	mu     sync.Mutex
	starts int
	code   int // of the next checks
	health []container.HealthStatus
	known  map[string]Subject
}

// newMachine starts a supervisor that ends with the test.
func newMachine(t *testing.T) *machine {
	m := &machine{t: t, known: map[string]Subject{}}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); work.Wait() })
	m.s = New(m, func(f func(context.Context)) { work.Go(func() { f(ctx) }) }, slog.New(slog.DiscardHandler))
	return m
}

func (m *machine) Start(_ context.Context, id string) error {
	m.mu.Lock()
	c := m.known[id]
	m.starts++
	m.mu.Unlock()
	c.Running, c.StartedAt = true, time.Now()
	m.s.Started(c)
	return nil
}

func (m *machine) Probe(_ context.Context, _ string, _ []string, out io.Writer) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.code < 0 {
		return 0, errors.New("cannot run it")
	}
	_, err := io.WriteString(out, "looked")
	return m.code, err
}

func (m *machine) HealthChanged(_ context.Context, _ string, status container.HealthStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.health = append(m.health, status)
}

// subject is a container with that policy, which runs.
func (m *machine) subject(id string, policy container.RestartPolicyMode) Subject {
	c := Subject{ID: id, Dir: filepath.Join(m.t.TempDir(), id), Policy: container.RestartPolicy{Name: policy}, Running: true, StartedAt: time.Now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known[id] = c
	return c
}

// ended is c after its end.
func ended(c Subject) Subject {
	c.Running, c.FinishedAt, c.ExitCode = false, time.Now(), 1
	return c
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not true: %s", what)
		}
	}
}

func TestRestarts(t *testing.T) {
	m := newMachine(t)
	c := m.subject("a", "always")
	m.s.Started(c)
	m.s.Exited(ended(c))
	if v := m.s.View("a"); !v.Restarting || v.Restarts != 1 {
		t.Errorf("waiting: %+v", v)
	}
	m.eventually("it runs again", func() bool { return !m.s.View("a").Restarting })
	// By hand: not while it waits either.
	m.s.Exited(ended(c))
	m.s.StopByHand("a", c.Dir)
	if v := m.s.View("a"); v.Restarting {
		t.Errorf("stopped while it waited: %+v", v)
	}
	m.mu.Lock()
	starts := m.starts
	m.mu.Unlock()
	// The next daemon knows, and starts what is always to run.
	next := newMachine(t)
	next.known["a"] = c
	next.s.Look(ended(c))
	next.eventually("another daemon starts it", func() bool { next.mu.Lock(); defer next.mu.Unlock(); return next.starts == 1 })
	unless := c
	unless.Policy.Name = "unless-stopped"
	third := newMachine(t)
	third.known["a"] = unless
	third.s.Look(ended(unless))
	if v := third.s.View("a"); v.Restarting {
		t.Errorf("stopped by hand before: %+v", v)
	}
	third.s.StartByHand("a", c.Dir)
	if _, err := os.Stat(filepath.Join(c.Dir, fileName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with nothing to remember there is a record: %v", err)
	}
	if m.starts != starts {
		t.Errorf("%d starts after the stop", m.starts-starts)
	}
}

// TestExitTakenUpTwice: an exit that Look has seen is told once more by its event.
func TestExitTakenUpTwice(t *testing.T) {
	m := newMachine(t)
	c := m.subject("a", "always")
	end := ended(c)
	m.s.Started(c)
	m.s.Look(end)
	m.s.Exited(end)
	if v := m.s.View("a"); v.Restarts != 1 {
		t.Errorf("counted twice: %+v", v)
	}
	m.eventually("it runs again", func() bool { return !m.s.View("a").Restarting })
	m.s.Exited(end) // late: it runs
	if v := m.s.View("a"); v.Restarting || v.Restarts != 1 {
		t.Errorf("late: %+v", v)
	}
	if ids := m.s.IDs(); len(ids) != 1 || ids[0] != "a" {
		t.Errorf("%v", ids)
	}
}

func TestUnreadableRecord(t *testing.T) {
	m := newMachine(t)
	c := m.subject("a", "always")
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, fileName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.s.Look(ended(c))
	m.eventually("it is started nevertheless", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.starts == 1 })
}

func TestHealthLife(t *testing.T) {
	m := newMachine(t)
	c := m.subject("a", "no")
	c.Check = &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: time.Millisecond, Retries: 2}
	m.s.Started(c)
	is := func(want container.HealthStatus) func() bool {
		return func() bool { h := m.s.View("a").Health; return h != nil && h.Status == want }
	}
	m.eventually("healthy", is(container.Healthy))
	m.mu.Lock()
	m.code = -1
	m.mu.Unlock()
	m.eventually("unhealthy", is(container.Unhealthy))
	if h := m.s.View("a").Health; h.Log[len(h.Log)-1].Output != "cannot run it" || h.Log[len(h.Log)-1].ExitCode != -1 {
		t.Errorf("%+v", h.Log[len(h.Log)-1])
	}
	m.s.Paused(c)
	m.mu.Lock()
	m.code = 0
	m.mu.Unlock()
	if !is(container.Unhealthy)() {
		t.Error("checked while frozen")
	}
	m.s.Resumed(c)
	m.eventually("healthy again", is(container.Healthy))
	next := newMachine(t)
	next.s.Look(c)
	if h := next.s.View("a").Health; h == nil || h.Status != container.Healthy {
		t.Errorf("for another daemon: %+v", h)
	}
	m.s.Removed("a")
	if v := m.s.View("a"); v.Health != nil {
		t.Errorf("removed: %+v", v)
	}
}

// TestHammer does everything to a few containers at once: nothing hangs, and
// in the end what was stopped by hand stays so.
// TestClockPutBack: by the clock, a container that an earlier daemon started
// starts only in a year. Its start period, its health and its restarts do not
// wait for that; nor is a run that ended before it began one that lasted.
func TestClockPutBack(t *testing.T) {
	m := newMachine(t)
	c := m.subject("a", "always")
	c.StartedAt = time.Now().Round(0).AddDate(1, 0, 0)
	c.Check = &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: time.Millisecond, Retries: 2, StartPeriod: 50 * time.Millisecond, StartInterval: time.Millisecond}
	m.code = 1
	m.s.Look(c)
	m.eventually("unhealthy after its start period", func() bool { h := m.s.View("a").Health; return h != nil && h.Status == container.Unhealthy })
	m.s.Exited(ended(c))
	if v := m.s.View("a"); !v.Restarting || v.Restarts != 1 {
		t.Errorf("ended: %+v", v)
	}
	m.eventually("it runs again", func() bool { return !m.s.View("a").Restarting })
	if pause, again := Decide(c.Policy, End{Ran: -365 * 24 * time.Hour}, 1, shortestPause); !again || pause != 2*shortestPause {
		t.Errorf("again %v after %v", again, pause)
	}
}

func TestHammer(t *testing.T) {
	m := newMachine(t)
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b", "c"} {
		c := m.subject(id, "always")
		c.Check = &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: time.Millisecond}
		for _, f := range []func(){
			func() { m.s.Started(c) }, func() { m.s.Exited(ended(c)) }, func() { m.s.Paused(c) }, func() { m.s.Resumed(c) }, func() { m.s.Look(c) },
			func() { m.s.View(id) }, func() { m.s.StopByHand(id, c.Dir) }, func() { m.s.StartByHand(id, c.Dir) },
		} {
			wg.Go(func() {
				for range 50 {
					f()
				}
			})
		}
	}
	wg.Wait()
	for _, id := range []string{"a", "b", "c"} {
		c := m.known[id]
		m.s.StopByHand(id, c.Dir)
		m.s.Exited(ended(c))
		if v := m.s.View(id); v.Restarting {
			t.Errorf("%s: %+v", id, v)
		}
		m.s.Removed(id)
	}
}

func TestLimitedOutput(t *testing.T) {
	var out limited
	for range 3 {
		if _, err := out.Write(make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
	}
	if s := out.String(); len(s) != maxOutput+len("...") {
		t.Errorf("%d bytes", len(s))
	}
}
