package launch

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// making is a Create on its thread.
type making struct {
	c      *Container
	tree   *tree
	joined map[int]*os.File // namespaces, by what clone(2) calls them
	term   *terminal
	plan   *plan
	where  forked
	used   []*os.File // by the process, until it is there
	child  *child
	done   bool
}

// close lets go of what the process has by then.
func (m *making) close() {
	if m.child == nil {
		m.plan.discard()
	}
	for _, f := range m.used {
		f.Close()
	}
	if m.term == nil {
		return
	}
	m.term.theirs.Close()
	if !m.done {
		m.term.ours.Close()
	}
}

// run enters the container's namespaces, builds its file system and makes its process.
func (m *making) run() (last func(), err error) {
	spec := m.c.opt.Spec
	if err := m.enter(); err != nil {
		return nil, err
	}
	if err := writeSysctls(spec.Linux.Sysctl); err != nil {
		return nil, err
	}
	if err := m.tree.build(); err != nil {
		return nil, err
	}
	if err := m.terminal(); err != nil {
		return nil, err
	}
	if err := m.c.runHooks(hooksOf(spec).CreateContainer, 0, "creating"); err != nil {
		return nil, err
	}
	if err := m.tree.finish(); err != nil {
		return nil, fmt.Errorf("change to the container's root: %w", err)
	}
	if cwd := spec.Process.Cwd; cwd != "" && !isBelow(path.Clean(cwd), "/proc") {
		fd, err := m.tree.directory(cwd)
		if err != nil {
			return nil, fmt.Errorf("mkdir %s: %w", cwd, err)
		}
		unix.Close(fd)
	}
	if err := m.c.runHooks(hooksOf(spec).StartContainer, 0, "created"); err != nil {
		return nil, err
	}
	return m.fork()
}

// enter takes this thread into the container's namespaces, but for PID, user
// and cgroup.
func (m *making) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the threads of a process share a root
		return os.NewSyscallError("unshare", err)
	}
	for flag, f := range m.joined {
		if err := unix.Setns(int(f.Fd()), flag); err != nil {
			return fmt.Errorf("join %s: %w", f.Name(), err)
		}
	}
	flags := unix.CLONE_NEWNS
	for kind, flag := range joinable {
		if path, has := m.c.spaces[kind]; has && path == "" {
			flags |= flag
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	spec := m.c.opt.Spec
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	if spec.Domainname != "" {
		if err := unix.Setdomainname([]byte(spec.Domainname)); err != nil {
			return fmt.Errorf("set domain name: %w", err)
		}
	}
	return nil
}

// terminal makes the terminal, if the process has one, and shows it as /dev/console.
func (m *making) terminal() (err error) {
	if m.tree.pts >= 0 {
		fd, err := unix.FcntlInt(uintptr(m.tree.pts), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		m.c.pts = os.NewFile(uintptr(fd), "terminals")
	}
	s := m.c.opt.Spec.Process
	if !s.Terminal {
		return nil
	}
	if m.term, err = openTerminal(m.tree.pts, m.c.ids.UID(int(s.User.UID)), s.ConsoleSize); err != nil || m.tree.pts < 0 {
		return err
	}
	source, err := openTree(int(m.term.theirs.Fd()), "", false)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer unix.Close(source)
	onto, err := m.tree.place("/dev/console", false)
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	defer unix.Close(onto)
	return attach(source, onto)
}

// fork begins to make the process.
func (m *making) fork() (last func(), err error) {
	c, p := m.c, m.plan
	prog, err := programOf(c.opt.Spec.Process)
	if err != nil {
		return nil, err
	}
	if c.users == nil {
		if m.where.share = c.OwnPID(); m.where.share {
			m.where.flags |= unix.CLONE_NEWPID
		}
		m.ownCgroups(p)
		m.tree.planRest(p)
	} else if err := m.planUsers(p); err != nil {
		return nil, err
	}
	stdio, err := m.stdio()
	if err != nil {
		return nil, err
	}
	gate, err := p.gate()
	if err != nil {
		return nil, err
	}
	if err := p.become(becoming{process: c.opt.Spec.Process, filter: c.opt.Filter, stdio: stdio, tty: m.term != nil,
		keyring: "_ses." + c.opt.ID, lastCap: c.launcher.lastCap, gate: gate}); err != nil {
		return nil, err
	}
	p.waitAt(gate)
	p.execute(prog, c.opt.Spec.Process.Args)
	if m.child, last, err = p.start(m.where); err != nil || c.users == nil {
		return last, err
	}
	if err = m.child.await(); err == nil {
		err = m.helpWithProc(m.child.pid)
	}
	if err != nil {
		m.child.kill()
	}
	return last, err
}

// born returns the process once it waits for its start.
func (m *making) born() (_ *Process, err error) {
	if m.c.users != nil {
		err = m.child.release()
	} else {
		err = m.child.await()
	}
	if err == nil && m.c.OwnPID() {
		m.c.pidns, err = m.c.launcher.namespace(m.child.pid, "pid")
	}
	if err != nil {
		m.child.kill()
		return nil, err
	}
	m.done = true
	return newProcess(m.child, m.term), nil
}

// programOf finds a process's program, from the container's root.
func programOf(s *specs.Process) (program, error) {
	env, err := environment(s.Env)
	if err != nil {
		return program{}, err
	}
	name, err := find(s.Args[0], cmp.Or(s.Cwd, "/"), env)
	return program{name, env}, err
}

// birth begins a plan and says where its process is made: in the container's
// cgroup, with its AppArmor profile for the next program. This thread must have
// this machine's root still. The files are to be closed once the process is there.
func (c *Container) birth(p *plan, s *specs.Process) (where forked, files []*os.File, err error) {
	where = forked{pid: c.pidns, ownPID: c.launcher.pid}
	// No process may look into this one but with all of this machine's
	// capabilities; it has the runtime's memory.
	p.call("hide the process", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if dir := c.opt.Group.Dir(); dir != "" {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return where, files, err
		}
		files, where.group = append(files, f), f
	}
	for _, name := range c.opt.Group.JoinFiles() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return where, files, err
		}
		files = append(files, f)
		p.call("join cgroup "+name, unix.SYS_WRITE, file(f.Fd()), "0", 1)
	}
	proc := c.launcher.proc
	if adj := c.opt.Spec.Process.OOMScoreAdj; adj != nil {
		p.writeIn(proc, "self/oom_score_adj", strconv.Itoa(*adj))
	}
	if s.ApparmorProfile != "" {
		p.writeIn(proc, c.launcher.apparmor, "exec "+s.ApparmorProfile)
	}
	return where, files, nil
}

// writeIn writes a file below a directory.
func (p *plan) writeIn(dir *os.File, name, value string) {
	var fd result
	what := fmt.Sprintf("write %q to /proc/%s", value, name)
	p.call(what, unix.SYS_OPENAT, file(dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0, keep(&fd))
	p.call(what, unix.SYS_WRITE, fromResult(fd), value, len(value))
	p.call(what, unix.SYS_CLOSE, fromResult(fd))
}

// join enters a namespace.
func (p *plan) join(f *os.File, flag int) {
	p.call("join "+f.Name(), unix.SYS_SETNS, file(f.Fd()), flag)
}

func (m *making) ownCgroups(p *plan) {
	if m.tree.ownCgroups() {
		p.call("make a cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
}

// enterUsers enters a user namespace as its root.
func (p *plan) enterUsers(users *os.File) {
	p.join(users, unix.CLONE_NEWUSER)
	p.call("drop groups", unix.SYS_SETGROUPS, 0, 0)
	p.call("become the container's root", unix.SYS_SETRESGID, 0, 0, 0)
	p.call("become the container's root", unix.SYS_SETRESUID, 0, 0, 0)
}

// planUsers is for a container with a user namespace, to which its PID, cgroup
// and mount namespaces must belong. Its /proc is made by another process,
// see helpWithProc, while it waits.
func (m *making) planUsers(p *plan) error {
	p.enterUsers(m.c.users)
	m.ownCgroups(p)
	if m.c.OwnPID() {
		p.call("make a PID namespace", opFork, unix.CLONE_NEWPID|unix.CLONE_PARENT)
	}
	gate, err := p.gate()
	if err != nil {
		return err
	}
	p.waitAt(gate)
	p.call("make a mount namespace", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	return nil
}

// helpWithProc makes what tree.rest has for the process pid of a user
// namespace. That could not itself: whoever mounts a /proc there must see one
// that nothing covers, and the container's tree has none.
func (m *making) helpWithProc(pid int) error {
	pidns, err := m.c.launcher.namespace(pid, "pid")
	if err != nil {
		return err
	}
	defer pidns.Close()
	p, err := newPlan()
	if err != nil {
		return err
	}
	if m.tree.ownCgroups() {
		f, err := m.c.launcher.namespace(pid, "cgroup")
		if err != nil {
			p.discard()
			return err
		}
		defer f.Close()
		p.join(f, unix.CLONE_NEWCGROUP)
	}
	m.tree.planRest(p)
	p.call("end", unix.SYS_EXIT_GROUP, 0)
	helper, _, err := p.start(forked{pid: pidns, ownPID: m.c.launcher.pid})
	if err != nil {
		p.discard()
		return err
	}
	err = helper.await()
	helper.kill()
	return err
}

// namespace opens a namespace of a process, from whatever root.
func (l *Launcher) namespace(pid int, kind string) (*os.File, error) {
	name := fmt.Sprintf("%d/ns/%s", pid, kind)
	fd, err := unix.Openat(int(l.proc.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), "/proc/"+name), nil
}

// stdio is what the process has as its standard streams.
func (m *making) stdio() (stdio [3]*os.File, err error) {
	if m.term != nil {
		return [3]*os.File{m.term.theirs, m.term.theirs, m.term.theirs}, nil
	}
	stdio, null, err := m.c.launcher.withNull(m.c.opt.Stdio)
	if null != nil {
		m.used = append(m.used, null)
	}
	return stdio, err
}

// withNull has /dev/null where there is no stream: the container's own, for the
// machine's could be changed by it. It is looked at before it is opened.
func (l *Launcher) withNull(stdio [3]*os.File) (_ [3]*os.File, null *os.File, err error) {
	if !slices.Contains(stdio[:], nil) {
		return stdio, nil, nil
	}
	place, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return stdio, nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	defer unix.Close(place)
	st, err := statOf(place)
	if err != nil {
		return stdio, nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return stdio, nil, errors.New("the container's /dev/null is something else")
	}
	fd, err := unix.Openat(int(l.proc.Fd()), fmt.Sprintf("thread-self/fd/%d", place), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return stdio, nil, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	null = os.NewFile(uintptr(fd), "/dev/null")
	for i := range stdio {
		if stdio[i] == nil {
			stdio[i] = null
		}
	}
	return stdio, null, nil
}
