package runner

import (
	"context"
	"encoding/json"
	"io"
)

// Exec runs one more process in a container and returns its exit code once it
// has ended and its output is written. Cancelling ctx kills it.
func (c *Client) Exec(ctx context.Context, r ExecRequest, s Streams) (code int, err error) {
	return code, c.stream(ctx, OpExec, r, s, &code)
}

// Attach connects streams to a container's main process, from now on, until it
// has exited and its output is written, or ctx ends. A slow writer holds the
// container back, but not its end: what it has not taken by then is kept for it,
// and does not need the runner any more.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error {
	return c.stream(ctx, OpAttach, Target{ID: id, Stdin: s.Stdin != nil}, s, nil)
}

func (c *Client) stream(ctx context.Context, op string, body any, s Streams, out any) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, end, err := c.begin(ctx, op, body)
	if err != nil {
		return err
	}
	defer end()
	for {
		t, payload, err := conn.Read()
		if err != nil {
			return c.failed(ctx, op, err)
		}
		switch t {
		case FrameStarted:
			sendInput(ctx, conn, s)
			if s.Started != nil {
				s.Started()
			}
		case FrameStdout:
			err = writeTo(s.Stdout, payload)
		case FrameStderr:
			err = writeTo(s.Stderr, payload)
		case FrameError:
			return AsError(payload)
		case FrameResult:
			if out == nil {
				return nil
			}
			return json.Unmarshal(payload, out)
		}
		if err != nil {
			return err
		}
	}
}

func writeTo(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(p)
	return err
}

// sendInput copies the caller's input and terminal sizes into frames. The
// goroutine that reads Stdin ends when its reader does: a terminal's may be
// long after the call.
func sendInput(ctx context.Context, conn *Conn, s Streams) {
	if s.Stdin != nil {
		go func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := s.Stdin.Read(buf)
				if n > 0 && conn.Write(FrameStdin, buf[:n]) != nil {
					return
				}
				if err != nil {
					_ = conn.Write(FrameStdinEnd, nil)
					return
				}
			}
		}()
	}
	if s.Resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-s.Resize:
					if !ok || conn.WriteJSON(FrameResize, size) != nil {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
}
