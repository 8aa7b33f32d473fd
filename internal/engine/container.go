package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

// Exit codes of programs that could not be started, as a shell has them.
const (
	exitCannotRun = 126
	exitNotFound  = 127
	ExitNoStart   = 128 // it was not even tried
)

// StartCode is the exit code of a container or exec that could not be started.
// The kernel's reason comes from another process, as text alone.
func StartCode(err error) int {
	switch msg := err.Error(); {
	case strings.Contains(msg, "executable file not found"), strings.Contains(msg, "no such file or directory"):
		return exitNotFound
	case strings.Contains(msg, "permission denied"), strings.Contains(msg, "exec format error"), strings.Contains(msg, "is a directory"):
		return exitCannotRun
	}
	return ExitNoStart
}

// containerRecord is what is kept of a container on disk.
type containerRecord struct {
	Container Container
	Cgroup    string
	Image     imageConfig
}

// container is a container in memory. op serialises what changes it, mu guards
// the fields.
type container struct {
	op sync.Mutex

	mu  sync.Mutex
	rec containerRecord
	// ended is closed once the container has exited or is removed, and made
	// anew when it is started again.
	ended chan struct{}
	// attaching counts callers who want its output from the first byte, placed
	// is closed when the runner has the container and they can attach. next is
	// placed of the run to come, nil until somebody waits for it.
	attaching sync.WaitGroup
	placed    chan struct{}
	// starting is set until the start is published; early is the exit of one
	// that ended before, to be published after it.
	starting bool
	early    *Container
	unsaved  chan struct{} // closed once the exit is on disk; nil if it is, see keepExit
	next     chan struct{}
	removed  chan struct{} // closed once it is, under mu with its record

	pod *pod
}

func newContainer(p *pod, rec containerRecord) *container {
	return &container{pod: p, rec: rec, ended: make(chan struct{}), placed: make(chan struct{}), removed: make(chan struct{})}
}

// isRemoved reports whether c was removed since the caller found it.
func (c *container) isRemoved() bool {
	select {
	case <-c.removed:
		return true
	default:
		return false
	}
}

func (c *container) record() containerRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

func (c *container) snapshot() Container { return c.record().Container }
func (c *container) cgroup() string      { return c.record().Cgroup }

func (s ContainerState) alive() bool { return s == StateRunning || s == StatePaused }

// setContainer changes the container's record in memory and on disk.
func (e *Engine) setContainer(c *container, change func(*Container)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isRemoved() { // or its record would be there again
		return fault.New(fault.NotFound, "container %s was removed", c.rec.Container.ID)
	}
	change(&c.rec.Container)
	return e.ctrs.save(c.rec.Container.ID, c.rec)
}

func (e *Engine) findContainer(key string) (*container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return find(e.ctrByID, key, "container")
}

func (e *Engine) containersOf(podID string) []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*container
	for _, c := range e.ctrByID {
		if c.pod.id == podID {
			out = append(out, c)
		}
	}
	return out
}

// CreateContainer makes a container of an image of the store in a pod: its
// writable layer and its record. No process runs before StartContainer.
func (e *Engine) CreateContainer(ctx context.Context, podID string, spec ContainerSpec) (Container, error) {
	p, err := e.findPod(podID)
	if err != nil {
		return Container{}, err
	}
	img, err := e.opt.Store.Image(ctx, spec.Image)
	if err != nil {
		return Container{}, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	image := imageConfig{User: img.Config.User, WorkingDir: img.Config.WorkingDir, StopSignal: img.Config.StopSignal,
		Env: img.Config.Env, Entrypoint: img.Config.Entrypoint, Cmd: img.Config.Cmd}
	argv, err := mergeCommand(image.Entrypoint, image.Cmd, spec.Command, spec.Args)
	if err != nil {
		return Container{}, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	if _, err := stopSignal(spec.StopSignal, image.StopSignal); err != nil {
		return Container{}, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	if _, err := effectiveCaps(spec.Security, e.machine.caps); err != nil {
		return Container{}, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	if _, err := e.apparmor.profile(spec.Security); err != nil {
		return Container{}, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	pod := p.snapshot()
	id := newID()
	if pod.Spec.Single {
		id = pod.ID
	}
	rec := containerRecord{Image: image, Container: Container{
		ID: id, PodID: pod.ID, Spec: spec, ImageID: img.ID, ImageRef: img.Digest, State: StateCreated,
		CreatedAt: time.Now(), Path: argv[0], Args: argv[1:]}}
	if spec.LogPath != "" {
		rec.Container.LogPath = filepath.Join(pod.Spec.LogDir, spec.LogPath)
	}
	parent := cmp.Or(pod.Spec.CgroupParent, e.opt.CgroupParent)
	rec.Cgroup = filepath.Join(parent, rec.Container.ID)
	if _, err := e.opt.Store.PrepareRootfs(ctx, rec.Container.ID, img.ID); err != nil {
		return Container{}, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	if err := e.addContainer(newContainer(p, rec)); err != nil {
		return Container{}, errors.Join(err, e.opt.Store.RemoveRootfs(context.WithoutCancel(ctx), rec.Container.ID))
	}
	return rec.Container, nil
}

// addContainer records a new container and tells of it, unless its pod was
// removed meanwhile: nobody would remove it.
func (e *Engine) addContainer(c *container) error {
	c.pod.op.Lock()
	defer c.pod.op.Unlock()
	if c.pod.removed {
		return errPodRemoved(c.pod)
	}
	id := c.rec.Container.ID
	if err := e.ctrs.save(id, c.rec); err != nil {
		return err
	}
	e.mu.Lock()
	e.ctrByID[id] = c
	e.mu.Unlock()
	e.publish(EventCreated, c.pod.snapshot(), &c.rec.Container)
	return nil
}

// StartContainer starts a created or exited container, and before that its pod
// if that has stopped for being idle. When the program cannot be started the
// container has exited with 126, 127 or 128 and the error says why.
func (e *Engine) StartContainer(ctx context.Context, id string) error {
	c, err := e.findContainer(id)
	if err != nil {
		return err
	}
	c.pod.op.Lock()
	c.op.Lock()
	defer c.op.Unlock()
	client, err := e.beginStart(ctx, c)
	c.pod.op.Unlock()
	if err != nil || client == nil {
		return err
	}
	if err := e.launch(ctx, c, client); err != nil {
		end := context.WithoutCancel(ctx)
		defer e.idle(end, c.pod)
		err = fmt.Errorf("start container %s: %w", id, err)
		return errors.Join(err, e.startFailed(end, c, client, err))
	}
	return nil
}

// beginStart returns the runner to start c with, nil if it runs already. The
// locks of the pod and of c are held: the pod may be about to stop, as its last
// container has exited, and does not any more once c counts as not exited.
func (e *Engine) beginStart(ctx context.Context, c *container) (*runner.Client, error) {
	s, pod := c.snapshot(), c.pod.snapshot()
	if c.isRemoved() {
		return nil, fault.New(fault.NotFound, "container %s was removed", s.ID)
	}
	if s.State.alive() {
		return nil, nil
	}
	if c.pod.unreachable() {
		return nil, c.pod.errNoAnswer()
	}
	if c.pod.client() == nil && pod.Spec.StopWhenIdle {
		if err := e.startPod(ctx, c.pod); err != nil {
			return nil, fmt.Errorf("start container %s: its pod: %w", s.ID, err)
		}
		e.publish(EventPodUp, c.pod.snapshot(), nil)
	}
	client := c.pod.client()
	if client == nil {
		return nil, fault.New(fault.Unavailable, "start container %s: its pod %s is not running", s.ID, s.PodID)
	}
	if s.State == StateExited {
		e.rearm(c)
	}
	return client, nil
}

// rearm makes an exited container one that can be waited for again.
func (e *Engine) rearm(c *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Container.State = StateCreated
	c.ended = make(chan struct{})
	c.placed, c.next = c.next, nil
	if c.placed == nil {
		c.placed = make(chan struct{})
	}
}

// launch gives the container to its runner and starts it; c.op is held.
func (e *Engine) launch(ctx context.Context, c *container, client *runner.Client) error {
	rec := c.record()
	id := rec.Container.ID
	spec, err := e.prepare(ctx, c)
	if err != nil {
		return err
	}
	if rec.Container.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(rec.Container.LogPath), 0o755); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
	}
	if !rec.Container.FinishedAt.IsZero() { // the runner may still have the last run
		if err := client.Delete(ctx, id, false); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	s := rec.Container.Spec
	pid, err := client.Create(ctx, runner.CreateRequest{
		ID: id, Spec: spec, LogPath: rec.Container.LogPath, LogMaxBytes: s.LogMaxBytes, LogMaxFiles: s.LogMaxFiles,
		TTY: s.TTY, Stdin: s.Stdin, StdinOnce: s.StdinOnce})
	if err != nil {
		return err
	}
	c.mu.Lock()
	close(c.placed)
	c.starting, c.early = true, nil
	c.mu.Unlock()
	c.attaching.Wait()
	// Recorded before the start: the exit of a short process may be reported
	// before Start returns, and must find it running.
	if err := e.setContainer(c, func(s *Container) {
		s.State, s.PID, s.StartedAt = StateRunning, pid, time.Now()
		s.FinishedAt, s.ExitCode, s.Reason, s.Message = time.Time{}, 0, "", ""
	}); err != nil {
		return err
	}
	started := c.snapshot()
	if err := client.Start(ctx, id); err != nil {
		return err
	}
	e.publish(EventStarted, c.pod.snapshot(), &started)
	c.mu.Lock()
	early := c.early
	c.starting, c.early = false, nil
	c.mu.Unlock()
	if early != nil {
		e.publish(EventExited, c.pod.snapshot(), early)
	}
	return nil
}

// startFailed accounts for a container that could not start.
func (e *Engine) startFailed(ctx context.Context, c *container, client *runner.Client, cause error) error {
	c.mu.Lock()
	if c.rec.Container.State.alive() {
		c.rec.Container.State = StateCreated // so that the exit that Delete brings about does not count
	}
	c.mu.Unlock()
	err := client.Delete(ctx, c.snapshot().ID, true)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	c.mu.Lock()
	c.starting, c.early = false, nil
	closeOnce(c.placed)
	snapshot := e.recordExit(c, runner.Exit{Code: StartCode(cause), FinishedAt: time.Now(), Error: cause.Error()}, ReasonStartError)
	c.mu.Unlock()
	e.publish(EventExited, c.pod.snapshot(), &snapshot)
	return err
}

// closeOnce closes a channel that may be closed already; what guards it is held.
func closeOnce(ch chan struct{}) {
	select {
	case <-ch:
	default:
		close(ch)
	}
}

// containerExited records an exit, once, and tells who waits.
func (e *Engine) containerExited(c *container, exit runner.Exit) {
	reason := "Error"
	switch {
	case exit.OOMKilled:
		reason = "OOMKilled"
	case exit.Code == 0:
		reason = "Completed"
	}
	e.ended(c, exit, reason)
}

// ended is containerExited with the reason.
func (e *Engine) ended(c *container, exit runner.Exit, reason string) {
	c.mu.Lock()
	if !c.rec.Container.State.alive() || c.isRemoved() {
		c.mu.Unlock()
		return
	}
	snapshot := e.recordExit(c, exit, reason)
	starting := c.starting
	if starting {
		c.early = &snapshot
	}
	c.mu.Unlock()
	if !starting {
		e.publish(EventExited, c.pod.snapshot(), &snapshot)
	}
}

// recordExit makes c one that has exited, also where it had already, as of a
// start that failed after that: how it failed says more. c.mu is held.
func (e *Engine) recordExit(c *container, exit runner.Exit, reason string) Container {
	s := &c.rec.Container
	s.State, s.PID, s.ExitCode, s.FinishedAt, s.Message, s.Reason = StateExited, 0, exit.Code, exit.FinishedAt, exit.Error, reason
	if err := e.ctrs.save(s.ID, c.rec); err != nil {
		e.opt.Log.Error("record an exit", "container", s.ID, "error", err)
		e.keepExit(c)
	}
	closeOnce(c.ended)
	return *s
}

// runnerEvent takes up what a runner reports.
func (e *Engine) runnerEvent(ctx context.Context, p *pod, ev runner.Event) {
	e.mu.Lock()
	c := e.ctrByID[ev.ID]
	e.mu.Unlock()
	if c == nil {
		return // a bundle, or one that is being removed
	}
	switch ev.Type {
	case runner.EventExit:
		e.containerExited(c, ev.Exit)
		e.idle(ctx, p)
	case runner.EventOOM:
		s := c.snapshot()
		e.publish(EventOOM, p.snapshot(), &s)
	}
}

// StopContainer sends the stop signal, waits for grace and then kills. The
// exited state is visible before it returns. Idempotent. A second call, with
// less patience, does not wait for the first.
func (e *Engine) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := e.findContainer(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ended, err := e.beginStop(ctx, c, grace)
	if err != nil || waitEnd(ctx, ended, grace) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	client := c.pod.client()
	if client == nil || waitEnd(ctx, ended, 0) { // it may even have been started anew, which is not ours to end
		return nil
	}
	return e.kill(ctx, c, client)
}

// beginStop sends the stop signal if there is a grace. The channel is closed
// once what runs now has ended.
func (e *Engine) beginStop(ctx context.Context, c *container, grace time.Duration) (ended <-chan struct{}, err error) {
	c.op.Lock()
	defer c.op.Unlock()
	rec := c.record()
	client := c.pod.client()
	if c.pod.unreachable() && rec.Container.State.alive() {
		return nil, c.pod.errNoAnswer()
	}
	if !rec.Container.State.alive() || client == nil {
		gone := make(chan struct{})
		close(gone)
		return gone, nil
	}
	ended = c.end()
	id := rec.Container.ID
	if rec.Container.State == StatePaused {
		if err := e.resume(ctx, c, client); err != nil {
			return nil, fmt.Errorf("stop container %s: %w", id, err)
		}
	}
	if grace <= 0 {
		return ended, nil
	}
	sig, err := stopSignal(rec.Container.Spec.StopSignal, rec.Image.StopSignal)
	if err != nil {
		return nil, err
	}
	if err := client.Signal(ctx, id, sig, false); err != nil && !fault.Is(err, fault.NotFound) {
		return nil, fmt.Errorf("stop container %s: %w", id, err)
	}
	return ended, nil
}

// killContainer kills whatever runs of c.
func (e *Engine) killContainer(ctx context.Context, c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if client := c.pod.client(); client != nil && c.snapshot().State.alive() {
		return e.kill(ctx, c, client)
	}
	return nil
}

func (e *Engine) kill(ctx context.Context, c *container, client *runner.Client) error {
	id := c.snapshot().ID
	if err := client.Signal(ctx, id, unix.SIGKILL, true); err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	if !waitEnd(ctx, c.end(), killTime) {
		return fault.New(fault.Internal, "container %s has not ended %v after SIGKILL", id, killTime).
			Hint("a process of it hangs in the kernel; see `ps -o pid,stat,wchan,cmd`")
	}
	return nil
}

// RemoveContainer removes a container that does not run, or kills it first if
// force is set. Its log file stays: it is its owner's. Idempotent.
func (e *Engine) RemoveContainer(ctx context.Context, id string, force bool) error {
	c, err := e.findContainer(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return e.removeContainer(ctx, c, force)
}

func (e *Engine) removeContainer(ctx context.Context, c *container, force bool) error {
	c.op.Lock()
	defer c.op.Unlock()
	if c.isRemoved() {
		return nil
	}
	s := c.snapshot()
	client := c.pod.client()
	if c.pod.unreachable() && s.State.alive() {
		return c.pod.errNoAnswer()
	}
	if s.State.alive() && client != nil {
		if !force {
			return fault.New(fault.Conflict, "container %s is running", s.ID).Hint("stop it first, or force its removal")
		}
		if err := e.kill(ctx, c, client); err != nil {
			return err
		}
	}
	if client != nil {
		if err := client.Delete(ctx, s.ID, true); err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("remove container %s: %w", s.ID, err)
		}
	}
	if err := e.unmount(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", s.ID, err)
	}
	if err := e.opt.Store.RemoveRootfs(ctx, s.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", s.ID, err)
	}
	if err := e.forget(c); err != nil {
		return err
	}
	e.publish(EventDeleted, c.pod.snapshot(), &s)
	return nil
}

// forget removes a container's record, on disk and in memory, for good.
func (e *Engine) forget(c *container) error {
	c.mu.Lock()
	id := c.rec.Container.ID
	err := e.ctrs.remove(id)
	if err == nil {
		closeOnce(c.ended)
		close(c.removed)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.ctrByID, id)
	return nil
}

// Container returns the container with the id, or whose id alone begins so.
func (e *Engine) Container(_ context.Context, id string) (Container, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return Container{}, err
	}
	return c.snapshot(), nil
}

// Containers returns an owner's containers, oldest first; "" is every owner.
func (e *Engine) Containers(_ context.Context, owner string) []Container {
	e.mu.Lock()
	list := make([]*container, 0, len(e.ctrByID))
	for _, c := range e.ctrByID {
		list = append(list, c)
	}
	e.mu.Unlock()
	var out []Container
	for _, c := range list {
		if owner == "" || c.pod.snapshot().Spec.Owner == owner {
			out = append(out, c.snapshot())
		}
	}
	slices.SortFunc(out, func(a, b Container) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out
}
