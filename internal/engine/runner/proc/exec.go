package proc

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/launch"
	"github.com/ferryos/ferry/internal/fault"
)

// exec runs one more process in a container and returns its exit code. A
// caller that hangs up kills it, unless it is detached.
func (s *server) exec(conn *runner.Conn, body json.RawMessage) (any, error) {
	var r runner.ExecRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	c, err := s.find(r.ContainerID)
	if err != nil {
		return nil, err
	}
	if r.Process == nil {
		return nil, fault.New(fault.Invalid, "exec in container %s: no process", c.id)
	}
	p, err := c.startExec(conn, r)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	gone := make(chan struct{})
	go func() { // ends when handle closes the connection
		defer close(gone)
		feed(conn, p, r.Stdin)
		if !r.Detached {
			p.kill()
		}
	}()
	code := p.wait()
	p.drain()
	c.mu.Lock()
	delete(c.execs, r.ExecID)
	c.mu.Unlock()
	return code, nil
}

// startExec starts the process and tells the caller, before any of its output.
func (c *container) startExec(conn *runner.Conn, r runner.ExecRequest) (*process, error) {
	if c.hasExited() {
		return nil, fault.New(fault.Conflict, "the container is not running")
	}
	p, err := newProcess(processOptions{tty: r.TTY, stdin: r.Stdin, owner: ownerOf(c.users, r.Process.User), out: &output{}})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if _, taken := c.execs[r.ExecID]; taken {
		c.mu.Unlock()
		p.closeFiles()
		return nil, fault.New(fault.Conflict, "exec %s exists already", r.ExecID)
	}
	c.execs[r.ExecID] = p
	c.mu.Unlock()
	p.started = func() { _ = conn.Write(runner.FrameStarted, nil) } // the command runs also for a caller that is gone
	p.out.attach(conn)
	r.Process.Terminal = r.TTY
	err = p.start(func(stdio [3]*os.File) (*launch.Process, error) {
		return c.ctr.Exec(launch.ExecOptions{Process: r.Process, Filter: c.filter, Stdio: stdio})
	})
	if err != nil {
		c.mu.Lock()
		delete(c.execs, r.ExecID)
		c.mu.Unlock()
		close(p.done)
		return nil, err
	}
	return p, nil
}

// attach connects the caller to a container's main process until it has ended
// and its output is sent, or the caller hangs up.
func (s *server) attach(conn *runner.Conn, body json.RawMessage) error {
	var t runner.Target
	if err := decode(body, &t); err != nil {
		return err
	}
	c, err := s.find(t.ID)
	if err != nil {
		return err
	}
	ended := c.main.out.attach(conn)
	defer c.main.out.detach(conn)
	if err := conn.Write(runner.FrameStarted, nil); err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() { // ends when handle closes the connection
		defer close(gone)
		feed(conn, c.main, t.Stdin)
	}()
	select {
	case <-ended:
	case <-gone:
	case <-s.closed:
	}
	return nil
}

// feed takes a caller's input and terminal sizes until it hangs up.
func feed(conn *runner.Conn, p *process, stdin bool) {
	for {
		t, payload, err := conn.Read()
		if err != nil {
			return
		}
		switch t {
		case runner.FrameStdin:
			if stdin {
				p.write(payload)
			}
		case runner.FrameStdinEnd:
			if stdin && (!p.init || p.stdinOnce) {
				p.endInput()
			}
		case runner.FrameResize:
			var size [2]uint
			if json.Unmarshal(payload, &size) == nil {
				_ = p.resize(size)
			}
		}
	}
}
