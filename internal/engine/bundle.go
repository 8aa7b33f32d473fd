package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

// Bundle is a process whose root and spec its caller has made, as a build step's.
type Bundle struct {
	// ID names the bundle to ExecBundle; at least 12 characters, not in use.
	ID string
	// Spec is complete but for the network namespace, the cgroup and the OOM
	// score, which the engine fills in. Root.Path is mounted by the caller until RunBundle returns.
	Spec    *specs.Spec
	Network NamespaceMode // ModePod is an address of its own on the bridge
	TTY     bool
	Started func(pid int) // called once the process runs; may be nil
}

// bundles are the runners of bundles that run now.
type bundles struct {
	mu  sync.Mutex
	run map[string]*runner.Client
}

func (b *bundles) get(id string) *runner.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.run[id]
}

func (b *bundles) set(id string, c *runner.Client) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run == nil {
		b.run = map[string]*runner.Client{}
	}
	if c == nil {
		delete(b.run, id)
		return
	}
	b.run[id] = c
}

// RunBundle runs a bundle to its end and returns its exit code, once all its
// output is written. Cancelling ctx kills it. Nothing of it is kept.
func (e *Engine) RunBundle(ctx context.Context, b Bundle, streams Streams) (code int, err error) {
	if len(b.ID) < 12 {
		return 0, fault.New(fault.Invalid, "bundle id %q is shorter than 12 characters", b.ID)
	}
	end := context.WithoutCancel(ctx)
	var client *runner.Client
	defer func() {
		var errs []error
		if client != nil {
			e.bundles.set(b.ID, nil)
			errs = append(errs, client.Shutdown(end))
			client.Close()
		}
		if b.Network == ModePod {
			errs = append(errs, e.opt.Network.Detach(end, b.ID))
		}
		errs = append(errs, e.removeRunnerDir(b.ID))
		err = errors.Join(append([]error{err}, errs...)...)
	}()
	var attached network.Attachment
	g, gctx := errgroup.WithContext(ctx)
	if b.Network == ModePod {
		g.Go(func() (err error) {
			attached, err = e.opt.Network.Attach(gctx, b.ID, network.AttachOptions{})
			return err
		})
	}
	g.Go(func() (err error) {
		client, err = e.runners.Launch(gctx, e.runnerDir(b.ID))
		return err
	})
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("run %s: %w", b.ID, err)
	}
	e.bundles.set(b.ID, client)
	spec := e.bundleSpec(b, attached.NetnsPath)
	// Not to be cancelled half-way: who gave up waiting would not know what to take away.
	pid, err := client.Create(end, runner.CreateRequest{ID: b.ID, Spec: spec, TTY: b.TTY, Stdin: streams.Stdin != nil, StdinOnce: true})
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", b.ID, err)
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("run %s: %w", b.ID, errors.Join(ctx.Err(), client.Delete(end, b.ID, true)))
	}
	return e.runAttached(ctx, client, b, pid, streams)
}

func (e *Engine) removeRunnerDir(id string) error { return removeAll(e.runnerDir(id)) }

// bundleSpec completes the caller's spec.
func (e *Engine) bundleSpec(b Bundle, netns string) *specs.Spec {
	s := *b.Spec
	process, linux := *s.Process, *s.Linux
	s.Process, s.Linux = &process, &linux
	process.OOMScoreAdj = clampOOMAdj(process.OOMScoreAdj, e.machine.minOOMAdj)
	linux.CgroupsPath = filepath.Join(e.opt.CgroupParent, b.ID)
	linux.Namespaces = nil
	for _, n := range b.Spec.Linux.Namespaces {
		if n.Type != specs.NetworkNamespace {
			linux.Namespaces = append(linux.Namespaces, n)
		}
	}
	if b.Network != ModeHost {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	return &s
}

// runAttached starts the created bundle with its streams attached and waits.
func (e *Engine) runAttached(ctx context.Context, client *runner.Client, b Bundle, pid int, streams Streams) (int, error) {
	attached := make(chan struct{})
	copied := make(chan error, 1)
	go func() {
		rs := runnerStreams(streams)
		rs.Started = sync.OnceFunc(func() { close(attached) })
		err := client.Attach(ctx, b.ID, rs)
		rs.Started()
		copied <- err
	}()
	<-attached
	if err := client.Start(ctx, b.ID); err != nil {
		return 0, errors.Join(fmt.Errorf("run %s: %w", b.ID, err), client.Delete(context.WithoutCancel(ctx), b.ID, true), <-copied)
	}
	if b.Started != nil {
		b.Started(pid)
	}
	exit, err := client.Wait(ctx, b.ID)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", b.ID, errors.Join(err, client.Delete(context.WithoutCancel(ctx), b.ID, true)))
	}
	if err := <-copied; err != nil && ctx.Err() == nil {
		return exit.Code, fmt.Errorf("output of %s: %w", b.ID, err)
	}
	return exit.Code, nil
}

// ExecBundle runs one more process beside a bundle that runs.
func (e *Engine) ExecBundle(ctx context.Context, id string, process *specs.Process, streams Streams) (int, error) {
	client := e.bundles.get(id)
	if client == nil {
		return 0, fault.New(fault.NotFound, "%s does not run", id)
	}
	return client.Exec(ctx, runner.ExecRequest{
		ContainerID: id, ExecID: newID(), Process: process, TTY: process.Terminal, Stdin: streams.Stdin != nil}, runnerStreams(streams))
}
