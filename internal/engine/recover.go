package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// recover takes up the pods and containers of an earlier run of the daemon:
// those whose runner lives go on as if nothing had happened, those of a runner
// that is gone (a reboot, a kill) have ended.
func (e *Engine) recover(ctx context.Context) error {
	bad := func(path string, err error) {
		e.opt.Log.Error("unreadable record left aside", "path", path, "error", err)
	}
	pods, err := e.pods.load(bad)
	if err != nil {
		return fmt.Errorf("recover pods: %w", err)
	}
	ctrs, err := e.ctrs.load(bad)
	if err != nil {
		return fmt.Errorf("recover containers: %w", err)
	}
	live := map[string]bool{}
	e.mu.Lock()
	for id, rec := range pods {
		e.podByID[id] = newPod(rec)
		live[id] = rec.Pod.State == PodReady
	}
	for id, rec := range ctrs {
		p := e.podByID[rec.Container.PodID]
		if p == nil {
			e.opt.Log.Error("container of an unknown pod left aside", "container", id, "pod", rec.Container.PodID)
			continue
		}
		c := newContainer(p, rec)
		if rec.Container.State == StateExited {
			close(c.ended)
		}
		if rec.Container.State != StateCreated {
			close(c.placed)
		}
		e.ctrByID[id] = c
	}
	list := make([]*pod, 0, len(e.podByID))
	for _, p := range e.podByID {
		list = append(list, p)
	}
	e.mu.Unlock()
	g := errgroup.Group{}
	g.SetLimit(16)
	for _, p := range list {
		if live[p.id] {
			g.Go(func() error { e.rejoin(context.WithoutCancel(ctx), p); return nil })
		}
	}
	g.Go(func() error { return e.endStrayRunners(ctx, pods) })
	if err := g.Wait(); err != nil {
		return err
	}
	for id := range live {
		live[id] = e.podByID[id].client() != nil
	}
	return e.opt.Network.Reconcile(ctx, live)
}

// rejoin connects to a pod's runner and brings the records up to date.
func (e *Engine) rejoin(ctx context.Context, p *pod) {
	p.op.Lock()
	defer p.op.Unlock()
	dir := e.runnerDir(p.id)
	client, err := runner.Dial(ctx, dir)
	if err != nil {
		e.opt.Log.Warn("container runner is gone", "pod", p.id, "error", err)
		e.runnerLost(ctx, p)
		return
	}
	states, err := client.List(ctx)
	if err != nil {
		e.opt.Log.Error("container runner does not answer", "pod", p.id, "error", err)
		client.Close()
		e.runnerLost(ctx, p)
		return
	}
	p.mu.Lock()
	p.runner = client
	p.mu.Unlock()
	known := map[string]bool{}
	for _, s := range states {
		known[s.ID] = true
		e.takeUp(ctx, client, s)
	}
	for _, c := range e.containersOf(p.id) {
		if s := c.snapshot(); s.State.alive() && !known[s.ID] {
			exit, err := runner.ReadExit(dir, s.ID)
			if err != nil {
				exit = runner.Exit{Code: 128 + int(syscall.SIGKILL), FinishedAt: time.Now(), Error: "lost while the daemon was away"}
			}
			e.containerExited(c, exit)
		}
	}
	e.watch(ctx, p, client)
	e.idle(ctx, p)
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
			e.containerExited(c, runner.Exit{Code: exitNoStart, FinishedAt: time.Now(), Error: "the daemon ended during its start"})
		}
		return
	}
	if s.Status == runner.StatusExited && s.Exit != nil {
		e.containerExited(c, *s.Exit)
	}
}

// endStrayRunners ends runners that belong to no pod: builds that the daemon's
// end interrupted, pods that were being made.
func (e *Engine) endStrayRunners(ctx context.Context, pods map[string]podRecord) error {
	base := filepath.Join(e.opt.RunDir, "r")
	entries, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	ours := map[string]bool{}
	for id := range pods {
		ours[filepath.Base(e.runnerDir(id))] = true
	}
	for _, entry := range entries {
		if ours[entry.Name()] {
			continue
		}
		dir := filepath.Join(base, entry.Name())
		if client, err := runner.Dial(ctx, dir); err == nil {
			if err := client.Shutdown(ctx); err != nil {
				e.opt.Log.Error("end a stray runner", "dir", dir, "error", err)
			}
			client.Close()
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
	errs := []error{err}
	for _, hierarchy := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		groups, err := filepath.Glob(filepath.Join(hierarchy, e.opt.CgroupParent, "*/cgroup.procs"))
		errs = append(errs, err)
		for _, procs := range groups {
			errs = append(errs, runner.KillOrphans(filepath.Join(e.opt.CgroupParent, filepath.Base(filepath.Dir(procs)))))
		}
	}
	return errors.Join(errs...)
}

// removeAll removes a directory of the engine's own below its run directory.
func removeAll(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}
