package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/cgroup"
	"github.com/ferryos/ferry/internal/engine/runner/launch"
	"github.com/ferryos/ferry/internal/engine/runner/oom"
	"github.com/ferryos/ferry/internal/engine/runner/seccomp"
	"github.com/ferryos/ferry/internal/fault"
)

// killTime is how long a killed container gets to be gone.
const killTime = 10 * time.Second

// container is one container from its creation to its deletion.
type container struct {
	id     string
	server *server
	group  *cgroup.Group
	ctr    *launch.Container
	filter *seccomp.Program // nil: none
	users  *runner.Users    // of its user namespace, nil: this machine's
	main   *process
	oom    *oom.Counter

	// exited is closed, under server.mu, once exit is set.
	exited chan struct{}
	exit   runner.Exit

	mu        sync.Mutex
	startedAt time.Time // zero until start
	paused    bool
	execs     map[string]*process
}

// newContainer makes the container and its first process, which waits for start.
func newContainer(s *server, r runner.CreateRequest) (_ *container, err error) {
	if r.Spec == nil || r.Spec.Process == nil || r.Spec.Linux == nil || r.Spec.Root == nil {
		return nil, fault.New(fault.Invalid, "container %s: the spec has no process, root or linux part", r.ID)
	}
	c := &container{id: r.ID, server: s, exited: make(chan struct{}), execs: map[string]*process{}}
	if c.filter, err = s.filters.open(r.Profile); err != nil {
		return nil, named(r.ID, err)
	}
	if err := os.MkdirAll(c.dir(), 0o700); err != nil {
		return nil, named(r.ID, err)
	}
	if c.group, err = cgroup.New(r.Spec.Linux.CgroupsPath, r.Spec.Linux.Resources); err != nil {
		return nil, named(r.ID, errors.Join(err, os.RemoveAll(c.dir())))
	}
	out := &output{}
	defer func() {
		if err != nil {
			out.close()
			err = named(r.ID, errors.Join(err, c.group.Remove(), os.RemoveAll(c.dir())))
		}
	}()
	if r.LogPath != "" {
		if out.log, err = openLog(r.LogPath, r.LogMaxBytes, r.LogMaxFiles); err != nil {
			return nil, err
		}
	}
	c.users = s.usersOf(r.Spec)
	if c.main, err = newProcess(processOptions{tty: r.TTY, stdin: r.Stdin, stdinOnce: r.StdinOnce, init: true,
		owner: ownerOf(c.users, r.Spec.Process.User), out: out}); err != nil {
		return nil, err
	}
	r.Spec.Process.Terminal = r.TTY
	if err := c.main.start(func(stdio [3]*os.File) (*launch.Process, error) {
		c.ctr, err = s.launcher.Create(launch.Options{ID: r.ID, Spec: r.Spec, Group: c.group, Filter: c.filter, Users: c.users,
			Stdio: stdio, Bundle: c.dir()})
		if err != nil {
			return nil, err
		}
		return c.ctr.Main, nil
	}); err != nil {
		return nil, err
	}
	c.oom = c.group.OOM()
	go c.reap()
	return c, nil
}

// dir tells whoever finds the runner dead of the container, and is where hooks
// find its spec.
func (c *container) dir() string { return filepath.Join(runner.ContainersDir(c.server.dir), c.id) }

// named says which container an error is of.
func named(id string, err error) error { return fmt.Errorf("container %s: %w", id, err) }

// reap waits for the end of the container and tells it.
func (c *container) reap() {
	code := c.main.wait()
	// Without a PID namespace of its own, what the main process leaves behind lives on.
	if !c.ctr.OwnPID() {
		_ = c.group.Kill(unix.SIGKILL) // there may be nothing left
	}
	c.main.drain()
	c.mu.Lock()
	startedAt := c.startedAt
	c.mu.Unlock()
	exit := runner.Exit{Code: code, OOMKilled: c.oom.Kills() > 0, StartedAt: startedAt, FinishedAt: time.Now()}
	// On disk first: should this process be killed, the exit is known.
	if err := runner.WriteExit(c.server.dir, c.id, exit); err != nil {
		fmt.Fprintf(os.Stderr, "container %s: record its exit: %v\n", c.id, err)
	}
	c.server.announce(runner.Event{Type: runner.EventExit, ID: c.id, Exit: exit}, func() {
		c.exit = exit
		close(c.exited)
	})
}

func (c *container) hasExited() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

func (c *container) state() runner.State {
	if c.hasExited() {
		return runner.State{ID: c.id, Status: runner.StatusExited, Exit: &c.exit}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st := runner.State{ID: c.id, Status: runner.StatusRunning, PID: c.ctr.Main.PID}
	switch {
	case c.startedAt.IsZero():
		st.Status = runner.StatusCreated
	case c.paused:
		st.Status = runner.StatusPaused
	}
	return st
}

// start lets the program run.
func (c *container) start() error {
	c.mu.Lock()
	if !c.startedAt.IsZero() {
		c.mu.Unlock()
		return fault.New(fault.Conflict, "container %s was started already", c.id)
	}
	c.startedAt = time.Now()
	c.mu.Unlock()
	if err := c.ctr.Start(); err != nil {
		return named(c.id, err)
	}
	c.server.announce(runner.Event{Type: runner.EventStart, ID: c.id}, nil)
	c.group.WatchOOM(c.oom, func() {
		c.server.announce(runner.Event{Type: runner.EventOOM, ID: c.id}, nil)
	})
	return nil
}

// signal sends sig to the main process, or to all processes.
func (c *container) signal(sig syscall.Signal, all bool) error {
	if c.hasExited() {
		return nil
	}
	if all || sig == unix.SIGKILL && !c.ctr.OwnPID() {
		return c.group.Kill(sig)
	}
	if err := c.main.signal(sig); err != nil {
		return named(c.id, err)
	}
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if sig == unix.SIGKILL && paused {
		return c.group.Thaw() // v1 lets no frozen process die
	}
	return nil
}

// destroy takes the container away, killing it first if force is set.
func (c *container) destroy(force bool) error {
	if !c.hasExited() {
		if !force {
			return fault.New(fault.Conflict, "container %s is running", c.id)
		}
		if err := c.signal(unix.SIGKILL, true); err != nil {
			return fmt.Errorf("kill container %s: %w", c.id, err)
		}
		select {
		case <-c.exited:
		case <-time.After(killTime):
			return fault.New(fault.Internal, "container %s has not ended %v after SIGKILL", c.id, killTime)
		}
	}
	c.mu.Lock()
	execs := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		execs = append(execs, p)
	}
	c.mu.Unlock()
	for _, p := range execs {
		p.kill()
		<-p.done
	}
	err := errors.Join(c.group.Remove(), c.ctr.Stopped(), os.RemoveAll(c.dir()))
	c.ctr.Close()
	if err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	return nil
}

// resize sets the size of the main process's terminal, or of an exec's.
func (c *container) resize(execID string, size [2]uint) error {
	p := c.main
	if execID != "" {
		c.mu.Lock()
		p = c.execs[execID]
		c.mu.Unlock()
	}
	if p == nil {
		return fault.New(fault.NotFound, "container %s has no exec %s", c.id, execID)
	}
	return p.resize(size)
}

func (c *container) reopenLog() error {
	if c.main.out.log == nil {
		return nil
	}
	return c.main.out.log.reopen()
}

func (c *container) pause(freeze bool) error {
	do := c.group.Thaw
	if freeze {
		do = c.group.Freeze
	}
	if err := do(); err != nil {
		return fault.New(fault.Conflict, "container %s: %w", c.id, err)
	}
	c.mu.Lock()
	c.paused = freeze
	c.mu.Unlock()
	return nil
}

// update changes the limits that are given and keeps the others.
func (c *container) update(l specs.LinuxResources) error {
	if err := c.group.Update(l); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}
