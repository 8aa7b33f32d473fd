package dockerapi

import (
	"context"
	"io"
	"path/filepath"
	"syscall"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/dockerapi/supervise"
	"github.com/ferryos/ferry/internal/engine"
)

// stateRestarting is the state, beside the engine's, of a container that has
// ended and waits to be started again. It counts as running.
const stateRestarting engine.ContainerState = "restarting"

// containers returns Docker's containers, oldest first, as clients see them.
func (s *Server) containers(ctx context.Context) []engine.Container {
	list := s.opt.Engine.Containers(ctx, engine.OwnerDocker)
	for i, c := range list {
		if c.State == engine.StateExited && s.life.View(c.ID).Restarting {
			list[i].State = stateRestarting
		}
	}
	return list
}

// lifeDir is where what is recorded of a container goes beside its log.
func (s *Server) lifeDir(c engine.Container) string { return filepath.Join(s.opt.LogDir, c.PodID) }

// subject is a container as its supervision sees it.
func (s *Server) subject(c engine.Container) supervise.Subject {
	set := settingsOf(c)
	return supervise.Subject{
		ID: c.ID, Dir: s.lifeDir(c), Policy: set.HostConfig.RestartPolicy, Check: set.Config.Healthcheck, Shell: set.Config.Shell,
		Running: c.State == engine.StateRunning || c.State == engine.StatePaused, Paused: c.State == engine.StatePaused,
		StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode, NoStart: c.Reason == engine.ReasonStartError,
	}
}

// supervised is what the supervision does to containers.
type supervised struct{ *Server }

// Start implements supervise.Containers.
func (s supervised) Start(ctx context.Context, id string) error {
	c, err := s.opt.Engine.Container(ctx, id)
	if err != nil {
		return err
	}
	return s.start(ctx, c)
}

// Probe implements supervise.Containers: a health check is an exec like another.
func (s supervised) Probe(ctx context.Context, id string, command []string, out io.Writer) (int, error) {
	c, err := s.opt.Engine.Container(ctx, id)
	if err != nil {
		return 0, err
	}
	e := s.execs.add(c, container.ExecCreateRequest{Cmd: command, AttachStdout: true, AttachStderr: true})
	s.publishExec(e, events.ActionExecCreate)
	if err := e.begin(false); err != nil {
		return 0, err
	}
	return s.runExec(ctx, e, nil, engine.Streams{Stdout: out, Stderr: out})
}

// HealthChanged implements supervise.Containers.
func (s supervised) HealthChanged(ctx context.Context, id string, status container.HealthStatus) {
	if c, err := s.opt.Engine.Container(ctx, id); err == nil {
		s.publishOf(c, events.ActionHealthStatus+events.Action(": "+status))
	}
}

// look has the supervision take up every container as it is, and forgets those
// whose removal was not heard of.
func (s *Server) look(ctx context.Context) {
	known := append(s.life.IDs(), s.execs.containers()...) // before the list, in which newer ones may be missing
	there := map[string]bool{}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
		there[c.ID] = true
		s.life.Look(s.subject(c))
	}
	for _, id := range known {
		if !there[id] {
			s.life.Removed(id)
			s.execs.forget(id)
		}
	}
}

// observe has the supervision take up an event, before it is told to clients:
// who has heard of an exit may rely on what follows from it.
func (s *Server) observe(ev engine.Event) {
	c := *ev.Container
	switch ev.Type {
	case engine.EventStarted:
		s.life.Started(s.subject(c))
	case engine.EventExited:
		s.life.Exited(s.subject(c))
	case engine.EventPaused:
		s.life.Paused(s.subject(c))
	case engine.EventResumed:
		s.life.Resumed(s.subject(c))
	case engine.EventDeleted:
		s.life.Removed(c.ID)
	case engine.EventCreated, engine.EventOOM, engine.EventPodUp, engine.EventPodDown, engine.EventPodGone:
	}
}

// endsIt reports whether a signal sent by hand is meant to end a container, so
// that it is not started again: Docker takes any for that, SIGHUP too.
func endsIt(c engine.Container, sig syscall.Signal) bool {
	return sig == unix.SIGKILL || sig == stopSignal(c)
}
