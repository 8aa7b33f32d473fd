package launch

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner/seccomp"
	"github.com/ferryos/ferry/internal/fault"
)

// ExecOptions describe one more process of a container.
type ExecOptions struct {
	Process *specs.Process
	Filter  *seccomp.Program // nil for none
	Stdio   [3]*os.File      // nil ones are /dev/null; unused with a terminal
}

// Exec makes one more process in a running container and returns once its
// program runs.
func (c *Container) Exec(opt ExecOptions) (_ *Process, err error) {
	s := opt.Process
	switch {
	case s == nil || len(s.Args) == 0:
		return nil, fault.New(fault.Invalid, "the process has no program")
	case s.SelinuxLabel != "" || s.Scheduler != nil || s.IOPriority != nil:
		return nil, fault.New(fault.Unsupported, "SELinux labels, schedulers and priorities of IO are not supported")
	}
	var term *terminal
	if s.Terminal {
		pts := -1
		if c.pts != nil {
			pts = int(c.pts.Fd())
		}
		if term, err = openTerminal(pts, c.ids.UID(int(s.User.UID)), s.ConsoleSize); err != nil {
			return nil, err
		}
		opt.Stdio = [3]*os.File{term.theirs, term.theirs, term.theirs}
		defer func() {
			term.theirs.Close()
			if err != nil {
				term.ours.Close()
			}
		}()
	}
	var ch *child
	if err := onThread(func() (last func(), err error) {
		ch, last, err = c.execHere(opt, term != nil)
		return last, err
	}); err != nil {
		return nil, err
	}
	if err := ch.await(); err != nil {
		ch.kill()
		return nil, err
	}
	ch.close()
	return newProcess(ch, term), nil
}

// execHere makes the process, after this thread has entered the container.
func (c *Container) execHere(opt ExecOptions, tty bool) (_ *child, last func(), err error) {
	p, err := newPlan()
	if err != nil {
		return nil, nil, err
	}
	where, files, err := c.birth(p, opt.Process)
	defer func() {
		if err != nil {
			p.discard()
		}
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, nil, err
	}
	if err := c.enter(); err != nil {
		return nil, nil, err
	}
	if _, has := c.spaces[specs.CgroupNamespace]; has {
		// Not before the process is in its cgroup: mounted with nsdelegate, as systemd
		// does, cgroup v2 lets nobody in from outside of the namespace it is in.
		main, err := c.Main.child.copyOfPidfd()
		if err != nil {
			return nil, nil, err
		}
		files = append(files, main)
		p.join(main, unix.CLONE_NEWCGROUP)
	}
	prog, err := programOf(opt.Process)
	if err != nil {
		return nil, nil, err
	}
	stdio, null, err := c.launcher.withNull(opt.Stdio)
	if null != nil {
		defer null.Close()
	}
	if err != nil {
		return nil, nil, err
	}
	if c.users != nil {
		p.enterUsers(c.users)
	}
	if err := p.become(becoming{process: opt.Process, filter: opt.Filter, stdio: stdio, tty: tty,
		keyring: "_ses." + c.opt.ID, lastCap: c.launcher.lastCap}); err != nil {
		return nil, nil, err
	}
	p.execute(prog, opt.Process.Args)
	return p.start(where)
}

// enter takes this thread into the container's namespaces, but for PID, user and cgroup.
func (c *Container) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	flags := unix.CLONE_NEWNS
	for kind, flag := range joinable {
		if _, has := c.spaces[kind]; has {
			flags |= flag
		}
	}
	return c.Main.child.with(func(pidfd int) error {
		if err := unix.Setns(pidfd, flags); err != nil {
			return fmt.Errorf("join the container's namespaces: %w", err)
		}
		return nil
	})
}
