package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/containers"
	containerdoci "github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// engineExecutor runs BuildKit's steps as bundles of the engine.
type engineExecutor struct {
	engine *engine.Engine
	root   string // resolv.conf and hosts files
	log    *slog.Logger

	mu      sync.Mutex
	running map[string]*specs.Spec // by id, for Exec
}

var _ executor.Executor = (*engineExecutor)(nil)

func newExecutor(e *engine.Engine, root string, log *slog.Logger) *engineExecutor {
	return &engineExecutor{engine: e, root: root, log: log, running: map[string]*specs.Spec{}}
}

// Run implements executor.Executor.
func (x *engineExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	if id == "" {
		id = identity.NewID()
	}
	begun := sync.OnceFunc(func() {
		if started != nil {
			close(started)
		}
	})
	defer begun()
	spec, release, err := x.prepare(ctx, id, root, mounts, p.Meta)
	if err != nil {
		return nil, err
	}
	defer release()
	x.mu.Lock()
	x.running[id] = spec
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		delete(x.running, id)
		x.mu.Unlock()
	}()
	// BuildKit names Run's container as it likes; the engine wants twelve characters.
	bundle := engine.Bundle{ID: bundleID(id), Spec: spec, Network: networkMode(p.Meta.NetMode), TTY: p.Meta.Tty, Started: func(int) { begun() }}
	code, err := x.engine.RunBundle(ctx, bundle, streamsOf(ctx, p))
	return nil, outcome(ctx, code, err, p.Meta.ValidExitCodes)
}

// Exec implements executor.Executor.
func (x *engineExecutor) Exec(ctx context.Context, id string, p executor.ProcessInfo) error {
	x.mu.Lock()
	spec := x.running[id]
	x.mu.Unlock()
	if spec == nil {
		return fault.New(fault.NotFound, "build container %s does not run", id)
	}
	process := *spec.Process
	process.Args, process.Env, process.Terminal = p.Meta.Args, p.Meta.Env, p.Meta.Tty
	if p.Meta.Cwd != "" {
		process.Cwd = p.Meta.Cwd
	}
	if p.Meta.User != "" {
		user, err := engine.ResolveUser(spec.Root.Path, p.Meta.User)
		if err != nil {
			return err
		}
		process.User = user
	}
	code, err := x.engine.ExecBundle(ctx, bundleID(id), &process, streamsOf(ctx, p))
	return outcome(ctx, code, err, p.Meta.ValidExitCodes)
}

func bundleID(id string) string { return "build-" + id }

// outcome is a process's end as BuildKit wants it told.
func outcome(ctx context.Context, code int, err error, valid []int) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case valid == nil && code == 0, slices.Contains(valid, code):
		return nil
	}
	return &gatewayapi.ExitError{ExitCode: uint32(code), Err: fmt.Errorf("exit code: %d", code)}
}

func networkMode(m pb.NetMode) engine.NamespaceMode {
	switch m {
	case pb.NetMode_HOST:
		return engine.ModeHost
	case pb.NetMode_NONE:
		return engine.ModeNone
	default:
		return engine.ModePod
	}
}

func streamsOf(ctx context.Context, p executor.ProcessInfo) engine.Streams {
	s := engine.Streams{}
	if p.Stdin != nil {
		s.Stdin = p.Stdin
	}
	if p.Stdout != nil {
		s.Stdout = p.Stdout
	}
	if p.Stderr != nil {
		s.Stderr = p.Stderr
	}
	if p.Resize != nil {
		sizes := make(chan [2]uint)
		s.Resize = sizes
		go func() { // ends with the step
			for {
				select {
				case size, ok := <-p.Resize:
					if !ok {
						return
					}
					select {
					case sizes <- [2]uint{uint(size.Cols), uint(size.Rows)}:
					case <-ctx.Done():
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return s
}

// engineNetwork leaves the network namespace to the engine.
type engineNetwork struct{}

func (engineNetwork) Set(*specs.Spec) error                          { return nil }
func (engineNetwork) Sample() (*resourcestypes.NetworkSample, error) { return nil, nil }
func (engineNetwork) Close() error                                   { return nil }

// prepare mounts the step's root and computes its spec; release undoes it.
func (x *engineExecutor) prepare(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, meta executor.Meta) (_ *specs.Spec, release func(), err error) {
	if meta.CgroupParent != "" {
		return nil, nil, fault.New(fault.Unsupported, "the cgroup's parent cannot be chosen (%s)", meta.CgroupParent)
	}
	var undo []func()
	all := func() {
		for _, f := range slices.Backward(undo) {
			f()
		}
	}
	defer func() {
		if err != nil {
			all()
		}
	}()
	dir, err := os.OpenRoot(x.root)
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	resolv, err := oci.GetResolvConf(ctx, dir, nil, nil, meta.NetMode)
	if err != nil {
		return nil, nil, err
	}
	hosts, clean, err := oci.GetHostsFile(ctx, dir, meta.ExtraHosts, nil, meta.Hostname)
	if err != nil {
		return nil, nil, err
	}
	if clean != nil {
		undo = append(undo, clean)
	}
	rootfs, unmount, err := mountRoot(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() {
		if err := unmount(); err != nil {
			x.log.Error("unmount the root of a build's step", "path", rootfs, "error", err)
		}
	}, executor.MountStubsCleaner(ctx, rootfs, mounts, meta.RemoveMountStubsRecursive))
	// Not BuildKit's own look-up, which opens whatever a build put in the files' place.
	user, err := engine.ResolveUser(rootfs, meta.User)
	if err != nil {
		return nil, nil, err
	}
	profile, err := x.engine.DefaultAppArmor()
	if err != nil {
		return nil, nil, err
	}
	opts := []containerdoci.SpecOpts{oci.WithUIDGID(user.UID, user.GID, user.AdditionalGids), rootAt(rootfs, meta.ReadonlyRootFS),
		containerdoci.WithApparmorProfile(profile)}
	spec, releaseSpec, err := oci.GenerateSpec(ctx, meta, mounts, id, filepath.Join(x.root, resolv), filepath.Join(x.root, hosts),
		engineNetwork{}, "", oci.ProcessSandbox, nil, "", false, "", nil, opts...)
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, releaseSpec)
	spec.Process.Terminal = meta.Tty
	return spec, all, nil
}

func rootAt(path string, readonly bool) containerdoci.SpecOpts {
	return func(_ context.Context, _ containerdoci.Client, _ *containers.Container, s *containerdoci.Spec) error {
		s.Root = &specs.Root{Path: path, Readonly: readonly}
		return nil
	}
}

// mountRoot mounts a step's root file system at a directory of its own.
func mountRoot(ctx context.Context, root executor.Mount) (dir string, unmount func() error, err error) {
	mountable, err := root.Src.Mount(ctx, root.Readonly)
	if err != nil {
		return "", nil, err
	}
	list, releaseMounts, err := mountable.Mount()
	if err != nil {
		return "", nil, err
	}
	mounter := snapshot.LocalMounterWithMounts(list, snapshot.ForceRemount())
	dir, err = mounter.Mount()
	if err != nil {
		return "", nil, errors.Join(err, releaseMounts())
	}
	return dir, func() error { return errors.Join(mounter.Unmount(), releaseMounts()) }, nil
}
