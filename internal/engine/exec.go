package engine

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

// running returns the container and its runner, or Conflict if it does not run.
func (e *Engine) running(id string) (*container, *runner.Client, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, nil, err
	}
	// One that has exited needs no runner: its pod, being idle, lets go of it.
	client, s := c.pod.client(), c.snapshot()
	if s.State.alive() && c.pod.unreachable() {
		return nil, nil, c.pod.errNoAnswer()
	}
	if client == nil || !s.State.alive() {
		return nil, nil, fault.New(fault.Conflict, "container %s is not running", s.ID).Hint("start it first")
	}
	return c, client, nil
}

// Exec runs one more process in a running container and returns its exit code
// once it has ended and all its output is written. Cancelling ctx kills it,
// unless it is detached.
func (e *Engine) Exec(ctx context.Context, id string, spec ExecSpec, streams Streams) (int, error) {
	c, client, err := e.running(id)
	if err != nil {
		return 0, err
	}
	process, err := e.execProcess(c, spec)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", id, err)
	}
	defer c.pod.streams.begin()()
	execID := newID()
	rs := runnerStreams(streams)
	if spec.OnStart != nil {
		rs.Started = func() { spec.OnStart(execID) }
	}
	code, err := client.Exec(ctx, runner.ExecRequest{
		ContainerID: c.snapshot().ID, ExecID: execID, Process: process, TTY: spec.TTY, Stdin: streams.Stdin != nil,
		Detached: spec.Detached}, rs)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", id, err)
	}
	return code, nil
}

// execProcess is the container's process with another program.
func (e *Engine) execProcess(c *container, spec ExecSpec) (*specs.Process, error) {
	if len(spec.Args) == 0 {
		return nil, fault.New(fault.Invalid, "no command given").Hint("name the program to run")
	}
	rec := c.record()
	cs := rec.Container.Spec
	cs.TTY, cs.ConsoleSize, cs.Env = spec.TTY, spec.ConsoleSize, slices.Concat(cs.Env, spec.Env)
	cs.WorkingDir = cmp.Or(spec.WorkingDir, cs.WorkingDir)
	cs.Security.Privileged = cs.Security.Privileged || spec.Privileged
	root := e.rootfsDir(rec.Container.ID)
	named, err := groupIDs(root, cs.Security.GroupNames)
	if err != nil {
		return nil, err
	}
	u, err := resolveUser(root, cmp.Or(spec.User, cs.Security.User, rec.Image.User),
		append(named, cs.Security.SupplementalGroups...), cs.Security.StrictGroups)
	if err != nil {
		return nil, err
	}
	caps, err := effectiveCaps(cs.Security, e.machine.caps)
	if err != nil {
		return nil, err
	}
	profile, err := e.apparmor.profile(cs.Security)
	if err != nil {
		return nil, err
	}
	return specInput{apparmor: profile, container: cs, hostname: podHostname(c.pod.snapshot()), image: rec.Image, argv: spec.Args, user: u,
		minOOMAdj: e.machine.minOOMAdj}.process(caps), nil
}

func runnerStreams(s Streams) runner.Streams {
	return runner.Streams{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Resize: s.Resize}
}

// Attach connects streams to a container's main process, from now on. On a
// created container it waits for the start and misses nothing of the output.
// It returns when the container has exited and its output is written, or when
// ctx ends.
func (e *Engine) Attach(ctx context.Context, id string, streams Streams) error {
	a, err := e.announce(id, false)
	if err != nil {
		return err
	}
	return a.Attach(ctx, streams)
}

// Attachment is a caller who is going to attach to a container's main process.
type Attachment struct {
	container *container
	placed    <-chan struct{}
	waits     bool
	attached  func() // lets the program start
}

// Announce says that the caller is going to attach to the run that is under way
// or, if there is none, to the next one. That does not begin before the caller
// has attached, or has closed the Attachment.
func (e *Engine) Announce(id string) (*Attachment, error) { return e.announce(id, true) }

func (e *Engine) announce(id string, next bool) (*Attachment, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	a := &Attachment{container: c, attached: func() {}}
	c.mu.Lock()
	defer c.mu.Unlock()
	a.placed = c.placed
	if next && c.rec.Container.State == StateExited {
		if c.next == nil {
			c.next = make(chan struct{})
		}
		a.placed = c.next
	}
	select {
	case <-a.placed:
	default:
		a.waits = true
		c.attaching.Add(1)
		a.attached = sync.OnceFunc(c.attaching.Done)
	}
	return a, nil
}

// Close ends the announcement: the start waits for Attach no more.
func (a *Attachment) Close() { a.attached() }

// Attach connects the streams, as Engine.Attach does. Call it once.
func (a *Attachment) Attach(ctx context.Context, streams Streams) error {
	defer a.Close()
	select {
	case <-a.placed:
	case <-a.container.removed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	c := a.container
	defer c.pod.streams.begin()()
	client := c.pod.client()
	if client == nil {
		return nil
	}
	rs := runnerStreams(streams)
	rs.Started = a.attached
	id := c.snapshot().ID
	if err := client.Attach(ctx, id, rs); err != nil && !(a.waits && fault.Is(err, fault.NotFound)) {
		return fmt.Errorf("attach to %s: %w", id, err)
	}
	return nil
}

// ResizeContainer sets the size of a container's terminal.
func (e *Engine) ResizeContainer(ctx context.Context, id string, cols, rows uint) error {
	return e.ResizeExec(ctx, id, "", cols, rows)
}

// ResizeExec sets the size of the terminal of a process that Exec started.
func (e *Engine) ResizeExec(ctx context.Context, id, execID string, cols, rows uint) error {
	c, client, err := e.running(id)
	if err != nil {
		return err
	}
	return client.Resize(ctx, c.snapshot().ID, execID, [2]uint{cols, rows})
}

// Signal sends a signal to a container's main process.
func (e *Engine) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	c, client, err := e.running(id)
	if err != nil {
		return err
	}
	return client.Signal(ctx, c.snapshot().ID, sig, false)
}

// Pause freezes all processes of a container; Resume lets them go on.
func (e *Engine) Pause(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx) // a caller who leaves must not leave half a change
	return e.onRunning(id, StateRunning, func(c *container, client *runner.Client) error {
		if err := client.Pause(ctx, c.snapshot().ID); err != nil {
			return err
		}
		return e.frozen(c, StateRunning, StatePaused, EventPaused)
	})
}

// Resume thaws a paused container.
func (e *Engine) Resume(ctx context.Context, id string) error {
	return e.onRunning(id, StatePaused, func(c *container, client *runner.Client) error { return e.resume(ctx, c, client) })
}

// onRunning calls f with a container in the given state; its op is held.
func (e *Engine) onRunning(id string, state ContainerState, f func(*container, *runner.Client) error) error {
	c, client, err := e.running(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if s := c.snapshot(); s.State != state {
		return fault.New(fault.Conflict, "container %s is %s, not %s", s.ID, s.State, state)
	}
	return f(c, client)
}

// resume thaws a paused container; c.op is held.
func (e *Engine) resume(ctx context.Context, c *container, client *runner.Client) error {
	if err := client.Resume(context.WithoutCancel(ctx), c.snapshot().ID); err != nil {
		return err
	}
	return e.frozen(c, StatePaused, StateRunning, EventResumed)
}

// frozen records that a container was frozen or thawed.
func (e *Engine) frozen(c *container, from, to ContainerState, kind EventType) error {
	if err := e.setContainer(c, func(s *Container) {
		if s.State == from { // it may have exited meanwhile
			s.State = to
		}
	}); err != nil {
		return err
	}
	s := c.snapshot()
	e.publish(kind, c.pod.snapshot(), &s)
	return nil
}

// UpdateContainer changes a container's limits, at once if it runs.
func (e *Engine) UpdateContainer(ctx context.Context, id string, r Resources) error {
	ctx = context.WithoutCancel(ctx) // a caller who leaves must not leave half a change
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	s := c.snapshot()
	if c.isRemoved() {
		return fault.New(fault.NotFound, "container %s was removed", s.ID)
	}
	if c.pod.unreachable() && s.State.alive() {
		return c.pod.errNoAnswer()
	}
	if client := c.pod.client(); client != nil && s.State.alive() {
		if !e.machine.hugetlb {
			r.HugePages = nil
		}
		limits, err := linuxResources(r, s.Spec.Security.Privileged, nil)
		if err != nil {
			return err
		}
		limits.Devices = nil // rules stay
		if r.Pids == 0 && s.Spec.Resources.Pids > 0 {
			none := int64(-1)
			limits.Pids = &specs.LinuxPids{Limit: &none}
		}
		if err := client.Update(ctx, s.ID, limits); err != nil {
			return fmt.Errorf("update container %s: %w", s.ID, err)
		}
	}
	return e.setContainer(c, func(s *Container) { s.Spec.Resources = r })
}

// AmendContainer changes what a container's owner keeps of it: its name and
// its Extra, neither of which the engine acts upon.
func (e *Engine) AmendContainer(_ context.Context, id, name string, extra []byte) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	return e.setContainer(c, func(s *Container) { s.Spec.Name, s.Spec.Extra = name, extra })
}

// ReopenLog has the container's log written to its path anew, after a rotation.
func (e *Engine) ReopenLog(ctx context.Context, id string) error {
	c, client, err := e.running(id)
	if err != nil {
		return err
	}
	return client.ReopenLog(ctx, c.snapshot().ID)
}

// Processes returns the process ids of a running container, as the host sees them.
func (e *Engine) Processes(ctx context.Context, id string) ([]int, error) {
	c, client, err := e.running(id)
	if err != nil {
		return nil, err
	}
	return client.Processes(ctx, c.snapshot().ID)
}

// Stats returns a running container's usage; of one that does not run, only
// its writable layer's.
func (e *Engine) Stats(ctx context.Context, id string) (Stats, error) {
	out, err := e.Usage(ctx, id)
	if usage, err := e.opt.Store.RootfsUsage(ctx, id); err == nil {
		out.RootfsBytes, out.RootfsInodes = uint64(usage.Size), uint64(usage.Inodes)
	}
	return out, err
}

// Usage is Stats without the writable layer, whose files it would have to count.
func (e *Engine) Usage(ctx context.Context, id string) (Stats, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return Stats{}, err
	}
	s := c.snapshot()
	out := Stats{Time: time.Now()}
	client := c.pod.client()
	if client == nil || !s.State.alive() {
		return out, nil
	}
	r, err := client.Stats(ctx, s.ID)
	if err != nil {
		return out, fmt.Errorf("stats of %s: %w", s.ID, err)
	}
	out.CPUNanos, out.Pids = r.CPUNanos, r.Pids
	out.MemoryUsage, out.MemoryWorkingSet, out.MemoryRSS, out.MemoryLimit = r.MemoryUsage, r.MemoryWorkingSet, r.MemoryRSS, r.MemoryLimit
	out.PageFaults, out.MajorPageFaults, out.Detail = r.PageFaults, r.MajorPageFaults, r.Detail
	return out, nil
}

// RootfsPath returns where the container's root is mounted, mounting it if it
// is not. It stays mounted until the container is removed. In a pod with a user
// namespace the files' owners are those that PodSpec.Users says for the host.
func (e *Engine) RootfsPath(ctx context.Context, id string) (string, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return "", err
	}
	c.op.Lock()
	defer c.op.Unlock()
	return e.mountRootfs(ctx, c.snapshot().ID, c.pod.snapshot().Spec.Users)
}

// RootfsDirs are the directories that a container's root is made of, as they are
// on this machine.
type RootfsDirs struct {
	Lower  string // of the image's layers, divided by colons, the uppermost first; "" where there are none
	Upper  string // what the container has written
	Work   string // overlayfs's own; "" without layers below
	Merged string // where the whole is mounted, if it is
}

// RootfsDirs returns the directories of a container's root.
func (e *Engine) RootfsDirs(id string) (RootfsDirs, error) {
	mounts, err := e.opt.Store.RootfsMounts(id)
	if err != nil {
		return RootfsDirs{}, err
	}
	dirs := RootfsDirs{Merged: e.rootfsDir(id)}
	for _, m := range mounts {
		if m.Type == "bind" {
			dirs.Upper = m.Source
		}
		for _, option := range m.Options {
			switch key, value, _ := strings.Cut(option, "="); key {
			case "lowerdir":
				dirs.Lower = value
			case "upperdir":
				dirs.Upper = value
			case "workdir":
				dirs.Work = value
			}
		}
	}
	return dirs, nil
}

// PortForward copies between conn and a TCP port of the pod's loopback until
// either side closes or ctx ends. It closes conn.
func (e *Engine) PortForward(ctx context.Context, podID string, port int, conn io.ReadWriteCloser) error {
	defer conn.Close()
	p, err := e.findPod(podID)
	if err != nil {
		return err
	}
	pod := p.snapshot()
	if pod.State != PodReady {
		return fault.New(fault.Conflict, "pod %s is not running", pod.ID)
	}
	if pod.Spec.Network == ModeNone {
		return fault.New(fault.Unsupported, "pod %s has no network", pod.ID)
	}
	addr := net.JoinHostPort("localhost", strconv.Itoa(port))
	var remote net.Conn
	if pod.Spec.Network == ModeHost {
		remote, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	} else {
		remote, err = e.opt.Network.DialPod(ctx, pod.NetnsPath, "tcp", addr)
	}
	if err != nil {
		return fmt.Errorf("forward to port %d of pod %s: %w", port, pod.ID, err)
	}
	stop := context.AfterFunc(ctx, func() { remote.Close(); conn.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(remote, conn) // a side that is gone ends the other direction too
		if half, ok := remote.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err = io.Copy(conn, remote)
	remote.Close()
	conn.Close()
	<-sent
	return err
}
