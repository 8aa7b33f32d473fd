package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner/pidfd"
	"github.com/ferryos/ferry/internal/fault"
)

// Client speaks to one runner. Its methods may be called concurrently.
type Client struct {
	dir   string
	pid   int
	ended chan struct{} // closed once our own child has; nil after Dial

	mu     sync.Mutex
	closed bool
	open   map[net.Conn]struct{}
}

// Launch starts a runner and returns when it answers. The runner is in a
// session of its own and outlives the caller.
func Launch(ctx context.Context, opt LaunchOptions) (*Client, error) {
	if err := os.MkdirAll(filepath.Dir(opt.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("launch runner: %w", err)
	}
	if err := os.Mkdir(opt.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("launch runner: %w", err)
	}
	logFile, err := os.OpenFile(filepath.Join(opt.Dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("launch runner: %w", err)
	}
	defer logFile.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("launch runner: %w", err)
	}
	defer ready.Close()
	sealed, err := sealedCopy(opt.Binary)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "launch runner: %w", err)
	}
	cmd := &exec.Cmd{Path: sealed.path, Args: []string{opt.Binary, "serve"}, Dir: opt.Dir}
	cmd.Env = []string{"GOMAXPROCS=2", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", VersionEnv + "=" + sealed.version}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = logFile, logFile, []*os.File{readyW}
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &fd}
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		return nil, fault.New(fault.Unavailable, "launch runner: %w", err)
	}
	c := &Client{dir: opt.Dir, pid: cmd.Process.Pid, ended: make(chan struct{}), open: map[net.Conn]struct{}{}}
	go c.reap(cmd, fd) // ends with the runner, which may be after us: nobody can wait for it
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	var one [1]byte
	if _, err := ready.Read(one[:]); err != nil {
		_ = cmd.Process.Kill() // fails if it has ended, which is as well
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		said, _ := os.ReadFile(logFile.Name())
		return nil, fault.New(fault.Internal, "runner did not start: %s", lastLine(said))
	}
	return c, nil
}

// reapDelay is how long a runner that has ended stays a zombie.
const reapDelay = 100 * time.Millisecond

// reap takes note of the runner's end, and takes the zombie away some time
// later. At once would cost both processors milliseconds: the kernel walks the
// entries of /proc/PID for the process and for each of its threads, and those
// that end at that moment wait for each other's walks, spinning. It waits as for
// a socket: os/exec's own wait holds a thread for each runner.
func (c *Client) reap(cmd *exec.Cmd, fd int) {
	_ = unix.SetNonblock(fd, true) // for Go's poller; it cannot fail for a pidfd
	f := os.NewFile(uintptr(fd), "runner")
	_ = pidfd.Wait(f)
	f.Close()
	close(c.ended)
	time.Sleep(reapDelay)
	_ = cmd.Wait() // how it ended says its log
}

func lastLine(b []byte) string {
	const most = 400
	if len(b) > most {
		b = b[len(b)-most:]
	}
	if len(b) == 0 {
		return "it said nothing"
	}
	return string(b)
}

// Dial connects to a runner that an earlier process launched; Unavailable if it is gone.
func Dial(ctx context.Context, dir string) (*Client, error) {
	c := &Client{dir: dir, open: map[net.Conn]struct{}{}}
	var hello struct{ PID int }
	if err := c.call(ctx, OpHello, nil, &hello); err != nil {
		return nil, err
	}
	c.pid = hello.PID
	return c, nil
}

// IsGone reports an error that says that no runner serves a directory: there is
// no socket, or nobody listens on it. Any other error says nothing of that.
func IsGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

// Kill kills a directory's runner, which need not answer, and returns when it
// is gone. Its containers live on, see KillOrphans.
func Kill(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, orphanTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", SocketPath(dir))
	if IsGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill runner in %s: %w", dir, err)
	}
	defer conn.Close()
	peer, err := peerOf(conn.(*net.UnixConn))
	if err == nil {
		err = unix.Kill(int(peer.Pid), unix.SIGKILL)
	}
	if err != nil {
		return fmt.Errorf("kill runner in %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, _ = io.Copy(io.Discard, conn) // ends with the runner
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("kill runner in %s: %w", dir, err)
	}
	return nil
}

// peerOf returns who has the other end: of a client's connection, who listens.
func peerOf(c *net.UnixConn) (*unix.Ucred, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = rc.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, credErr)
}

// PID is the runner's process id.
func (c *Client) PID() int { return c.pid }

// Close ends this client's calls. The runner lives on.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		conn.Close()
	}
}

// begin opens a connection and sends a request. The connection is closed when
// ctx ends, when the Client is closed, or by end.
func (c *Client) begin(ctx context.Context, op string, body any) (conn *Conn, end func(), err error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", SocketPath(c.dir))
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "runner in %s: %w", c.dir, err)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		raw.Close()
		return nil, nil, fault.New(fault.Unavailable, "runner in %s: %w", c.dir, net.ErrClosed)
	}
	c.open[raw] = struct{}{}
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	end = func() {
		stop()
		raw.Close()
		c.mu.Lock()
		delete(c.open, raw)
		c.mu.Unlock()
	}
	conn = NewConn(raw)
	if err := conn.WriteJSON(FrameRequest, Request{wireVersion, op, data}); err != nil {
		end()
		return nil, nil, c.failed(ctx, op, err)
	}
	return conn, end, nil
}

// failed explains a broken connection.
func (c *Client) failed(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fault.New(fault.Unavailable, "runner %s: %w", op, err)
}

// call is one request with one answer, decoded into out unless that is nil.
func (c *Client) call(ctx context.Context, op string, body, out any) error {
	conn, end, err := c.begin(ctx, op, body)
	if err != nil {
		return err
	}
	defer end()
	t, payload, err := conn.Read()
	if err != nil {
		return c.failed(ctx, op, err)
	}
	switch {
	case t == FrameError:
		return AsError(payload)
	case out == nil:
		return nil
	}
	return json.Unmarshal(payload, out)
}

// Setup makes the namespaces the pod's containers share. Call it once, first.
func (c *Client) Setup(ctx context.Context, r SetupRequest) (ns Namespaces, err error) {
	return ns, c.call(ctx, OpSetup, r, &ns)
}

// Create makes a container up to the point where its program would be started
// and returns the process id of its init. On error nothing of it is left.
func (c *Client) Create(ctx context.Context, r CreateRequest) (pid int, err error) {
	if r, err = r.withoutProfile(c.dir); err != nil {
		return 0, err
	}
	return pid, c.call(ctx, OpCreate, r, &pid)
}

// Start lets a created container's program run.
func (c *Client) Start(ctx context.Context, id string) error {
	return c.call(ctx, OpStart, Target{ID: id}, nil)
}

// Resize sets the size of a terminal; execID "" is the container's own.
func (c *Client) Resize(ctx context.Context, id, execID string, size [2]uint) error {
	return c.call(ctx, OpResize, Target{ID: id, ExecID: execID, Size: size}, nil)
}

// Signal sends a signal to a container's main process, or to all its processes.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return c.call(ctx, OpSignal, Target{ID: id, Signal: int(sig), All: all}, nil)
}

// Wait returns a container's exit, waiting for it.
func (c *Client) Wait(ctx context.Context, id string) (x Exit, err error) {
	return x, c.call(ctx, OpWait, Target{ID: id}, &x)
}

// List returns the containers the runner has, exited ones until they are deleted.
func (c *Client) List(ctx context.Context) (list []State, err error) {
	return list, c.call(ctx, OpList, nil, &list)
}

// Stats returns a container's usage.
func (c *Client) Stats(ctx context.Context, id string) (s Stats, err error) {
	return s, c.call(ctx, OpStats, Target{ID: id}, &s)
}

// Update changes a container's limits.
func (c *Client) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	limits, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return c.call(ctx, OpUpdate, Target{ID: id, Limits: limits}, nil)
}

// Pause freezes a container's processes.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, OpPause, Target{ID: id}, nil)
}

// Resume lets a paused container go on.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, OpResume, Target{ID: id}, nil)
}

// ReopenLog has the log written to its path anew, after it was moved away.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, OpReopen, Target{ID: id}, nil)
}

// Processes returns the process ids in a container's cgroup.
func (c *Client) Processes(ctx context.Context, id string) (pids []int, err error) {
	return pids, c.call(ctx, OpPids, Target{ID: id}, &pids)
}

// Delete takes a container's cgroup and state away, killing what runs if force
// is set. NotFound if there is none.
func (c *Client) Delete(ctx context.Context, id string, force bool) error {
	return c.call(ctx, OpDelete, Target{ID: id, Force: force}, nil)
}

// Shutdown kills all containers and ends the runner.
func (c *Client) Shutdown(ctx context.Context) error {
	if err := c.call(ctx, OpShutdown, nil, nil); err != nil {
		return err
	}
	if c.ended != nil {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Events calls f for the exits so far and then for each event as it comes. It
// returns when ctx ends, the Client is closed or the runner ends, always with
// an error that says which.
func (c *Client) Events(ctx context.Context, f func(Event)) error {
	conn, end, err := c.begin(ctx, OpEvents, nil)
	if err != nil {
		return err
	}
	defer end()
	for {
		t, payload, err := conn.Read()
		if err != nil {
			return c.failed(ctx, OpEvents, err)
		}
		if t == FrameError {
			return AsError(payload)
		}
		var ev Event
		if err := json.Unmarshal(payload, &ev); err != nil {
			return fmt.Errorf("runner's event: %w", err)
		}
		f(ev)
	}
}
