package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/oom"
	"github.com/ferryos/ferry/internal/fault"
)

// killTime is how long a killed container gets to be gone.
const killTime = 10 * time.Second

// container is one container from its creation to its deletion.
type container struct {
	id     string
	server *server
	ctr    *libcontainer.Container
	main   *process
	pid    int
	tty    bool
	oom    *oom.Counter
	// profile is the name of its seccomp profile, "" for none; see filterCache.
	profile string

	// exited is closed, under server.mu, once exit is set.
	exited chan struct{}
	exit   runner.Exit

	// limiting is held while limits change and, to read, while an exec starts:
	// libcontainer refuses that while the limits leave out the devices.
	limiting sync.RWMutex

	mu        sync.Mutex
	startedAt time.Time // zero until start
	paused    bool
	execs     map[string]*process
}

// newContainer makes the container and its init, which waits for start.
func newContainer(s *server, r runner.CreateRequest) (_ *container, err error) {
	if r.Spec == nil || r.Spec.Process == nil || r.Spec.Linux == nil || r.Spec.Root == nil {
		return nil, fault.New(fault.Invalid, "container %s: the spec has no process, root or linux part", r.ID)
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: r.ID, NoNewKeyring: false, Spec: r.Spec,
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "container %s: %w", r.ID, err)
	}
	filter, err := s.filters.open(r.Profile)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", r.ID, err)
	}
	defer filter.close()
	if r.Profile != "" {
		config.Seccomp = filter.profile()
	}
	ctr, err := libcontainer.Create(filepath.Join(s.dir, "state"), r.ID, config)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", r.ID, err)
	}
	c := &container{id: r.ID, server: s, ctr: ctr, profile: r.Profile, tty: r.TTY, exited: make(chan struct{}), execs: map[string]*process{}}
	out := &output{}
	defer func() {
		if err != nil {
			out.close()
			err = errors.Join(err, ctr.Destroy())
		}
	}()
	if r.LogPath != "" {
		log, err := openLog(r.LogPath, r.LogMaxBytes, r.LogMaxFiles)
		if err != nil {
			return nil, err
		}
		out.log = log
	}
	owner, err := ownerIn(*config)
	if err == nil {
		c.main, err = newProcess(r.Spec.Process, processOptions{
			init: true, tty: r.TTY, stdin: r.Stdin, stdinOnce: r.StdinOnce, owner: owner, filter: filter, out: out})
	}
	if err != nil {
		return nil, err
	}
	if err := c.main.start(ctr); err != nil {
		return nil, startError(r.ID, err)
	}
	filter.keep()
	c.pid, _ = c.main.lib.Pid()
	if c.oom, err = openOOM(ctr); err != nil {
		c.main.kill()
		c.main.wait()
		c.main.drain()
		return nil, err
	}
	go c.reap()
	return c, nil
}

// startError names the container and drops libcontainer's own preamble.
func startError(id string, err error) error {
	return fmt.Errorf("container %s: %w", id, err)
}

// reap waits for the end of the container and tells it.
func (c *container) reap() {
	code := c.main.wait()
	// Without a PID namespace of its own, what the main process leaves behind lives on.
	if !c.ctr.Config().Namespaces.IsPrivate(configs.NEWPID) {
		_ = c.ctr.Signal(unix.SIGKILL) // there may be nothing left
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
	st := runner.State{ID: c.id, Status: runner.StatusRunning, PID: c.pid}
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
	if err := c.ctr.Exec(); err != nil {
		return startError(c.id, err)
	}
	c.server.announce(runner.Event{Type: runner.EventStart, ID: c.id}, nil)
	watchOOM(c.oom, c.ctr, func() {
		c.server.announce(runner.Event{Type: runner.EventOOM, ID: c.id}, nil)
	})
	return nil
}

// signal sends sig to the main process, or to all processes.
func (c *container) signal(sig syscall.Signal, all bool) error {
	if c.hasExited() {
		return nil
	}
	if sig == unix.SIGKILL || !all {
		if sig != unix.SIGKILL {
			c.awaitProgram()
		}
		err := c.ctr.Signal(sig)
		if isGone(err) || errors.Is(err, libcontainer.ErrNotRunning) {
			return nil
		}
		return err
	}
	pids, err := c.ctr.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !isGone(err) {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

// initName is what libcontainer calls the process that becomes the container's program.
const initName = "runc:[2:INIT]\n"

// programTime is how long a signal, or who asks for the processes, waits for
// the program to be in place.
const programTime = 2 * time.Second

// awaitProgram waits until the container's program has taken the place of
// libcontainer's, which is let go some time before: as process 1 it would not
// die of a signal, as the program may, but end with Go's own exit code 2, and
// it is nothing to show.
func (c *container) awaitProgram() {
	c.mu.Lock()
	started := !c.startedAt.IsZero()
	c.mu.Unlock()
	if !started {
		return
	}
	for deadline := time.Now().Add(programTime); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.pid))
		if err != nil || string(name) != initName {
			return
		}
	}
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
	if err := c.ctr.Destroy(); err != nil {
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
	do := c.ctr.Resume
	if freeze {
		do = c.ctr.Pause
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
	c.limiting.Lock()
	defer c.limiting.Unlock()
	config := c.ctr.Config()
	limits := *config.Cgroups.Resources
	limits.SkipDevices = true // they stay as they are; on v2 they would be a new program in the kernel each time
	defer func() { limits.SkipDevices = false }()
	if l.Memory != nil {
		set(&limits.Memory, l.Memory.Limit)
		set(&limits.MemorySwap, l.Memory.Swap)
		set(&limits.MemoryReservation, l.Memory.Reservation)
	}
	if l.CPU != nil {
		set(&limits.CpuShares, l.CPU.Shares)
		set(&limits.CpuQuota, l.CPU.Quota)
		set(&limits.CpuPeriod, l.CPU.Period)
		if l.CPU.Shares != nil {
			limits.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*l.CPU.Shares)
		}
		if l.CPU.Cpus != "" {
			limits.CpusetCpus = l.CPU.Cpus
		}
		if l.CPU.Mems != "" {
			limits.CpusetMems = l.CPU.Mems
		}
	}
	if l.BlockIO != nil && l.BlockIO.Weight != nil {
		limits.BlkioWeight = *l.BlockIO.Weight
	}
	if l.Pids != nil {
		limits.PidsLimit = l.Pids.Limit
	}
	if len(l.Unified) > 0 {
		limits.Unified = l.Unified
	}
	cgroup := *config.Cgroups
	cgroup.Resources = &limits
	config.Cgroups = &cgroup
	if err := c.ctr.Set(config); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}
