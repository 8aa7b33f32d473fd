package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// Exec returns the URL at which a process in a container is started and streamed.
func (s *Service) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := s.mustRun(ctx, r.ContainerId); err != nil {
		return nil, err
	}
	return s.streams.GetExec(r)
}

// Attach returns the URL at which a container's main process is streamed.
func (s *Service) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := s.mustRun(ctx, r.ContainerId); err != nil {
		return nil, err
	}
	return s.streams.GetAttach(r)
}

// PortForward returns the URL at which a pod's ports are streamed.
func (s *Service) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	p, err := s.pod(ctx, r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	if p.State != engine.PodReady {
		return nil, asStatus(fault.New(fault.Conflict, "pod %s is not running", p.ID))
	}
	return s.streams.GetPortForward(r)
}

func (s *Service) mustRun(ctx context.Context, id string) error {
	c, err := s.container(ctx, id)
	if err == nil && c.State != engine.StateRunning {
		err = asStatus(fault.New(fault.Conflict, "container %s is not running", id))
	}
	return err
}

// execLimit bounds what ExecSync returns of each stream, as containerd's 16 MiB do.
const execLimit = 16 << 20

// ExecSync runs a process in a container to its end.
func (s *Service) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, err error) {
	if err := s.mustRun(ctx, id); err != nil {
		return nil, nil, err
	}
	run := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		run, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	out, errOut := &limited{}, &limited{}
	code, err := s.opt.Engine.Exec(run, id, engine.ExecSpec{Args: cmd}, engine.Streams{Stdout: out, Stderr: errOut})
	switch {
	case run.Err() != nil && ctx.Err() == nil:
		return nil, nil, timeoutError{cmd, timeout}
	case err != nil:
		return nil, nil, asStatus(err)
	case code != 0:
		err = utilexec.CodeExitError{Err: fmt.Errorf("command %q exited with %d: %s", cmd, code, errOut.Bytes()), Code: code}
	}
	return out.Bytes(), errOut.Bytes(), err
}

// timeoutError says that a command took too long: to the kubelet's probes,
// which ask for the CRI client's error, and to gRPC clients by its code.
type timeoutError struct {
	cmd   []string
	after time.Duration
}

func (e timeoutError) Error() string {
	return fmt.Sprintf("%v: %q timed out after %v", criclient.ErrCommandTimedOut, e.cmd, e.after)
}

func (e timeoutError) Unwrap() error { return criclient.ErrCommandTimedOut }

// GRPCStatus is what package status asks for.
func (e timeoutError) GRPCStatus() *status.Status {
	return status.New(codes.DeadlineExceeded, e.Error())
}

// limited keeps the first execLimit bytes.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := execLimit - l.Len(); room < len(p) {
		l.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return l.Buffer.Write(p)
}

// streamer is what the streaming server runs.
type streamer struct{ engine *engine.Engine }

func (s streamer) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	code, err := s.engine.Exec(ctx, id, engine.ExecSpec{Args: cmd, TTY: tty}, streams(ctx, in, out, errOut, resize))
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

func (s streamer) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return s.engine.Attach(ctx, id, streams(ctx, in, out, errOut, resize))
}

func (s streamer) PortForward(ctx context.Context, podID string, port int32, conn io.ReadWriteCloser) error {
	if port <= 0 || port > 65535 {
		return errors.New("no such port")
	}
	return s.engine.PortForward(ctx, podID, int(port), conn)
}

// streams translates; nil interfaces must stay nil.
func streams(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) engine.Streams {
	s := engine.Streams{Stdin: in}
	if out != nil {
		s.Stdout = out
	}
	if errOut != nil {
		s.Stderr = errOut
	}
	if resize != nil {
		sizes := make(chan [2]uint)
		s.Resize = sizes
		go func() { // ends with the stream, whose end closes resize or ctx
			for {
				select {
				case size, ok := <-resize:
					if !ok {
						return
					}
					select {
					case sizes <- [2]uint{uint(size.Width), uint(size.Height)}:
					case <-ctx.Done():
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return s
}
