package proc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/launch"
	"github.com/ferryos/ferry/internal/fault"
)

// drainTime is how long output may still come after a process ended, for what
// it left behind may hold its pipes open for ever; and then how long a caller
// gets to take what came.
const drainTime = 2 * time.Second

// process is a container's main process or one that was added by exec, with
// its pipes or terminal.
type process struct {
	init      bool // the container's first
	tty       bool
	stdinOnce bool
	out       *output
	started   func()        // called once the process runs, before any of its output is copied; may be nil
	done      chan struct{} // closed by drain

	theirs  [3]*os.File // the process's ends, closed here once it has them
	readers []source
	copies  sync.WaitGroup

	mu      sync.Mutex
	running *launch.Process // nil until start has made it
	stdin   io.WriteCloser  // nil if there is none, or it is closed
	term    *os.File        // the terminal's controlling side
}

// source is a stream of output to copy.
type source struct {
	name string // "stdout" or "stderr"
	file *os.File
}

type processOptions struct {
	init, tty, stdin, stdinOnce bool
	owner                       pipeOwner // of its pipes
	out                         *output
}

// pipeOwner is the owner of a process's pipes, the user it runs as, who could
// not open them by /dev/stdout otherwise.
type pipeOwner struct{ uid, gid int }

// ownerOf is the owner of the pipes of a process that runs as u in a user
// namespace, or in this machine's if users is nil.
func ownerOf(users *runner.Users, u specs.User) pipeOwner {
	return pipeOwner{users.UID(int(u.UID)), users.GID(0)}
}

func (o pipeOwner) give(f *os.File) error {
	if o.uid == 0 {
		return nil
	}
	return f.Chown(o.uid, o.gid)
}

func newProcess(opt processOptions) (*process, error) {
	p := &process{init: opt.init, tty: opt.tty, stdinOnce: opt.stdinOnce, out: opt.out, done: make(chan struct{})}
	if opt.tty {
		return p, nil // the terminal is made by start
	}
	if err := p.makePipes(opt.stdin, opt.owner); err != nil {
		p.closeFiles()
		return nil, err
	}
	return p, nil
}

func (p *process) makePipes(stdin bool, owner pipeOwner) error {
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs[0], p.stdin = r, w
		if err := owner.give(r); err != nil {
			return err
		}
	}
	for i, name := range []string{"stdout", "stderr"} {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs[i+1] = w
		p.readers = append(p.readers, source{name, r})
		if err := owner.give(w); err != nil {
			return err
		}
	}
	return nil
}

// start has the process made and starts the copying of its output. After an
// error nothing of it is left, its output is closed.
func (p *process) start(launched func(stdio [3]*os.File) (*launch.Process, error)) error {
	running, err := launched(p.theirs)
	p.closeTheirs()
	if err != nil {
		p.closeFiles()
		p.out.close()
		return err
	}
	p.mu.Lock()
	p.running = running
	if running.Terminal != nil {
		p.term, p.stdin = running.Terminal, keepOpen{running.Terminal}
		p.readers = []source{{"stdout", running.Terminal}}
	}
	p.mu.Unlock()
	if p.started != nil {
		p.started()
	}
	for _, s := range p.readers {
		p.copies.Go(func() { p.out.copy(s.name, s.file) })
	}
	return nil
}

// keepOpen is a terminal as input: its end is not the terminal's.
type keepOpen struct{ *os.File }

func (keepOpen) Close() error { return nil }

func (p *process) closeTheirs() {
	for _, f := range p.theirs {
		if f != nil {
			f.Close()
		}
	}
	p.theirs = [3]*os.File{}
}

func (p *process) closeFiles() {
	p.closeTheirs()
	for _, s := range p.readers {
		s.file.Close()
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// wait returns the exit code once the process has ended. Call it once, and then drain.
func (p *process) wait() int {
	code, err := p.running.Wait()
	if err != nil {
		fmt.Fprintf(os.Stderr, "wait for a process: %v\n", err)
	}
	return code
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
func (p *process) kill() { _ = p.signal(unix.SIGKILL) }

// signal sends a signal, unless the process is not there yet or has ended.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	running := p.running
	p.mu.Unlock()
	if running == nil {
		return nil
	}
	return running.Signal(sig)
}

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
