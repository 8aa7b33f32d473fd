// Package cgroup is a container's control group: its limits, its processes
// and what they use. Only runner/proc and runner/launch import it, and it alone
// runc's library for control groups, which knows the files of both versions.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"

	_ "github.com/opencontainers/cgroups/devices" // device rules are linked in by import
)

// mountpoint is where v2, or a directory for each hierarchy of v1, is mounted.
const mountpoint = "/sys/fs/cgroup"

// Group is a container's control group. Its methods may be called concurrently.
type Group struct {
	manager cgroups.Manager
	dirs    map[string]string // by controller; "" is v2's, which v1 may have beside its own

	mu     sync.Mutex         // while limits change, or the manager's state
	limits *cgroups.Resources // its Freezer is never set: Freeze and Thaw alone decide on that
}

// mounts are the directories of v1's hierarchies, by controller. To find them
// takes a quarter of the time that a group takes.
var mounts = sync.OnceValues(func() (map[string]string, error) {
	m, err := fs.NewManager(&cgroups.Cgroup{Path: "/", Resources: &cgroups.Resources{}}, nil)
	if err != nil {
		return nil, err
	}
	return m.GetPaths(), nil
})

// Prepare finds out, ahead of the first New, what that needs to know of the machine.
func Prepare() {
	if !cgroups.IsCgroup2UnifiedMode() {
		_, _ = mounts() // New tells what is wrong
	}
}

// newManager returns what knows the files of the group at a path. It keeps the
// resources of the config, and writes to them.
func newManager(config *cgroups.Cgroup) (cgroups.Manager, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return fs2.NewManager(config, filepath.Join(mountpoint, config.Path))
	}
	roots, err := mounts()
	if err != nil {
		return nil, err
	}
	dirs := make(map[string]string, len(roots))
	for name, root := range roots {
		dirs[name] = filepath.Join(root, config.Path)
	}
	return fs.NewManager(config, dirs)
}

// New makes the group at an absolute path, in every hierarchy, with the limits
// of an OCI spec. On error nothing of it is left.
func New(path string, r *specs.LinuxResources) (_ *Group, err error) {
	if path = filepath.Clean(path); !filepath.IsAbs(path) || path == "/" {
		return nil, fault.New(fault.Invalid, "%q is no cgroup for a container", path)
	}
	g := &Group{limits: limitsOf(r)}
	own := *g.limits
	if g.manager, err = newManager(&cgroups.Cgroup{Path: path, Resources: &own}); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	g.dirs = g.manager.GetPaths()
	const none = -1
	if err = g.manager.Apply(none); err == nil {
		err = g.manager.Set(&own)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cgroup %s: %w", path, err), g.Remove())
	}
	return g, nil
}

// JoinFiles are the files of v1 into which a process of one thread writes "0"
// to enter the group: "tasks" of each hierarchy. Unlike "cgroup.procs" it has
// nobody wait for an RCU grace period.
func (g *Group) JoinFiles() []string {
	var list []string
	for name, dir := range g.dirs {
		if file := filepath.Join(dir, "tasks"); name != "" && !slices.Contains(list, file) {
			list = append(list, file)
		}
	}
	slices.Sort(list)
	return list
}

// Dir is the group's directory of v2, for clone3(2) into it; "" if there is no v2.
func (g *Group) Dir() string { return g.dirs[""] }

// Update changes the limits that are given and keeps the others.
func (g *Group) Update(r specs.LinuxResources) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := *g.limits
	change(&next, r)
	next.SkipDevices = true // they stay as they are; on v2 they would be a new program in the kernel each time
	tried := next           // v2's manager keeps it
	if err := g.manager.Set(&tried); err != nil {
		former := *g.limits
		former.SkipDevices = true
		return errors.Join(err, g.manager.Set(&former))
	}
	next.SkipDevices = false
	g.limits = &next
	return nil
}

// Freeze stops the processes until Thaw.
func (g *Group) Freeze() error { return g.freeze(cgroups.Frozen) }

// Thaw lets the processes go on.
func (g *Group) Thaw() error { return g.freeze(cgroups.Thawed) }

func (g *Group) freeze(state cgroups.FreezerState) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.manager.Freeze(state)
}

// Processes are the ids of the processes in the group and in those below it.
func (g *Group) Processes() ([]int, error) { return g.manager.GetAllPids() }

// Kill sends a signal to every process of the group and of those below it.
// SIGKILL thaws them, for v1 lets no frozen process die.
func (g *Group) Kill(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		defer func() { _ = g.Thaw() }() // fails where there is nobody any more
		if dir := g.Dir(); dir != "" && os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
			return nil // from Linux 5.14 on; it misses none that forks
		}
		_ = g.Freeze() // so that none forks meanwhile; where it fails, who did is killed the next time
	}
	pids, err := g.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

// Remove removes the group and those below it. It waits a moment for processes
// that were killed. Idempotent.
func (g *Group) Remove() error {
	var errs []error
	for _, dir := range g.dirs {
		if err := cgroups.RemovePath(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
