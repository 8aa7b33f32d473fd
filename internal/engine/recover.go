package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/store"
)

// recover takes up the pods and containers of an earlier run of the daemon:
// those whose runner lives go on as if nothing had happened, those of a runner
// that is gone (a reboot, a kill) have ended. What the earlier run was in the
// middle of making is taken away.
func (e *Engine) recover(ctx context.Context) error {
	known := map[string]bool{} // containers that have a record, readable or not
	bad := func(path string, err error) {
		e.opt.Log.Error("unreadable record left aside", "path", path, "error", err)
		known[strings.TrimSuffix(filepath.Base(path), ".json")] = true
	}
	pods, err := e.pods.load(bad)
	if err != nil {
		return fmt.Errorf("recover pods: %w", err)
	}
	ctrs, err := e.ctrs.load(bad)
	if err != nil {
		return fmt.Errorf("recover containers: %w", err)
	}
	var ready []*pod
	var lost []*container // whose pod was stopped, and the record of their end failed
	e.mu.Lock()
	for id, rec := range pods {
		e.agree(&rec)
		p := newPod(rec)
		e.podByID[id] = p
		e.users.claim(rec.Pod.Spec)
		if rec.Pod.State == PodReady {
			ready = append(ready, p)
		}
	}
	for id, rec := range ctrs {
		known[id] = true
		p := e.podByID[rec.Container.PodID]
		if p == nil {
			e.opt.Log.Error("container of an unknown pod left aside", "container", id, "pod", rec.Container.PodID)
			continue
		}
		c := newContainer(p, rec)
		if rec.Container.State == StateExited {
			close(c.ended)
		}
		if rec.Container.State.alive() && p.rec.Pod.State != PodReady {
			lost = append(lost, c)
		}
		if rec.Container.State != StateCreated {
			close(c.placed)
		}
		e.ctrByID[id] = c
	}
	e.mu.Unlock()
	for _, c := range lost { // before endStrayRunners removes what their runners wrote
		e.containerExited(c, exitWhileAway(e.runnerDir(c.pod.id), c.snapshot().ID))
	}
	if err := e.dropEmpty(ctx, known); err != nil {
		return err
	}
	g := errgroup.Group{}
	g.SetLimit(16)
	for _, p := range ready {
		g.Go(func() error { e.takeUpPod(context.WithoutCancel(ctx), p); return nil })
	}
	g.Go(func() error { return e.endStrayRunners(ctx, ready) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := e.sweep(ctx, ready, known); err != nil {
		return err
	}
	live := map[string]bool{}
	for id, p := range e.podByID {
		live[id] = p.snapshot().State == PodReady
	}
	return e.opt.Network.Reconcile(ctx, live)
}

// agree makes a ready pod's record and files say what its network does: the daemon may
// have ended between the two.
func (e *Engine) agree(rec *podRecord) {
	a, attached := e.opt.Network.Attachment(rec.Pod.ID)
	if !attached || rec.Pod.State != PodReady {
		return
	}
	before := rec.Pod
	rec.Pod.take(a)
	on := rec.Pod.Spec.OnNetworks()
	is := func(s network.EndpointSpec) bool {
		return slices.ContainsFunc(a.Endpoints, func(ep network.Endpoint) bool { return ep.Network == s.Network })
	}
	if i := slices.IndexFunc(on, func(s network.EndpointSpec) bool { return !is(s) }); i >= 0 {
		on = slices.DeleteFunc(slices.Clone(on), func(s network.EndpointSpec) bool { return !is(s) })
		rec.Pod.Spec.Networks = on
	}
	for _, ep := range a.Endpoints {
		if !slices.ContainsFunc(on, func(s network.EndpointSpec) bool { return s.Network == ep.Network }) {
			on = slices.Concat(on, []network.EndpointSpec{ep.EndpointSpec})
			rec.Pod.Spec.Networks = on
		}
	}
	if reflect.DeepEqual(before, rec.Pod) {
		return
	}
	if err := errors.Join(e.changePodFiles(before, rec.Pod), e.pods.save(rec.Pod.ID, *rec)); err != nil {
		e.opt.Log.Error("change of a pod's networks not finished", "pod", rec.Pod.ID, "error", err)
	}
}

// dropEmpty forgets pods that were made for a container which then was not:
// the daemon ended in between, and nobody has their IDs.
func (e *Engine) dropEmpty(ctx context.Context, containers map[string]bool) error {
	for _, pod := range e.Pods(ctx, "") {
		if !pod.Spec.Single || pod.State == PodReady || containers[pod.ID] {
			continue
		}
		if err := e.pods.remove(pod.ID); err != nil {
			return err
		}
		e.mu.Lock()
		delete(e.podByID, pod.ID)
		e.mu.Unlock()
		e.releaseUsers(pod.Spec)
	}
	return nil
}

// answerTime is how long a runner gets to answer before the start goes on
// without it, and maxRetry how long it is left in peace before the next try.
const (
	answerTime = 3 * time.Second
	maxRetry   = 30 * time.Second
)

// takeUpPod connects to a pod's runner. Where that does not answer, it is tried
// again in the background until it does.
func (e *Engine) takeUpPod(ctx context.Context, p *pod) {
	if e.rejoin(ctx, p) {
		return
	}
	e.background.Go(func() {
		for wait := time.Second; ; wait = min(2*wait, maxRetry) {
			select {
			case <-time.After(wait):
			case <-e.stopped:
				return
			}
			if e.rejoin(ctx, p) {
				return
			}
		}
	})
}

// rejoin connects to a pod's runner and brings the records up to date. It
// reports false if the runner is there and has not answered: nothing is known
// of its containers, and they are left alone.
func (e *Engine) rejoin(ctx context.Context, p *pod) bool {
	p.op.Lock()
	defer p.op.Unlock()
	if !p.unreachable() {
		return true // stopped meanwhile
	}
	dir := e.runnerDir(p.id)
	client, states, err := askRunner(ctx, dir)
	if runner.IsGone(err) {
		e.opt.Log.Warn("container runner is gone", "pod", p.id, "error", err)
		e.runnerLost(ctx, p)
		return true
	}
	if err != nil {
		e.opt.Log.Error("container runner does not answer, its containers are left alone", "pod", p.id, "error", err)
		return false
	}
	p.mu.Lock()
	p.runner = client
	p.mu.Unlock()
	e.mu.Lock()
	stopping := e.stopping
	e.mu.Unlock()
	if stopping { // Stop may have looked at the pod before
		client.Close()
		return true
	}
	known := map[string]bool{}
	for _, s := range states {
		known[s.ID] = true
		e.takeUp(ctx, client, s)
	}
	for _, c := range e.containersOf(p.id) {
		if s := c.snapshot(); s.State.alive() && !known[s.ID] {
			e.containerExited(c, exitWhileAway(dir, s.ID))
		}
	}
	e.watch(ctx, p, client)
	e.idle(ctx, p)
	return true
}

// exitWhileAway is the exit of a container that ended while no daemon was there
// to hear of it, as its runner wrote it down.
func exitWhileAway(dir, id string) runner.Exit {
	exit, err := runner.ReadExit(dir, id)
	if err != nil {
		return runner.Exit{Code: 128 + int(syscall.SIGKILL), FinishedAt: time.Now(), Error: "lost while the daemon was away"}
	}
	return exit
}

// askRunner connects to a runner and asks for its containers.
func askRunner(ctx context.Context, dir string) (*runner.Client, []runner.State, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	client, err := runner.Dial(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	states, err := client.List(ctx)
	if err != nil {
		client.Close()
	}
	return client, states, err
}

// takeUp compares what a runner has with the record. A container the daemon
// had not yet recorded as running was in the middle of its start: it is taken
// back to created.
func (e *Engine) takeUp(ctx context.Context, client *runner.Client, s runner.State) {
	e.mu.Lock()
	c := e.ctrByID[s.ID]
	e.mu.Unlock()
	if c == nil || (c.snapshot().State == StateCreated || s.Status == runner.StatusCreated) {
		if err := client.Delete(ctx, s.ID, true); err != nil {
			e.opt.Log.Error("take back an unfinished start", "container", s.ID, "error", err)
		}
		if c != nil && c.snapshot().State.alive() {
			e.containerExited(c, runner.Exit{Code: ExitNoStart, FinishedAt: time.Now(), Error: "the daemon ended during its start"})
		}
		return
	}
	switch {
	case s.Status == runner.StatusExited && s.Exit != nil:
		e.containerExited(c, *s.Exit)
	case s.Status == runner.StatusRunning:
		e.takeUpAs(c, StateRunning)
	case s.Status == runner.StatusPaused:
		e.takeUpAs(c, StatePaused)
	}
}

// takeUpAs records whether a container is frozen: the daemon may have ended
// after it froze or thawed it and before it said so.
func (e *Engine) takeUpAs(c *container, state ContainerState) {
	if now := c.snapshot().State; !now.alive() || now == state {
		return
	}
	if err := e.setContainer(c, func(s *Container) { s.State = state }); err != nil {
		e.opt.Log.Error("record whether a container is paused", "container", c.snapshot().ID, "error", err)
	}
}

// endStrayRunners ends runners that belong to no pod that was ready: builds
// that the daemon's end interrupted, pods that were being made or started.
func (e *Engine) endStrayRunners(ctx context.Context, ready []*pod) error {
	base := filepath.Join(e.opt.RunDir, "r")
	entries, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for _, p := range ready {
		ours[filepath.Base(e.runnerDir(p.id))] = true
	}
	for _, entry := range entries {
		if ours[entry.Name()] {
			continue
		}
		dir := filepath.Join(base, entry.Name())
		if err := e.endRunner(ctx, dir); err != nil {
			e.opt.Log.Error("end a stray runner", "dir", dir, "error", err)
		}
		if err := removeAll(dir); err != nil {
			e.opt.Log.Error("remove a stray runner's directory", "dir", dir, "error", err)
		}
	}
	return nil
}

// KillAll ends everything that runs below the engine's directory and cgroup,
// without grace and without its records: for where the engine cannot start.
func (e *Engine) KillAll(ctx context.Context) error {
	err := e.endStrayRunners(ctx, nil)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, runner.KillOrphans(e.opt.CgroupParent), e.sweepMounts(nil))
}

// endRunner has a stray runner end with what it runs, or kills both if it does
// not answer.
func (e *Engine) endRunner(ctx context.Context, dir string) error {
	client, _, err := askRunner(ctx, dir)
	if err == nil {
		defer client.Close()
		if err = client.Shutdown(ctx); err == nil {
			return nil
		}
	}
	if err := runner.Kill(ctx, dir); err != nil {
		return err
	}
	left, err := os.ReadDir(runner.ContainersDir(dir)) // one a bundle; no container runs before its pod is recorded
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, entry := range left {
		err = errors.Join(err, runner.KillOrphans(filepath.Join(e.opt.CgroupParent, entry.Name())))
	}
	return err
}

// sweep takes away the mounts and writable layers that were made before their
// pod or container was recorded.
func (e *Engine) sweep(ctx context.Context, ready []*pod, containers map[string]bool) error {
	keep := map[string]bool{}
	for _, p := range ready {
		keep[e.podDir(p.id)] = true
	}
	for id := range containers {
		keep[filepath.Dir(e.rootfsDir(id))] = true
	}
	for _, c := range e.ctrByID {
		for _, m := range c.snapshot().Spec.Mounts {
			if m.Kind == MountTmpfs && m.Source != "" {
				keep[filepath.Dir(e.sharedDir(m.Source))] = true
			}
		}
	}
	if err := e.sweepMounts(keep); err != nil {
		e.opt.Log.Error("remove what nothing is recorded of", "error", err)
	}
	layers, err := e.opt.Store.Layers(ctx)
	if err != nil {
		return err
	}
	for _, key := range layers {
		id, _, _ := strings.Cut(key, "-") // as of volumeKey
		if len(id) != idLength || containers[id] {
			continue
		}
		if err := e.opt.Store.RemoveRootfs(ctx, key); err != nil {
			e.opt.Log.Error("remove what nothing is recorded of", "layer", key, "error", err)
		}
	}
	return nil
}

// sweepMounts removes the directories of pods, containers and shared tmpfs but for those to
// keep, with what is mounted in them.
func (e *Engine) sweepMounts(keep map[string]bool) error {
	var errs []error
	for _, parent := range []string{"p", "c", "v"} {
		dirs, err := filepath.Glob(filepath.Join(e.opt.RunDir, parent, "*"))
		errs = append(errs, err)
		for _, dir := range dirs {
			if !keep[dir] {
				errs = append(errs, removeMounts(dir))
			}
		}
	}
	return errors.Join(errs...)
}

// removeMounts removes a directory of mount points and files. Should something
// stay mounted, its content is not ours to delete: an error is returned.
func removeMounts(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if err := store.UnmountAll(path); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// removeAll removes a directory of the engine's own below its run directory.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
