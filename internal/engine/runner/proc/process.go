package proc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// drainTime is how long output may still come after a process ended, for what
// it left behind may hold its pipes open for ever; and then how long a caller
// gets to take what came.
const drainTime = 2 * time.Second

// process is a container's main process or one that was added by exec, with
// its pipes or terminal.
type process struct {
	lib       *libcontainer.Process
	tty       bool
	stdinOnce bool
	out       *output
	started   func()        // called once the process runs, before any of its output is copied; may be nil
	done      chan struct{} // closed by drain

	theirs  []*os.File // the process's ends, closed here once it has them
	readers []source
	copies  sync.WaitGroup

	mu    sync.Mutex
	stdin io.WriteCloser // nil if there is none, or it is closed
	term  *os.File       // the terminal's controlling side
}

// source is a stream of output to copy.
type source struct {
	name string // "stdout" or "stderr"
	file *os.File
}

type processOptions struct {
	init, tty, stdin, stdinOnce bool
	owner                       pipeOwner
	filter                      *filterFile // nil: none
	out                         *output
}

// pipeOwner is who owns a process's pipes: the container's root, who could not
// open them by /dev/stdout otherwise.
type pipeOwner struct{ uid, gid int }

func ownerIn(config configs.Config) (pipeOwner, error) {
	uid, err := config.HostRootUID()
	if err != nil {
		return pipeOwner{}, err
	}
	gid, err := config.HostRootGID()
	return pipeOwner{uid, gid}, err
}

func (o pipeOwner) give(f *os.File) error {
	if o == (pipeOwner{}) {
		return nil
	}
	return f.Chown(o.uid, o.gid)
}

func newProcess(spec *specs.Process, opt processOptions) (*process, error) {
	lib, err := libProcess(spec)
	if err != nil {
		return nil, err
	}
	lib.Init = opt.init
	if opt.filter != nil {
		lib.ExtraFiles = []*os.File{opt.filter.file}
	}
	p := &process{lib: lib, tty: opt.tty, stdinOnce: opt.stdinOnce, out: opt.out, done: make(chan struct{})}
	if opt.tty {
		return p, nil // the terminal is made by start
	}
	if err := p.makePipes(opt.stdin, opt.owner); err != nil {
		p.closeFiles()
		return nil, err
	}
	return p, nil
}

// libProcess turns the process of an OCI spec into libcontainer's.
func libProcess(s *specs.Process) (*libcontainer.Process, error) {
	if len(s.Args) == 0 {
		return nil, fault.New(fault.Invalid, "the process has no program")
	}
	p := &libcontainer.Process{
		Args: s.Args, Env: s.Env, Cwd: s.Cwd, UID: int(s.User.UID), GID: int(s.User.GID),
		NoNewPrivileges: &s.NoNewPrivileges, AppArmorProfile: s.ApparmorProfile, Label: s.SelinuxLabel,
		LogLevel: "3", // logrus' warning
	}
	if s.ConsoleSize != nil {
		p.ConsoleWidth, p.ConsoleHeight = uint16(s.ConsoleSize.Width), uint16(s.ConsoleSize.Height)
	}
	if c := s.Capabilities; c != nil {
		p.Capabilities = &configs.Capabilities{Bounding: c.Bounding, Effective: c.Effective,
			Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient}
	}
	for _, g := range s.User.AdditionalGids {
		p.AdditionalGroups = append(p.AdditionalGroups, int(g))
	}
	for _, l := range s.Rlimits {
		kind, ok := rlimits[strings.ToUpper(l.Type)]
		if !ok {
			return nil, fault.New(fault.Invalid, "resource limit %q is not known", l.Type)
		}
		p.Rlimits = append(p.Rlimits, configs.Rlimit{Type: kind, Soft: l.Soft, Hard: l.Hard})
	}
	return p, nil
}

// rlimits are the limits of getrlimit(2) by their OCI names.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func (p *process) makePipes(stdin bool, owner pipeOwner) error {
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, r)
		p.lib.Stdin, p.stdin = r, w
		if err := owner.give(r); err != nil {
			return err
		}
	}
	for _, name := range []string{"stdout", "stderr"} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, w)
		p.readers = append(p.readers, source{name, r})
		if err := owner.give(w); err != nil {
			return err
		}
		if name == "stdout" {
			p.lib.Stdout = w
		} else {
			p.lib.Stderr = w
		}
	}
	return nil
}

// start starts the process in ctr and the copying of its output. After an
// error nothing of it is left, its output is closed.
func (p *process) start(ctr *libcontainer.Container) error {
	err := p.startWithTerminal(ctr)
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
	if err != nil {
		p.closeFiles()
		p.out.close()
		return err
	}
	if p.started != nil {
		p.started()
	}
	for _, s := range p.readers {
		p.copies.Go(func() { p.out.copy(s.name, s.file) })
	}
	return nil
}

func (p *process) startWithTerminal(ctr *libcontainer.Container) error {
	if !p.tty {
		return ctr.Start(p.lib)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	p.theirs = append(p.theirs, theirs)
	p.lib.ConsoleSocket = theirs
	if err := ctr.Start(p.lib); err != nil {
		return err
	}
	term, err := receiveFile(ours)
	if err != nil {
		p.kill()
		_, _ = p.lib.Wait()
		return fmt.Errorf("terminal: %w", err)
	}
	p.term = term
	p.stdin = keepOpen{term}
	p.readers = []source{{"stdout", term}}
	return nil
}

// keepOpen is a terminal as input: its end is not the terminal's.
type keepOpen struct{ *os.File }

func (keepOpen) Close() error { return nil }

func (p *process) closeFiles() {
	for _, f := range p.theirs {
		f.Close()
	}
	for _, s := range p.readers {
		s.file.Close()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// wait returns the exit code once the process has ended. Call it once, and then drain.
func (p *process) wait() int {
	state, err := p.lib.Wait() // the error repeats a code that is not 0
	if state == nil {
		fmt.Fprintf(os.Stderr, "wait for a process: %v\n", err)
		return 128 + int(unix.SIGKILL)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// drain waits for the last output and lets go of the process's files.
func (p *process) drain() {
	p.out.makeRoom()
	copied := make(chan struct{})
	go func() { p.copies.Wait(); close(copied) }()
	waitAtMost(copied, drainTime)
	p.mu.Lock()
	if p.stdin != nil {
		p.stdin.Close()
		p.stdin = nil
	}
	p.mu.Unlock()
	for _, s := range p.readers {
		s.file.Close() // ends a copy that waits for more
	}
	if !waitAtMost(copied, drainTime) {
		p.out.hangUp() // ends a copy that waits for a caller
	}
	<-copied
	p.out.close()
	close(p.done)
}

// waitAtMost reports whether done was closed within limit.
func waitAtMost(done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// kill ends the process, unless it has ended.
func (p *process) kill() { _ = p.lib.Signal(unix.SIGKILL) }

func (p *process) resize(size [2]uint) error {
	if p.term == nil {
		return fault.New(fault.Conflict, "the process has no terminal")
	}
	rc, err := p.term.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(size[0]), Row: uint16(size[1])})
	})
	return errors.Join(err, ioctlErr)
}

// write gives the process input; input after its end is dropped, as a pipe's
// reader that is gone would have it.
func (p *process) write(b []byte) {
	p.mu.Lock()
	w := p.stdin
	p.mu.Unlock()
	if w != nil {
		_, _ = w.Write(b)
	}
}

// endInput is the end of a caller's input. A terminal is told as a person
// would tell it, by ^D.
func (p *process) endInput() {
	p.mu.Lock()
	w := p.stdin
	if !p.tty {
		p.stdin = nil
	}
	p.mu.Unlock()
	switch {
	case w == nil:
	case p.tty:
		_, _ = w.Write([]byte{4}) // may wait for the program to read, and drain for mu
	default:
		w.Close()
	}
}
