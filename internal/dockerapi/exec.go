package dockerapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

const (
	execKept   = 5 * time.Minute // how long an ended exec can still be inspected
	execStarts = 5 * time.Second // how long a resize waits for its start
)

// execSession is one exec from its creation to some time after its end.
type execSession struct {
	id, containerID string
	container       engine.Container // as it was at the creation, for events
	request         container.ExecCreateRequest

	mu       sync.Mutex
	started  bool
	detached bool          // runs on without a daemon, for which there is no session of it then
	running  chan struct{} // closed when the process runs or cannot
	engineID string        // for resizing, once running is closed
	ended    time.Time     // zero until it has
	code     int
}

// execTable holds the exec sessions. They are Docker's notion: the engine's
// exec is one call.
type execTable struct {
	mu   *sync.Mutex
	byID map[string]*execSession
}

func newExecTable() execTable { return execTable{mu: new(sync.Mutex), byID: map[string]*execSession{}} }

func (t execTable) add(c engine.Container, req container.ExecCreateRequest) *execSession {
	var b [32]byte
	rand.Read(b[:])
	e := &execSession{id: hex.EncodeToString(b[:]), containerID: c.ID, container: c, request: req, running: make(chan struct{})}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.byID, func(_ string, e *execSession) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return !e.ended.IsZero() && now.Sub(e.ended) > execKept
	})
	t.byID[e.id] = e
	return e
}

func (t execTable) get(id string) (*execSession, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byID[id]; ok {
		return e, nil
	}
	return nil, fault.New(fault.NotFound, "No such exec instance: %s", id)
}

// of returns the IDs of a container's sessions that have not ended.
func (t execTable) of(containerID string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for id, e := range t.byID {
		e.mu.Lock()
		if e.containerID == containerID && e.ended.IsZero() {
			ids = append(ids, id)
		}
		e.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

// containers are those that have sessions.
func (t execTable) containers() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for _, e := range t.byID {
		ids = append(ids, e.containerID)
	}
	return ids
}

// forget drops the sessions of a removed container.
func (t execTable) forget(containerID string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.byID, func(_ string, e *execSession) bool { return e.containerID == containerID })
}

func (s *Server) execCreate(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	var req container.ExecCreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	switch {
	case len(req.Cmd) == 0:
		return fault.New(fault.Invalid, "No exec command specified")
	case c.State == engine.StatePaused:
		return fault.New(fault.Conflict, "container %s is paused, unpause the container before exec", c.Spec.Name)
	case c.State == stateRestarting:
		return fault.New(fault.Conflict, "Container %s is restarting, wait until the container is running", c.ID)
	case c.State != engine.StateRunning:
		return fault.New(fault.Conflict, "container %s is not running", c.Spec.Name).Hint("start it with `ferry start %s`", c.Spec.Name)
	}
	if _, err := detachable(nil, req.DetachKeys); err != nil {
		return err
	}
	e := s.execs.add(c, req)
	s.publishExec(e, events.ActionExecCreate)
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: e.id})
}

func (s *Server) execStart(w http.ResponseWriter, r *http.Request) error {
	e, err := s.execs.get(r.PathValue("id"))
	if err != nil {
		return err
	}
	var req container.ExecStartRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if err := e.begin(req.Detach); err != nil {
		return err
	}
	size := e.request.ConsoleSize
	if req.ConsoleSize != nil {
		size = req.ConsoleSize
	}
	if req.Detach {
		failed := make(chan error, 1)
		s.background(func(ctx context.Context) {
			_, err := s.runExec(ctx, e, size, engine.Streams{})
			failed <- err
		})
		<-e.running
		if e.runsAs() == "" {
			return startError("exec failed", <-failed)
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	conn, in, err := hijack(w, r, e.request.Tty)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	context.AfterFunc(ctx, func() { conn.Close() })
	stdout, stderr := outputs(failing{conn, cancel}, e.request.Tty)
	streams := engine.Streams{}
	if e.request.AttachStdout {
		streams.Stdout = stdout
	}
	if e.request.AttachStderr && !e.request.Tty {
		streams.Stderr = stderr
	}
	if e.request.AttachStdin {
		if e.request.Tty {
			if in, err = detachable(in, e.request.DetachKeys); err != nil {
				return err
			}
			in = detacher{in, func() { s.publishOf(e.container, events.ActionExecDetach, "execID", e.id); cancel() }}
		}
		streams.Stdin = in
	}
	if _, err := s.runExec(ctx, e, size, streams); err != nil && e.runsAs() == "" {
		// The answer has begun: the message goes where the output would.
		_, _ = stderr.Write([]byte(message(startError("exec failed", err)) + "\r\n"))
	}
	return nil
}

// runsAs is the engine's name of the process; "" before it runs.
func (e *execSession) runsAs() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.engineID
}

// begin marks the session started; it can be only once.
func (e *execSession) begin(detached bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started {
		return fault.New(fault.Conflict, "exec session %s has already run", e.id)
	}
	e.started, e.detached = true, detached
	return nil
}

// runExec runs the session's process to its end and returns its exit code.
func (s *Server) runExec(ctx context.Context, e *execSession, size *[2]uint, streams engine.Streams) (int, error) {
	var first [2]uint
	if size != nil { // rows first, as Docker has it
		first = [2]uint{size[1], size[0]}
	}
	code, err := s.opt.Engine.Exec(ctx, e.containerID, engine.ExecSpec{
		Args: e.request.Cmd, Env: e.request.Env, WorkingDir: e.request.WorkingDir, User: e.request.User,
		TTY: e.request.Tty, ConsoleSize: first, Privileged: e.request.Privileged, Detached: e.detached,
		OnStart: func(id string) {
			e.mu.Lock()
			e.engineID = id
			e.mu.Unlock()
			s.publishExec(e, events.ActionExecStart)
			close(e.running)
		},
	}, streams)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil && e.detached && e.engineID != "" && ctx.Err() != nil { // the daemon ends, not the process
		return 0, err
	}
	e.ended, e.code = time.Now(), code
	switch {
	case e.engineID == "":
		close(e.running)
		if e.code = engine.StartCode(err); e.code == engine.ExitNoStart {
			e.code = codeNoExec
		}
	case err != nil: // its caller or its runner is gone, and it was killed
		e.code = codeKilled
	}
	s.publishOf(e.container, events.ActionExecDie, "execID", e.id, "exitCode", strconv.Itoa(e.code))
	return e.code, err
}

// codeNoExec is the exit code of an exec that could not even be tried, for its
// user is not known, say.
const codeNoExec = 126

// publishExec tells a step of a session; the command is part of the action.
func (s *Server) publishExec(e *execSession, action events.Action) {
	action += events.Action(": " + strings.Join(e.request.Cmd, " "))
	s.publishOf(e.container, action, "execID", e.id)
}

func (s *Server) execResize(w http.ResponseWriter, r *http.Request) error {
	e, err := s.execs.get(r.PathValue("id"))
	if err != nil {
		return err
	}
	cols, rows, err := size(r)
	if err != nil {
		return err
	}
	select {
	case <-e.running: // a client may resize before the process runs
	case <-time.After(execStarts):
	case <-r.Context().Done():
		return r.Context().Err()
	}
	engineID := e.runsAs()
	if engineID == "" {
		return fault.New(fault.Conflict, "exec session %s does not run", e.id)
	}
	if err := s.opt.Engine.ResizeExec(r.Context(), e.containerID, engineID, cols, rows); err != nil && !gone(err) {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) execInspect(w http.ResponseWriter, r *http.Request) error {
	e, err := s.execs.get(r.PathValue("id"))
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	v := container.ExecInspectResponse{
		ID: e.id, ContainerID: e.containerID, Running: e.started && e.ended.IsZero(),
		OpenStdin: e.request.AttachStdin, OpenStdout: e.request.AttachStdout, OpenStderr: e.request.AttachStderr,
		CanRemove: !e.ended.IsZero(), DetachKeys: []byte(e.request.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{Tty: e.request.Tty, Entrypoint: e.request.Cmd[0],
			Arguments: e.request.Cmd[1:], User: e.request.User, Privileged: &e.request.Privileged},
	}
	if !e.ended.IsZero() {
		v.ExitCode = &e.code
	}
	return writeJSON(w, http.StatusOK, v)
}
