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
	ws, waitErr := p.child.wait()
	if waitErr != nil {
		return killed + int(unix.SIGKILL), errors.Join(err, waitErr)
	}
	if ws.Signaled() {
		return killed + int(ws.Signal()), err
	}
	return ws.ExitStatus(), err
}

// Signal sends a signal; to a process that has ended, that is no error.
func (p *Process) Signal(sig unix.Signal) error { return p.child.signal(sig) }
