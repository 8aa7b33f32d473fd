package cli

import (
	"io"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

type terminalSize = client.ConsoleSize

// terminalSize is the size of the terminal that output goes to.
func (e *env) terminalSize() (terminalSize, bool) {
	w, h, ok := e.term.Size()
	return terminalSize{Height: uint(h), Width: uint(w)}, ok
}

// streams are a process in a container connected to this one's streams.
type streams struct {
	output  chan error
	restore func()      // puts the terminal back as it was
	left    atomic.Bool // by its keys; the process runs on
}

// connect copies between the connection and the terminal's streams. With a tty
// the terminal passes every key on untouched until restore; leave are those that
// leave the process.
func (e *env) connect(conn client.HijackedResponse, tty, stdin bool, leave []byte) (*streams, error) {
	s := &streams{output: make(chan error, 1), restore: func() {}}
	if tty && stdin {
		restore, err := e.term.Raw()
		if err != nil {
			return nil, err
		}
		s.restore = restore
	}
	if stdin {
		// Nothing waits for this goroutine: a read of the terminal ends with the
		// program alone. That the other side is gone its output says.
		in := e.term.In
		if tty && len(leave) > 0 {
			in = &leaving{Reader: in, keys: leave, left: &s.left}
		}
		go func() {
			_, _ = io.Copy(conn.Conn, in)
			_ = conn.CloseWrite()
		}()
	} else if err := conn.CloseWrite(); err != nil {
		return nil, err
	}
	go func() {
		var err error
		if tty {
			_, err = io.Copy(e.term.Out, conn.Reader)
		} else {
			_, err = stdcopy.StdCopy(e.term.Out, e.term.Err, conn.Reader)
		}
		s.output <- err
	}()
	return s, nil
}

// wait returns when the process's output has ended.
func (s *streams) wait() error {
	err := <-s.output
	s.restore()
	return err
}

// forwarded are the signals that a container gets in place of this program. A
// terminal in raw mode sends keys, not signals, except for its size.
var forwarded = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// proxySignals passes signals and changes of the terminal's size on until the
// returned function is called; without send no signals. The third SIGINT or SIGTERM ends this program:
// the one in the container does not listen.
func (e *env) proxySignals(tty bool, send func(sig string), resize func(terminalSize)) (stop func()) {
	signals := make(chan os.Signal, 16)
	if send != nil {
		signal.Notify(signals, forwarded...)
	}
	if tty {
		signal.Notify(signals, syscall.SIGWINCH)
	}
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		asked := 0
		for {
			select {
			case <-quit:
				return
			case sig := <-signals:
				if sig == syscall.SIGWINCH {
					if size, ok := e.terminalSize(); ok {
						resize(size)
					}
					continue
				}
				if sig == syscall.SIGINT || sig == syscall.SIGTERM {
					if asked++; asked == 3 {
						signal.Stop(signals)
						e.term.Notef("\nthe container does not end; leaving it running")
						os.Exit(exitInterrupted)
					}
				}
				send(signalName(sig))
			}
		}
	})
	return sync.OnceFunc(func() {
		signal.Stop(signals)
		close(quit)
		done.Wait()
	})
}

func signalName(sig os.Signal) string {
	n, ok := sig.(syscall.Signal)
	if !ok {
		return sig.String()
	}
	if name := unix.SignalName(n); name != "" {
		return name
	}
	return strconv.Itoa(int(n))
}
