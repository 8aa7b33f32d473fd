package runner

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// wireVersion is that of the frames and operations below. A runner answers
// only its own: the daemon may be newer than the runners it finds.
const wireVersion = 1

// FrameType is the first byte of a frame.
type FrameType byte

// The frame types, see the package comment.
const (
	FrameRequest  FrameType = 'R'
	FrameResult   FrameType = 'O'
	FrameError    FrameType = 'E'
	FrameStarted  FrameType = 'S'
	FrameEvent    FrameType = 'V'
	FrameStdin    FrameType = '0'
	FrameStdout   FrameType = '1'
	FrameStderr   FrameType = '2'
	FrameStdinEnd FrameType = 'C'
	FrameResize   FrameType = 'W'
)

// maxFrame bounds a payload: a spec with a large seccomp profile is a tenth of it.
const maxFrame = 16 << 20

// The operations of a request.
const (
	OpSetup    = "setup"
	OpCreate   = "create"
	OpStart    = "start"
	OpExec     = "exec"
	OpAttach   = "attach"
	OpResize   = "resize"
	OpSignal   = "signal"
	OpWait     = "wait"
	OpList     = "list"
	OpEvents   = "events"
	OpStats    = "stats"
	OpUpdate   = "update"
	OpPause    = "pause"
	OpResume   = "resume"
	OpReopen   = "reopen-log"
	OpPids     = "processes"
	OpDelete   = "delete"
	OpShutdown = "shutdown"
	OpHello    = "hello"
)

// Request is the payload of a request frame.
type Request struct {
	Version int             `json:"version"`
	Op      string          `json:"op"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// Target is the body of the operations on one container.
type Target struct {
	ID     string          `json:"id"`
	ExecID string          `json:"execID,omitempty"` // resize
	Signal int             `json:"signal,omitempty"`
	All    bool            `json:"all,omitempty"` // signal: every process of the container
	Force  bool            `json:"force,omitempty"`
	Size   [2]uint         `json:"size,omitzero"`
	Stdin  bool            `json:"stdin,omitempty"`  // attach: the caller has input
	Limits json.RawMessage `json:"limits,omitempty"` // update: specs.LinuxResources
}

// wireError is the payload of an error frame.
type wireError struct {
	Kind    fault.Kind `json:"kind"`
	Message string     `json:"message"`
}

// Conn reads and writes frames. Writes may be concurrent, reads not.
type Conn struct {
	rw io.ReadWriteCloser
	mu sync.Mutex // one frame at a time
}

// NewConn makes frames of a stream.
func NewConn(rw io.ReadWriteCloser) *Conn { return &Conn{rw: rw} }

// Close closes the stream.
func (c *Conn) Close() error { return c.rw.Close() }

// MakeRoom has n bytes more be sent without waiting for the reader: a socket
// keeps them for it, also when this end is gone.
func (c *Conn) MakeRoom(n int) error {
	socket, ok := c.rw.(syscall.Conn)
	if !ok {
		return nil
	}
	rc, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = rc.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, n) })
	return errors.Join(err, optErr)
}

// Write sends one frame.
func (c *Conn) Write(t FrameType, payload []byte) error {
	buf := make([]byte, 5+len(payload))
	buf[0] = byte(t)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(payload)))
	copy(buf[5:], payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.rw.Write(buf)
	return err
}

// WriteJSON sends one frame with v as its payload.
func (c *Conn) WriteJSON(t FrameType, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Write(t, data)
}

// WriteError sends an error with its kind.
func (c *Conn) WriteError(err error) error {
	return c.WriteJSON(FrameError, wireError{fault.KindOf(err), err.Error()})
}

// Read returns the next frame; io.EOF if the stream ended between frames.
func (c *Conn) Read() (FrameType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.rw, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes is over the limit of %d", n, maxFrame)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(c.rw, payload); err != nil {
		return 0, nil, fmt.Errorf("frame cut short: %w", err)
	}
	return FrameType(head[0]), payload, nil
}

// ReadRequest reads the frame that opens a call.
func (c *Conn) ReadRequest() (Request, error) {
	var r Request
	t, payload, err := c.Read()
	if err != nil {
		return r, err
	}
	if t != FrameRequest {
		return r, fault.New(fault.Invalid, "frame %q where a request belongs", t)
	}
	if err := json.Unmarshal(payload, &r); err != nil {
		return r, fault.New(fault.Invalid, "request: %w", err)
	}
	if r.Version != wireVersion {
		return r, fault.New(fault.Unsupported, "this runner speaks version %d of its protocol, the caller %d", wireVersion, r.Version)
	}
	return r, nil
}

// AsError turns an error frame's payload back into an error of its kind.
func AsError(payload []byte) error {
	var e wireError
	if err := json.Unmarshal(payload, &e); err != nil {
		return fmt.Errorf("runner's error: %w", err)
	}
	return fault.New(e.Kind, "%s", e.Message)
}
