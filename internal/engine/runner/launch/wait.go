package launch

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner/pidfd"
)

// Process is a process of a container.
type Process struct {
	PID int
	// Terminal is the controlling side of its terminal, nil if it has none. It
	// is the caller's to close.
	Terminal *os.File

	child *child
}

func newProcess(c *child, t *terminal) *Process {
	p := &Process{PID: c.pid, child: c}
	if t != nil {
		p.Terminal = t.ours
	}
	return p
}

// killed is what a shell calls the exit code of a process that a signal has
// ended, less that signal's number.
const killed = 128

// Wait returns the exit code, or 128 and the number of the signal, once the
// process has ended. Call it once.
func (p *Process) Wait() (int, error) {
	err := pidfd.Wait(p.child.pidfd)
	var ws unix.WaitStatus
	if _, waitErr := wait4(p.child.pid, &ws, 0); waitErr != nil {
		return killed + int(unix.SIGKILL), errors.Join(err, os.NewSyscallError("wait4", waitErr))
	}
	p.child.reaped()
	if ws.Signaled() {
		return killed + int(ws.Signal()), err
	}
	return ws.ExitStatus(), err
}

// Signal sends a signal; to a process that has ended, that is no error.
func (p *Process) Signal(sig unix.Signal) error { return p.child.signal(sig) }
