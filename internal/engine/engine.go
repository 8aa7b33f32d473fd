// Package engine runs containers: it turns images of the store into processes
// in their own namespaces and cgroups, keeps account of them, and finds them
// again after the daemon was gone.
//
// A container lives in a pod, which has the network, IPC and UTS namespaces and
// one ferry-runner process that is the parent of its containers. The engine
// holds no process itself: it may end, by will or by accident, and containers,
// their logs and their exit codes do not notice.
//
//	engine ── store    images, writable layers (containerd's libraries)
//	       ── network  bridge, addresses, host ports (netlink)
//	       ── runner   client of ferry-runner, one a pod (containers are made there)
//
// Its clients are engine/cri (kubelet), dockerapi and build; nothing above the
// line of docs/architecture.md imports it.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// Options are what an Engine is made from; all fields are needed but for
// InitBinary and CDIDirs, without which what needs them cannot start.
type Options struct {
	DataDir      string   // records of pods and containers
	RunDir       string   // mount points, runner directories; at most 60 bytes
	RunnerBinary string   // path of ferry-runner
	InitBinary   string   // path of ferry-init
	CDIDirs      []string // where files say what CDI devices are
	CgroupParent string   // absolute cgroup path for pods that name none
	Store        *store.Store
	Network      *network.Network
	Log          *slog.Logger
	// Runners is how many runners are kept ready for pods to come; 0 starts each
	// on demand, as an engine that is started only to end what runs should.
	Runners int
}

// Engine is the container engine. Its methods may be called concurrently.
type Engine struct {
	opt     Options
	machine machine
	runners *runner.Pool
	pods    records[podRecord]
	ctrs    records[containerRecord]
	events  broadcaster

	// Lock order: a pod's op, a container's op, then any of the mu, of which
	// only one is held at a time. A mu is held for memory and the record alone.
	mu         sync.Mutex
	podByID    map[string]*pod
	ctrByID    map[string]*container
	stopping   bool
	stopped    chan struct{} // closed by Stop
	background sync.WaitGroup
	apparmor   *appArmor
	bundles    bundles
	users      userRanges
	shared     sync.Mutex // mounts and unmounts of shared tmpfs; taken after op, before mu
}

// New returns an Engine that does nothing before Start.
func New(opt Options) *Engine {
	return &Engine{
		opt:      opt,
		machine:  inspectMachine(),
		runners:  runner.NewPool(runner.PoolOptions{Binary: opt.RunnerBinary, Dir: filepath.Join(opt.RunDir, "r"), Size: opt.Runners, Log: opt.Log}),
		pods:     records[podRecord]{filepath.Join(opt.DataDir, "pods")},
		ctrs:     records[containerRecord]{filepath.Join(opt.DataDir, "containers")},
		podByID:  map[string]*pod{},
		ctrByID:  map[string]*container{},
		stopped:  make(chan struct{}),
		apparmor: inspectAppArmor(),
		users:    userRanges{used: map[uint32]int{}},
	}
}

// Name implements lifecycle.Component.
func (e *Engine) Name() string { return "engine" }

// Start reads the records of an earlier run and takes up what still lives.
func (e *Engine) Start(ctx context.Context) error {
	if _, err := os.Stat(e.opt.RunnerBinary); err != nil {
		return fault.New(fault.Unavailable, "container runner: %w", err).
			Hint("install ferry-runner beside ferryd, or set libexecDir in the configuration")
	}
	if missing := cgroups.Missing(); len(missing) > 0 {
		return fault.New(fault.Unsupported, "this machine has cgroups %s without the controllers %s", cgroups.Version(), strings.Join(missing, ", ")).
			Hint("%s", cgroups.Remedy)
	}
	if err := cgroups.CheckParent(e.opt.CgroupParent); err != nil {
		return fault.New(fault.Unsupported, "cgroup for containers: %w", err).Hint("%s", cgroups.ParentRemedy)
	}
	if err := e.makeDirs(); err != nil {
		return fmt.Errorf("engine directories: %w", err)
	}
	if err := e.pods.open(); err != nil {
		return fmt.Errorf("engine records: %w", err)
	}
	if err := e.ctrs.open(); err != nil {
		return fmt.Errorf("engine records: %w", err)
	}
	if err := e.recover(ctx); err != nil {
		return err
	}
	e.runners.Start(ctx)
	return nil
}

// makeDirs makes the directories below the run directory. Only root may enter
// those of runners, of pods and of each container, also where an earlier version
// made them: the machine's users could run what images have setuid. Containers
// need no way through them, for what they are given is mounted; but the root of
// a user namespace has to reach its container's, see mountRootfs.
func (e *Engine) makeDirs() error {
	for name, mode := range map[string]os.FileMode{"": 0o711, "r": 0o700, "c": 0o711, "p": 0o700} {
		dir := filepath.Join(e.opt.RunDir, name)
		if err := errors.Join(os.MkdirAll(dir, mode), os.Chmod(dir, mode)); err != nil {
			return err
		}
	}
	dirs, err := filepath.Glob(filepath.Join(e.opt.RunDir, "c", "*"))
	for _, dir := range dirs {
		st, statErr := os.Stat(dir)
		if statErr == nil && st.Mode().Perm()&0o007 != 0 {
			statErr = os.Chmod(dir, 0o700)
		}
		err = errors.Join(err, statErr)
	}
	return err
}

// Stop lets go of the runners and waits for the engine's own goroutines.
// Containers run on.
func (e *Engine) Stop(ctx context.Context) error {
	e.mu.Lock()
	if !e.stopping {
		e.stopping = true
		close(e.stopped)
	}
	pods := slices.Collect(maps.Values(e.podByID))
	e.mu.Unlock()
	e.runners.Stop(ctx)
	for _, p := range pods {
		if r := p.client(); r != nil {
			r.Close()
		}
	}
	e.background.Wait()
	return nil
}

// Running reports whether any pod runs, as far as is known: one whose runner
// has not answered yet does.
func (e *Engine) Running() bool {
	e.mu.Lock()
	pods := slices.Collect(maps.Values(e.podByID))
	e.mu.Unlock()
	return slices.ContainsFunc(pods, func(p *pod) bool { return p.snapshot().State == PodReady })
}

// Images returns the image store.
func (e *Engine) Images() *store.Store { return e.opt.Store }

// ImagesInUse returns the images that containers were made of or have mounted:
// IDs, and what the mounts call them.
func (e *Engine) ImagesInUse(ctx context.Context) []string {
	var list []string
	for _, c := range e.Containers(ctx, "") {
		list = append(list, e.ImagesOf(ctx, c)...)
	}
	return list
}

// ImagesOf returns of one container what ImagesInUse does of all.
func (e *Engine) ImagesOf(ctx context.Context, c Container) []string {
	list := []string{c.ImageID}
	for _, m := range c.Spec.Mounts {
		if m.Kind != MountImage {
			continue
		}
		list = append(list, m.Source)
		if img, err := e.opt.Store.Image(ctx, m.Source); err == nil { // else it is gone already
			list = append(list, img.Digest)
		}
	}
	return list
}

// Gateway is the address at which containers reach this machine.
func (e *Engine) Gateway() netip.Addr { return e.opt.Network.Gateway() }

// Subscribe returns all events from now on, in order; the channel is closed
// once ctx ends. A slow reader delays nobody: the channel of one that is
// thousands of events behind is closed too, so a reader whose ctx has not ended
// has missed some, and must subscribe and look at everything again.
func (e *Engine) Subscribe(ctx context.Context) <-chan Event { return e.events.subscribe(ctx) }

func (e *Engine) publish(kind EventType, p Pod, c *Container) {
	e.events.publish(Event{Type: kind, Time: time.Now(), Pod: p, Container: c})
}

// find returns the one entry of m whose id is key or starts with key.
func find[T any](m map[string]T, key, what string) (T, error) {
	if v, ok := m[key]; ok {
		return v, nil
	}
	var found T
	n := 0
	if key != "" {
		for id, v := range m {
			if strings.HasPrefix(id, key) {
				found = v
				n++
			}
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return found, fault.New(fault.NotFound, "no such %s: %s", what, key)
	default:
		return found, fault.New(fault.Invalid, "%s %s: the id begins %d of them", what, key, n).Hint("give more of the id")
	}
}

// runnerDir is where a pod's runner keeps its socket and state: short, for a
// unix socket's path has at most 107 bytes.
func (e *Engine) runnerDir(podID string) string { return filepath.Join(e.opt.RunDir, "r", podID[:12]) }

// CheckUsers reports why pods cannot have user namespaces on this machine; nil
// if they can.
func (e *Engine) CheckUsers() error { return e.opt.Store.CheckMapped() }

// rootfsDir is where a container's root is mounted.
func (e *Engine) rootfsDir(id string) string {
	return filepath.Join(e.containerDir(id), "rootfs")
}
