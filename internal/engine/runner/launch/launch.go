// Package launch makes processes in containers: what the OCI runtime
// specification calls create, start and exec. Only engine/runner/proc imports it.
//
// A start has two halves. A thread of this process enters the container's
// namespaces one by one and puts its file system together, in Go, with the mount
// calls that take descriptors, so that no path is looked up twice and none leads
// out of the container's root. The new process is then a copy of that
// thread (child.c): it goes through a list of system calls that was made before
// it was there (plan.go), which enter the last namespaces, give up all
// privileges and execute the program. No program of the runtime runs in between.
//
// Needs Linux 5.14 (mount_setattr, and it on whole trees; clone3 into a cgroup).
package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/cgroup"
	"github.com/ferryos/ferry/internal/engine/runner/seccomp"
	"github.com/ferryos/ferry/internal/fault"
)

// Launcher starts containers. It is what all of them need of the machine.
type Launcher struct {
	proc     *os.File // this machine's /proc
	pid      *os.File // this process's PID namespace
	lastCap  int      // the highest capability that the kernel knows
	apparmor string   // where in proc a process sets the profile of its next program
}

// New returns a Launcher.
func New() (*Launcher, error) {
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	pid, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return nil, errors.Join(err, proc.Close())
	}
	last, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return nil, errors.Join(err, proc.Close(), pid.Close())
	}
	l := &Launcher{proc: proc, pid: pid, apparmor: "thread-self/attr/apparmor/exec"}
	if l.lastCap, err = strconv.Atoi(strings.TrimSpace(string(last))); err != nil {
		return nil, errors.Join(err, proc.Close(), pid.Close())
	}
	if _, err := os.Stat("/proc/thread-self/attr/apparmor"); err != nil {
		l.apparmor = "thread-self/attr/exec" // before Linux 5.8
	}
	return l, nil
}

// WarmUp makes a process that ends at once: the first that this process makes
// takes longer than others, for its pages and threads.
func (l *Launcher) WarmUp() {
	p, err := newPlan()
	if err != nil {
		return // as the first start will tell
	}
	p.call("end", unix.SYS_EXIT_GROUP, 0)
	var c *child
	if onThread(func() (last func(), err error) {
		c, last, err = p.start(forked{ownPID: l.pid, share: true})
		return last, err
	}) != nil {
		p.discard()
		return
	}
	_ = c.await() // that it has ended
	c.kill()
}

// Options describe a container.
type Options struct {
	ID     string
	Spec   *specs.Spec      // has a process, root and linux part; the root is mounted
	Group  *cgroup.Group    // made already
	Filter *seccomp.Program // in place of the spec's; nil for none
	Users  *runner.Users    // the ids of the user namespace that the spec names, if it does
	Stdio  [3]*os.File      // nil ones are /dev/null; unused with a terminal
	Bundle string           // a directory for hooks to find the spec in, made if there are any
}

// Container is a container whose first process was made.
type Container struct {
	// Main is its first process, which waits for Start.
	Main *Process

	launcher *Launcher
	opt      Options
	ids      *runner.Users
	spaces   map[specs.LinuxNamespaceType]string // path of each, "" for one of its own
	pidns    *os.File                            // nil: this machine's
	users    *os.File                            // user namespace, nil: this machine's
	pts      *os.File                            // the mount of its terminals, nil: the machine's
}

// Create makes a container up to the point where its program would run. After
// an error nothing of it is left but what its spec has made in its root.
func (l *Launcher) Create(opt Options) (_ *Container, err error) {
	c := &Container{launcher: l, opt: opt, ids: opt.Users, spaces: map[specs.LinuxNamespaceType]string{}}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := c.writeBundle(); err != nil {
		return nil, err
	}
	joined, err := c.openNamespaces()
	defer closeAll(joined)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root{ids: c.ids}, spec: opt.Spec, proc: l.proc, users: c.users, pts: -1}
	for _, name := range opt.Group.JoinFiles() {
		t.groups = append(t.groups, filepath.Dir(name))
	}
	defer t.close()
	if err := t.prepare(); err != nil {
		return nil, err
	}
	m := &making{c: c, tree: t, joined: joined}
	if m.plan, err = newPlan(); err != nil {
		return nil, err
	}
	defer m.close()
	if m.where, m.used, err = c.birth(m.plan, opt.Spec.Process); err != nil {
		return nil, err
	}
	if err := onThread(m.run); err != nil {
		return nil, err
	}
	if c.Main, err = m.born(); err != nil {
		return nil, err
	}
	if err := c.runHooks(hooksOf(opt.Spec).CreateRuntime, c.Main.PID, "created"); err != nil {
		c.Main.child.kill()
		return nil, err
	}
	return c, nil
}

// joinable are the namespaces that a thread can enter, and what clone(2) calls them.
var joinable = map[specs.LinuxNamespaceType]int{
	specs.NetworkNamespace: unix.CLONE_NEWNET, specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS,
}

// openNamespaces opens the namespaces to join: those for the thread, by what
// clone(2) calls them, and PID and user namespace.
func (c *Container) openNamespaces() (joined map[int]*os.File, err error) {
	joined = map[int]*os.File{}
	for kind, path := range c.spaces {
		flag, thread := joinable[kind]
		switch {
		case kind == specs.TimeNamespace, kind == specs.CgroupNamespace && path != "":
			return joined, fault.New(fault.Unsupported, "joining or making a %s namespace is not supported", kind)
		case kind == specs.UserNamespace && (path == "" || c.opt.Users == nil):
			return joined, fault.New(fault.Invalid, "the user namespace is not this runner's")
		case path == "" || kind == specs.MountNamespace:
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return joined, fmt.Errorf("%s namespace: %w", kind, err)
		}
		switch {
		case thread:
			joined[flag] = f
		case kind == specs.PIDNamespace:
			c.pidns = f
		case kind == specs.UserNamespace:
			c.users = f
		}
	}
	if _, own := c.spaces[specs.MountNamespace]; !own {
		return joined, fault.New(fault.Invalid, "a container has a mount namespace of its own")
	}
	return joined, nil
}

func closeAll(files map[int]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Stopped runs the hooks that are to know that the container has ended.
func (c *Container) Stopped() error {
	return c.runHooks(hooksOf(c.opt.Spec).Poststop, 0, "stopped")
}

// Close lets go of what Start and Exec need. The container goes on.
func (c *Container) Close() {
	if c.Main != nil {
		c.Main.child.close()
	}
	for _, f := range []*os.File{c.pidns, c.users, c.pts} {
		if f != nil {
			f.Close()
		}
	}
}

// Start lets the program run.
func (c *Container) Start() error {
	err := c.Main.child.release()
	c.Main.child.close()
	if err != nil {
		return err
	}
	return c.runHooks(hooksOf(c.opt.Spec).Poststart, c.Main.PID, "running")
}

// OwnPID reports whether the container has a PID namespace of its own, in which
// nothing outlives its first process.
func (c *Container) OwnPID() bool {
	path, has := c.spaces[specs.PIDNamespace]
	return has && path == ""
}

// onThread runs f on a thread that ends with it, whatever f has made of that.
// It returns with f, which may leave something for the thread to do last.
func onThread(f func() (last func(), err error)) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		last, err := f()
		done <- err
		if err == nil {
			last()
		}
	}()
	return <-done
}
