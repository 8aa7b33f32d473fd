package dockerapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/term"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// frames writes one of several streams onto a shared connection, each write as
// a frame with Docker's 8-byte header: stream, three zeros, length.
type frames struct {
	mu     *sync.Mutex
	w      io.Writer
	stream stdcopy.StdType
}

func (f frames) Write(p []byte) (int, error) {
	buf := make([]byte, 8+len(p))
	buf[0] = byte(f.stream)
	binary.BigEndian.PutUint32(buf[4:8], uint32(len(p)))
	copy(buf[8:], p)
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(buf)
	return max(n-8, 0), err
}

// outputs returns the writers for standard output and error over w: w itself
// for a terminal, framed otherwise.
func outputs(w io.Writer, tty bool) (stdout, stderr io.Writer) {
	if tty {
		return w, w
	}
	var mu sync.Mutex
	return frames{&mu, w, stdcopy.Stdout}, frames{&mu, w, stdcopy.Stderr}
}

// takeOver takes the connection from the HTTP server. The reader goes on after
// what the server has read already. It is not the server's own, for which the
// end of the client's input is the client's leaving and ends the request's context.
func takeOver(w http.ResponseWriter) (net.Conn, io.Reader, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the connection: %w", err)
	}
	early, err := buf.Reader.Peek(buf.Reader.Buffered())
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn), nil
}

// hijack takes the connection over for a two-way stream. With an Upgrade
// header the client wants 101, older ones take 200 and go on as well.
func hijack(w http.ResponseWriter, r *http.Request, tty bool) (net.Conn, io.Reader, error) {
	conn, in, err := takeOver(w)
	if err != nil {
		return nil, nil, err
	}
	media := types.MediaTypeMultiplexedStream
	if tty {
		media = types.MediaTypeRawStream
	}
	if proto := r.Header.Get("Upgrade"); proto != "" {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", media, proto)
	} else {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n", media)
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, in, nil
}

// untilGone returns when the other end of conn, or conn itself, is closed. The
// end of the other's input alone does not count: docker has none to send, says
// so, and goes on reading. Nothing else may read from conn meanwhile.
func untilGone(ctx context.Context, conn net.Conn) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		<-ctx.Done()
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { // called again at each change
		fds := []unix.PollFd{{Fd: int32(fd)}} // a hang-up is always told
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0 && fds[0].Revents&unix.POLLHUP != 0
	})
}

// failing cancels when a write fails: the client is gone.
type failing struct {
	io.Writer
	cancel context.CancelFunc
}

func (f failing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err != nil {
		f.cancel()
	}
	return n, err
}

// detachable makes the reader end with term.EscapeError when the detach keys
// come by; keys is the client's choice, "" Docker's default.
func detachable(in io.Reader, keys string) (io.Reader, error) {
	codes := []byte{16, 17} // ctrl-p, ctrl-q
	if keys != "" {
		var err error
		if codes, err = term.ToBytes(keys); err != nil {
			return nil, fault.New(fault.Invalid, "invalid detach keys (%s) provided: %w", keys, err)
		}
	}
	return term.NewEscapeProxy(in, codes), nil
}

// detacher is standard input that ends the attachment, not the process, at the detach keys.
type detacher struct {
	io.Reader
	cancel context.CancelFunc
}

func (d detacher) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if errors.As(err, new(term.EscapeError)) {
		d.cancel()
		// Not io.EOF: the container's standard input stays open.
		return n, context.Canceled
	}
	return n, err
}

func (s *Server) containerAttach(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if c.State == engine.StatePaused {
		return fault.New(fault.Conflict, "container %s is paused, unpause the container before attach", c.Spec.Name)
	}
	if _, err := detachable(nil, param(r, "detachKeys")); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	attachment, err := s.opt.Engine.Announce(c.ID) // before the answer, after which the client may start it
	if err != nil {
		return err
	}
	defer attachment.Close()
	conn, in, err := hijack(w, r, c.Spec.TTY)
	if err != nil {
		return err
	}
	defer conn.Close()
	context.AfterFunc(ctx, func() { conn.Close() })
	s.publishOf(c, events.ActionAttach)
	stdout, stderr := outputs(failing{conn, cancel}, c.Spec.TTY)
	if flag(r, "logs") && c.LogPath != "" {
		// A client that does not read them must not hold up the start.
		attachment.Close()
		opt := logOptions{stdout: flag(r, "stdout"), stderr: flag(r, "stderr"), tail: -1}
		if err := s.copyLog(ctx, c, opt, stdout, stderr); err != nil {
			return err
		}
	}
	if !flag(r, "stream") {
		return nil
	}
	streams := engine.Streams{}
	reads := flag(r, "stdin") && c.Spec.Stdin
	if !reads {
		var watch sync.WaitGroup
		watch.Go(func() { untilGone(ctx, conn); cancel() })
		defer func() { conn.Close(); watch.Wait() }()
	}
	if flag(r, "stdout") {
		streams.Stdout = stdout
	}
	if flag(r, "stderr") && !c.Spec.TTY {
		streams.Stderr = stderr
	}
	if reads {
		if c.Spec.TTY {
			if in, err = detachable(in, param(r, "detachKeys")); err != nil {
				return err
			}
			in = detacher{in, func() { s.publishOf(c, events.ActionDetach); cancel() }}
		}
		streams.Stdin = in
	}
	return attachment.Attach(ctx, streams)
}

func (s *Server) containerResize(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	cols, rows, err := size(r)
	if err != nil {
		return err
	}
	if err := s.opt.Engine.ResizeContainer(r.Context(), c.ID, cols, rows); err != nil {
		return err
	}
	s.publishOf(c, events.ActionResize, "height", strconv.Itoa(int(rows)), "width", strconv.Itoa(int(cols)))
	w.WriteHeader(http.StatusOK)
	return nil
}

func size(r *http.Request) (cols, rows uint, err error) {
	h, errH := strconv.ParseUint(param(r, "h"), 10, 16)
	w, errW := strconv.ParseUint(param(r, "w"), 10, 16)
	if errH != nil || errW != nil {
		return 0, 0, fault.New(fault.Invalid, "resize: h=%q, w=%q are not numbers", param(r, "h"), param(r, "w"))
	}
	return uint(w), uint(h), nil
}
