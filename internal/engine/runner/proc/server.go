package proc

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/launch"
	"github.com/ferryos/ferry/internal/fault"
)

// server is one runner.
type server struct {
	dir      string
	listener *net.UnixListener
	filters  filterCache
	launcher *launch.Launcher
	closed   chan struct{} // closed by shutdown
	calls    sync.WaitGroup

	// Lock order: mu alone; a container's own mu is never taken under it.
	mu         sync.Mutex
	namespaces *sharedNamespaces
	containers map[string]*container // nil while being created
	watchers   map[*watcher]struct{}
}

func newServer(dir string) (*server, error) {
	launcher, err := launch.New()
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: runner.SocketPath(dir), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return &server{
		dir: dir, listener: l, filters: filterCache{dir: runner.ProfileDir(dir)}, launcher: launcher, closed: make(chan struct{}),
		containers: map[string]*container{}, watchers: map[*watcher]struct{}{},
	}, nil
}

// serve answers calls until shutdown.
func (s *server) serve() error {
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			select {
			case <-s.closed:
				s.finish()
				return nil
			default:
				return fmt.Errorf("accept: %w", err)
			}
		}
		s.calls.Go(func() { s.handle(c) })
	}
}

// finishTime is how long calls get to be answered at the end: a caller may not
// read its answer.
const finishTime = time.Second

// finish waits for the answers to the calls that are being served.
func (s *server) finish() {
	answered := make(chan struct{})
	go func() { s.calls.Wait(); close(answered) }()
	waitAtMost(answered, finishTime)
}

// handle answers one call. A caller that is gone misses its answer.
func (s *server) handle(raw *net.UnixConn) {
	defer raw.Close()
	conn := runner.NewConn(raw)
	if err := checkPeer(raw); err != nil {
		_ = conn.WriteError(err)
		return
	}
	req, err := conn.ReadRequest()
	if err != nil {
		_ = conn.WriteError(err)
		return
	}
	var result any
	switch req.Op {
	case runner.OpExec:
		result, err = s.exec(conn, req.Body)
	case runner.OpAttach:
		err = s.attach(conn, req.Body)
	case runner.OpEvents:
		s.events(conn)
		return
	case runner.OpShutdown:
		// Answered before the listener closes: the process may be gone right after.
		s.killAll()
		_ = conn.WriteJSON(runner.FrameResult, nil)
		s.close()
		return
	case runner.OpWait:
		result, err = s.wait(conn, req.Body)
	default:
		result, err = s.simple(req)
	}
	if err != nil {
		_ = conn.WriteError(err)
		return
	}
	_ = conn.WriteJSON(runner.FrameResult, result)
}

// checkPeer lets only root in: who speaks here can start processes as root.
func checkPeer(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := rc.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("peer credentials: %w", credErr)
	}
	if cred.Uid != 0 {
		return fault.New(fault.Denied, "user %d may not use this runner", cred.Uid)
	}
	return nil
}

// simple answers the calls of one request and one result.
func (s *server) simple(req runner.Request) (any, error) {
	switch req.Op {
	case runner.OpHello:
		return struct{ PID int }{os.Getpid()}, nil
	case runner.OpSetup:
		var r runner.SetupRequest
		if err := decode(req.Body, &r); err != nil {
			return nil, err
		}
		return s.setup(r)
	case runner.OpCreate:
		var r runner.CreateRequest
		if err := decode(req.Body, &r); err != nil {
			return nil, err
		}
		return s.create(r)
	case runner.OpList:
		return s.list(), nil
	}
	var t runner.Target
	if err := decode(req.Body, &t); err != nil {
		return nil, err
	}
	c, err := s.find(t.ID)
	if err != nil {
		return nil, err
	}
	switch req.Op {
	case runner.OpStart:
		return nil, c.start()
	case runner.OpResize:
		return nil, c.resize(t.ExecID, t.Size)
	case runner.OpSignal:
		return nil, c.signal(syscall.Signal(t.Signal), t.All)
	case runner.OpStats:
		stats, err := c.group.Stats()
		if err != nil {
			return nil, fmt.Errorf("stats of container %s: %w", c.id, err)
		}
		return stats, nil
	case runner.OpUpdate:
		var limits specs.LinuxResources
		if err := decode(t.Limits, &limits); err != nil {
			return nil, err
		}
		return nil, c.update(limits)
	case runner.OpPause:
		return nil, c.pause(true)
	case runner.OpResume:
		return nil, c.pause(false)
	case runner.OpReopen:
		return nil, c.reopenLog()
	case runner.OpPids:
		return c.group.Processes()
	case runner.OpDelete:
		return nil, s.delete(c, t.Force)
	}
	return nil, fault.New(fault.Unsupported, "operation %q is not known", req.Op)
}

func decode(body json.RawMessage, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return fault.New(fault.Invalid, "request: %w", err)
	}
	return nil
}

func (s *server) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fault.New(fault.NotFound, "the runner has no container %s", id)
}

func (s *server) list() []runner.State {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	states := []runner.State{}
	for _, c := range all {
		if c != nil {
			states = append(states, c.state())
		}
	}
	return states
}

// create makes a container; its id is taken from the beginning.
func (s *server) create(r runner.CreateRequest) (pid int, err error) {
	s.mu.Lock()
	_, taken := s.containers[r.ID]
	if !taken {
		s.containers[r.ID] = nil
	}
	s.mu.Unlock()
	if taken {
		return 0, fault.New(fault.Conflict, "the runner has a container %s already", r.ID)
	}
	c, err := newContainer(s, r)
	s.mu.Lock()
	if err != nil {
		delete(s.containers, r.ID)
	} else {
		s.containers[r.ID] = c
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return c.ctr.Main.PID, nil
}

func (s *server) delete(c *container, force bool) error {
	if err := c.destroy(force); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	return runner.RemoveExit(s.dir, c.id)
}

// wait returns a container's exit; a caller that goes away ends the wait.
func (s *server) wait(conn *runner.Conn, body json.RawMessage) (any, error) {
	var t runner.Target
	if err := decode(body, &t); err != nil {
		return nil, err
	}
	c, err := s.find(t.ID)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.exited:
		return c.exit, nil
	case <-whenGone(conn):
		return nil, errGone
	case <-s.closed:
		return nil, errClosing
	}
}

var (
	errClosing = fault.New(fault.Unavailable, "the runner is shutting down")
	errGone    = fault.New(fault.Unavailable, "the caller has hung up")
)

// whenGone returns a channel that is closed when the caller hangs up. Nothing
// else may read from conn.
func whenGone(conn *runner.Conn) <-chan struct{} {
	gone := make(chan struct{})
	go func() { // ends with the connection, which handle closes
		_, _, _ = conn.Read()
		close(gone)
	}()
	return gone
}

// killAll kills every container and waits until all are gone.
func (s *server) killAll() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range all {
		if c != nil {
			wg.Go(func() {
				if err := s.delete(c, true); err != nil {
					fmt.Fprintf(os.Stderr, "shut down container %s: %v\n", c.id, err)
				}
			})
		}
	}
	wg.Wait()
}

// close ends serve.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return
	default:
	}
	close(s.closed)
	s.listener.Close()
	if s.namespaces != nil {
		s.namespaces.close()
	}
	for w := range s.watchers {
		w.close()
	}
}

// usersOf are the ids of the user namespace that a spec names, nil for none.
func (s *server) usersOf(spec *specs.Spec) *runner.Users {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.UserNamespace && s.namespaces != nil && n.Path == s.namespaces.paths.User {
			return s.namespaces.users
		}
	}
	return nil
}

// setup makes the namespaces that the pod's containers share.
func (s *server) setup(r runner.SetupRequest) (runner.Namespaces, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.namespaces != nil {
		return runner.Namespaces{}, fault.New(fault.Conflict, "the pod's namespaces exist already")
	}
	ns, err := makeNamespaces(r)
	if err != nil {
		return runner.Namespaces{}, err
	}
	s.namespaces = ns
	return ns.paths, nil
}
