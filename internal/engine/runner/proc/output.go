package proc

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// output is where a process's output goes: its log and whoever is attached. A
// slow caller holds the process back, as a slow terminal does; one that hangs
// up is let go. It does not hold back the process's end: what is still to come
// then waits for the caller in its socket.
type output struct {
	log *logFile // nil: none

	mu     sync.Mutex
	conns  []*runner.Conn
	hungUp bool // nobody is attached any more
	closed bool
	ended  chan struct{} // made by the first attach
}

// tail is more than the pipes of a process that has ended hold: 1 MiB each, if
// it made them as large as it may.
const tail = 3 << 20

// readSize is how much of a stream is read at a time: all that a pipe holds.
const readSize = 64 << 10

// copy copies a stream to its end.
func (o *output) copy(stream string, from io.Reader) {
	var lines *lineWriter
	if o.log != nil {
		lines = &lineWriter{log: o.log, stream: stream}
		defer lines.flush()
	}
	frame := runner.FrameStdout
	if stream == "stderr" {
		frame = runner.FrameStderr
	}
	buf := make([]byte, readSize)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if lines != nil {
				lines.write(buf[:n])
			}
			o.send(frame, buf[:n])
		}
		if err != nil {
			return // the end; a terminal's is EIO
		}
	}
}

func (o *output) send(t runner.FrameType, b []byte) {
	o.mu.Lock()
	conns := slices.Clone(o.conns)
	o.mu.Unlock()
	for _, c := range conns {
		if c.Write(t, b) != nil {
			o.detach(c)
		}
	}
}

// attach adds a caller; the channel is closed once the output has ended.
func (o *output) attach(c *runner.Conn) <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended == nil {
		o.ended = make(chan struct{})
		if o.closed {
			close(o.ended)
		}
	}
	if !o.closed && !o.hungUp {
		o.conns = append(o.conns, c)
	}
	return o.ended
}

func (o *output) detach(c *runner.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conns = slices.DeleteFunc(o.conns, func(have *runner.Conn) bool { return have == c })
}

// makeRoom has what is still to come fit in the sockets of callers that do not
// read, who find it there when they do, even after this process has ended.
func (o *output) makeRoom() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.conns {
		if err := c.MakeRoom(tail); err != nil {
			fmt.Fprintln(os.Stderr, "make room for the last output:", err) // hangUp lets the caller go
		}
	}
}

// hangUp lets all callers go, so that nothing waits for one that does not read.
func (o *output) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hungUp = true
	for _, c := range o.conns {
		_ = c.Close()
	}
}

// close is called once nothing more is copied.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	o.closed = true
	if o.ended != nil {
		close(o.ended)
	}
	o.conns = nil
	if o.log != nil {
		if err := o.log.close(); err != nil {
			fmt.Fprintln(os.Stderr, "close log:", err)
		}
	}
}
