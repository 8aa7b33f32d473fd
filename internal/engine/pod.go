package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

// killTime is how long processes get to disappear after SIGKILL; more means
// that they hang in the kernel.
const killTime = 10 * time.Second

// podRecord is what is kept of a pod on disk.
type podRecord struct {
	Pod        Pod
	Namespaces runner.Namespaces
}

// pod is a pod in memory. op serialises what changes it, mu guards the fields.
type pod struct {
	id string
	op sync.Mutex
	// released is set while the pod is known to hold nothing of the machine; op guards it.
	released bool
	// removed is set for good; op guards it.
	removed bool

	mu     sync.Mutex
	rec    podRecord
	runner *runner.Client // nil unless ready

	// streams counts callers attached to its containers, who must get the last
	// output before the runner goes.
	streams counter
}

func newPod(rec podRecord) *pod { return &pod{id: rec.Pod.ID, rec: rec} }

func (p *pod) client() *runner.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runner
}

func (p *pod) record() podRecord {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec
}

// unreachable reports a runner that has not answered since the daemon started,
// see rejoin: whether it lives is not known.
func (p *pod) unreachable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runner == nil && p.rec.Pod.State == PodReady
}

// errNoAnswer is what asks for an unreachable runner.
func (p *pod) errNoAnswer() error {
	return fault.New(fault.Unavailable, "the runner of pod %s does not answer", p.id).
		Hint("it is tried again; removing the pod kills what runs in it, and the runner")
}

// errPodRemoved is what comes after a removal that it waited for.
func errPodRemoved(p *pod) error { return fault.New(fault.NotFound, "pod %s was removed", p.id) }

func (p *pod) snapshot() Pod { return p.record().Pod }

// set changes the pod's record in memory and on disk.
func (e *Engine) setPod(p *pod, change func(*podRecord)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.rec)
	return e.pods.save(p.id, p.rec)
}

func (e *Engine) findPod(key string) (*pod, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return find(e.podByID, key, "pod")
}

// RunPod makes a pod: its network, its IPC and UTS namespaces and its runner.
// On error nothing of it is left.
func (e *Engine) RunPod(ctx context.Context, spec PodSpec) (Pod, error) {
	if spec.RuntimeHandler != "" {
		return Pod{}, fault.New(fault.Invalid, "pod %s: runtime handler %q is not known", spec.Name, spec.RuntimeHandler).
			Hint("remove runtimeClassName, or use a RuntimeClass whose handler is empty")
	}
	if err := e.giveUsers(&spec); err != nil {
		return Pod{}, fmt.Errorf("run pod %s: %w", spec.Name, err)
	}
	p := newPod(podRecord{Pod: Pod{ID: newID(), Spec: spec, CreatedAt: time.Now()}})
	p.op.Lock()
	defer p.op.Unlock()
	if err := e.startPod(ctx, p); err != nil {
		e.releaseUsers(spec)
		return Pod{}, errors.Join(fmt.Errorf("run pod %s: %w", spec.Name, err), e.pods.remove(p.id))
	}
	e.mu.Lock()
	e.podByID[p.id] = p
	e.mu.Unlock()
	e.publish(EventPodUp, p.snapshot(), nil)
	return p.snapshot(), nil
}

// CreatePod makes a pod that holds nothing of the machine, no address and no
// host port: those come with the start of its first container, which
// StopWhenIdle must be set for.
func (e *Engine) CreatePod(_ context.Context, spec PodSpec) (Pod, error) {
	if err := e.giveUsers(&spec); err != nil {
		return Pod{}, fmt.Errorf("create pod %s: %w", spec.Name, err)
	}
	p := newPod(podRecord{Pod: Pod{ID: newID(), Spec: spec, State: PodNotReady, CreatedAt: time.Now()}})
	if err := e.pods.save(p.id, p.record()); err != nil {
		e.releaseUsers(spec)
		return Pod{}, fmt.Errorf("create pod %s: %w", spec.Name, err)
	}
	e.mu.Lock()
	e.podByID[p.id] = p
	e.mu.Unlock()
	return p.snapshot(), nil
}

// startPod brings p up and records it, or leaves nothing of it running. p.op is held.
func (e *Engine) startPod(ctx context.Context, p *pod) (err error) {
	p.released = false
	pod := p.snapshot()
	defer func() {
		if err != nil {
			err = errors.Join(err, e.releasePod(context.WithoutCancel(ctx), p))
		}
	}()
	var attached network.Attachment
	var ns runner.Namespaces
	g, gctx := errgroup.WithContext(ctx)
	attach := func(netns string) (err error) {
		attached, err = e.opt.Network.Attach(gctx, pod.ID, attachOptions(pod, netns))
		return err
	}
	if _, err := e.networkOf(pod.Spec); err != nil {
		return err
	}
	connected := pod.Spec.Network == ModePod
	if connected && pod.Spec.Users == nil {
		g.Go(func() error { return attach("") })
	}
	g.Go(func() (err error) {
		ns, err = e.launchRunner(gctx, p)
		if err == nil && connected && pod.Spec.Users != nil {
			err = attach(ns.Net) // the user namespace's own
		}
		return err
	})
	g.Go(func() error { return e.mountShm(pod) })
	if err := g.Wait(); err != nil {
		return err
	}
	pod.State = PodReady
	pod.take(attached)
	if err := e.writePodFiles(pod); err != nil {
		return err
	}
	return e.setPod(p, func(r *podRecord) { *r = podRecord{Pod: pod, Namespaces: ns} })
}

func (e *Engine) launchRunner(ctx context.Context, p *pod) (runner.Namespaces, error) {
	pod := p.snapshot()
	client, err := e.runners.Launch(ctx, e.runnerDir(pod.ID))
	if err != nil {
		return runner.Namespaces{}, err
	}
	p.mu.Lock()
	p.runner = client
	p.mu.Unlock()
	ns, err := client.Setup(ctx, runner.SetupRequest{
		Hostname: podHostname(pod),
		HostUTS:  pod.Spec.UTS == ModeHost || pod.Spec.Network == ModeHost && pod.Spec.Owner == OwnerCRI,
		HostIPC:  pod.Spec.IPC == ModeHost,
		SharePID: pod.Spec.PID == ModePod,
		Users:    runnerUsers(pod.Spec.Users),
	})
	if err != nil {
		return runner.Namespaces{}, err
	}
	e.watch(context.WithoutCancel(ctx), p, client)
	return ns, nil
}

// StopPod kills the pod's containers and gives back its network and
// namespaces. The pod stays listed, not ready. Idempotent.
func (e *Engine) StopPod(ctx context.Context, id string) error {
	p, err := e.findPod(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	return e.stopPod(ctx, p)
}

// stopPod is StopPod with p.op held.
func (e *Engine) stopPod(ctx context.Context, p *pod) error {
	id := p.id
	if p.unreachable() {
		if err := runner.Kill(ctx, e.runnerDir(id)); err != nil {
			return fmt.Errorf("stop pod %s: %w", id, err)
		}
		e.runnerLost(ctx, p)
		return nil
	}
	if p.released && p.snapshot().State != PodReady {
		return nil // as of an idle one that is removed now
	}
	for _, c := range e.containersOf(id) {
		if err := e.killContainer(ctx, c); err != nil {
			return fmt.Errorf("stop pod %s: %w", id, err)
		}
	}
	wasReady := p.client() != nil
	if err := e.releasePod(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	if p.snapshot().State == PodReady || wasReady {
		if err := e.setPod(p, func(r *podRecord) { r.Pod.State = PodNotReady }); err != nil {
			return err
		}
		e.publish(EventPodDown, p.snapshot(), nil)
	}
	return nil
}

// StopAll stops every pod, all at the same time. Before, each container gets
// its stop signal and then its StopGrace, of which most is the limit.
func (e *Engine) StopAll(ctx context.Context, most time.Duration) error {
	pods := e.Pods(ctx, "")
	errs := make([]error, len(pods))
	var wg sync.WaitGroup
	for i, p := range pods {
		wg.Go(func() {
			asked := e.stopContainers(ctx, p.ID, most)
			if err := e.StopPod(ctx, p.ID); err != nil { // else what could not be asked is killed
				errs[i] = errors.Join(asked, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stopContainers stops a pod's containers, all at the same time.
func (e *Engine) stopContainers(ctx context.Context, podID string, most time.Duration) error {
	ctrs := e.containersOf(podID)
	errs := make([]error, len(ctrs))
	var wg sync.WaitGroup
	for i, c := range ctrs {
		s := c.snapshot()
		grace := DefaultStopGrace
		if g := s.Spec.StopGrace; g != nil {
			grace = *g
		}
		if grace < 0 || grace > most {
			grace = most
		}
		wg.Go(func() { errs[i] = e.StopContainer(ctx, s.ID, grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// releasePod ends the runner and gives back what the pod holds of the machine.
// It goes on past errors: each part is given back whether or not another could be.
func (e *Engine) releasePod(ctx context.Context, p *pod) error {
	pod := p.snapshot()
	p.mu.Lock()
	client := p.runner
	p.runner = nil
	p.mu.Unlock()
	var errs []error
	if client != nil {
		p.streams.wait(time.Second)
		err := client.Shutdown(ctx)
		if err != nil {
			client.Close() // else streams end by themselves, with the last output
		}
		if err != nil && !fault.Is(err, fault.Unavailable) {
			errs = append(errs, err)
		}
	}
	if pod.Spec.Network == ModePod {
		errs = append(errs, e.opt.Network.Detach(ctx, pod.ID))
	}
	errs = append(errs, e.removePodFiles(pod))
	err := errors.Join(errs...)
	p.released = err == nil
	return err
}

// RemovePod stops the pod and removes it and its containers. Idempotent.
func (e *Engine) RemovePod(ctx context.Context, id string) error {
	p, err := e.findPod(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	if p.removed {
		return nil
	}
	if err := e.stopPod(ctx, p); err != nil {
		return err
	}
	pod := p.snapshot()
	for _, c := range e.containersOf(pod.ID) {
		if err := e.removeContainer(ctx, c, true); err != nil {
			return fmt.Errorf("remove pod %s: %w", pod.ID, err)
		}
	}
	if err := e.pods.remove(pod.ID); err != nil {
		return err
	}
	p.removed = true
	e.mu.Lock()
	delete(e.podByID, pod.ID)
	e.mu.Unlock()
	e.releaseUsers(pod.Spec)
	e.publish(EventPodGone, pod, nil)
	return nil
}

// Pod returns the pod with the id, or whose id alone begins so.
func (e *Engine) Pod(_ context.Context, id string) (Pod, error) {
	p, err := e.findPod(id)
	if err != nil {
		return Pod{}, err
	}
	return p.snapshot(), nil
}

// Pods returns an owner's pods, oldest first; "" is every owner.
func (e *Engine) Pods(_ context.Context, owner string) []Pod {
	e.mu.Lock()
	list := make([]*pod, 0, len(e.podByID))
	for _, p := range e.podByID {
		list = append(list, p)
	}
	e.mu.Unlock()
	var out []Pod
	for _, p := range list {
		if s := p.snapshot(); owner == "" || s.Spec.Owner == owner {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Pod) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// watch follows the runner's events until the client is closed. A runner that
// ends by itself takes its pod down.
func (e *Engine) watch(ctx context.Context, p *pod, client *runner.Client) {
	e.background.Go(func() {
		err := client.Events(ctx, func(ev runner.Event) { e.runnerEvent(ctx, p, ev) })
		e.mu.Lock()
		stopping := e.stopping
		e.mu.Unlock()
		if stopping || p.client() != client {
			return
		}
		e.opt.Log.Error("container runner ended", "pod", p.snapshot().ID, "error", err)
		p.op.Lock()
		defer p.op.Unlock()
		if p.client() == client { // else it was stopped, or removed, meanwhile
			e.runnerLost(ctx, p)
		}
	})
}

// runnerLost accounts for the containers of a runner that is gone: those it
// saw exit have left their exit on disk, the others are killed.
func (e *Engine) runnerLost(ctx context.Context, p *pod) {
	pod := p.snapshot()
	for _, c := range e.containersOf(pod.ID) {
		s := c.snapshot()
		if s.State != StateRunning && s.State != StatePaused {
			continue
		}
		exit, err := runner.ReadExit(e.runnerDir(pod.ID), s.ID)
		if err != nil {
			if err := runner.KillOrphans(c.cgroup()); err != nil {
				e.opt.Log.Error("kill the containers of a lost runner", "container", s.ID, "error", err)
			}
			exit = runner.Exit{Code: 128 + int(syscall.SIGKILL), FinishedAt: time.Now(), Error: "its runner ended"}
		}
		e.containerExited(c, exit)
	}
	if err := e.releasePod(ctx, p); err != nil {
		e.opt.Log.Error("release a lost pod", "pod", pod.ID, "error", err)
	}
	if err := e.setPod(p, func(r *podRecord) { r.Pod.State = PodNotReady }); err != nil {
		e.opt.Log.Error("record a lost pod", "pod", pod.ID, "error", err)
	}
	e.publish(EventPodDown, p.snapshot(), nil)
}

// counter counts what is under way. Unlike a sync.WaitGroup it may be waited for
// while more begins.
type counter struct {
	mu   sync.Mutex
	n    int
	zero chan struct{} // nil unless somebody waits
}

// begin counts one more until the returned function is called, once.
func (c *counter) begin() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.n--; c.n == 0 && c.zero != nil {
			close(c.zero)
			c.zero = nil
		}
	}
}

// wait returns once the count was zero, or limit has passed.
func (c *counter) wait(limit time.Duration) {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	if c.zero == nil {
		c.zero = make(chan struct{})
	}
	zero := c.zero
	c.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-zero:
	case <-timer.C:
	}
}
