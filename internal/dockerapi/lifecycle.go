package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) containerStart(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if param(r, "checkpoint") != "" {
		return unsupported("starting from a checkpoint")
	}
	if c.State == engine.StateRunning || c.State == stateRestarting {
		return errNotModified
	}
	if err := s.startByHand(r.Context(), c); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// startByHand starts c because a client says so: its restarts are counted anew.
func (s *Server) startByHand(ctx context.Context, c engine.Container) error {
	if c.State == engine.StatePaused {
		return fault.New(fault.Conflict, "cannot start a paused container, try unpause instead")
	}
	s.life.StartByHand(c.ID, s.lifeDir(c))
	return s.start(ctx, c)
}

// start starts c and, if its pod went idle, the pod before. It is carried
// through when the client leaves, as a half-started container helps nobody.
func (s *Server) start(ctx context.Context, c engine.Container) error {
	ctx = context.WithoutCancel(ctx)
	if err := s.restoreVolumes(ctx, c); err != nil {
		return err
	}
	place := s.events.Now()
	err := s.opt.Engine.StartContainer(ctx, c.ID)
	if taken, ok := errors.AsType[network.PortTakenError](err); ok {
		err = fault.New(fault.Conflict, "driver failed programming external connectivity on endpoint %s (%s): %w", c.Spec.Name, c.PodID, taken).
			Hint("%s", fault.HintOf(err))
	}
	if err == nil {
		s.told(ctx, place, c.ID, events.ActionStart)
		return nil
	}
	// One that could not even begin (a host port in use, say) has no exit that
	// would remove it, and a client with --rm waits for its removal.
	if now, findErr := s.opt.Engine.Container(ctx, c.ID); findErr == nil && now.State == engine.StateCreated && settingsOf(c).HostConfig.AutoRemove {
		err = errors.Join(err, s.removeContainer(ctx, c, true))
	}
	return startError("failed to create task for container", err)
}

// codeKilled is the exit code of what SIGKILL ended.
const codeKilled = 128 + int(unix.SIGKILL)

// startError gives a program that cannot be run Docker's status, from which
// clients derive the exit codes 126 and 127.
func startError(what string, err error) error {
	if engine.StartCode(err) == engine.ExitNoStart {
		return err
	}
	return fault.New(fault.Invalid, "%s: %w", what, err)
}

// gone reports that a container was not there or did not run any more.
func gone(err error) bool { return fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) }

func (s *Server) containerStop(w http.ResponseWriter, r *http.Request) error {
	c, err := s.findSettled(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if !alive(c) {
		return errNotModified
	}
	if err := s.stop(r, c); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) containerRestart(w http.ResponseWriter, r *http.Request) error {
	c, err := s.findSettled(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if settingsOf(c).HostConfig.AutoRemove && alive(c) {
		return fault.New(fault.Conflict, "container %s was started with --rm and is removed when it stops", c.Spec.Name)
	}
	if err := s.stop(r, c); err != nil {
		return err
	}
	if c, err = s.find(r.Context(), c.ID); err != nil {
		return err
	}
	if err := s.startByHand(r.Context(), c); err != nil {
		return err
	}
	s.publishOf(c, events.ActionRestart)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// stop ends c as the request says and tells it, after its death was told.
func (s *Server) stop(r *http.Request, c engine.Container) error {
	sig, grace, err := stopAsAsked(r, c)
	if err != nil { // before its restart policy is switched off
		return err
	}
	if alive(c) {
		s.life.StopByHand(c.ID, s.lifeDir(c))
	}
	place := s.events.Now()
	if err := s.signalAndWait(context.WithoutCancel(r.Context()), c, sig, grace); err != nil || !alive(c) {
		return err
	}
	if c.State != stateRestarting {
		s.told(r.Context(), place, c.ID, events.ActionDie)
	}
	s.publishOf(c, events.ActionStop)
	if !settingsOf(c).HostConfig.AutoRemove {
		return nil
	}
	// As follow does, but who has stopped it may use its name now.
	return s.removeContainer(context.WithoutCancel(r.Context()), c, true)
}

// publishKill tells that c was sent a signal.
func (s *Server) publishKill(c engine.Container, sig syscall.Signal) {
	s.publishOf(c, events.ActionKill, "signal", strconv.Itoa(int(sig)))
}

// stopSignal is what c is asked to end with.
func stopSignal(c engine.Container) syscall.Signal {
	if sig, err := signal.ParseSignal(settingsOf(c).Config.StopSignal); err == nil {
		return sig
	}
	return unix.SIGTERM
}

// stopAsAsked returns the signal that a request to stop c names, 0 if the
// container's own is to do, and how long to wait until c is killed.
func stopAsAsked(r *http.Request, c engine.Container) (sig syscall.Signal, grace time.Duration, err error) {
	grace = engine.DefaultStopGrace
	if t := settingsOf(c).Config.StopTimeout; t != nil {
		grace = time.Duration(*t) * time.Second
	}
	if t := param(r, "t"); t != "" {
		seconds, err := strconv.ParseInt(t, 10, 32)
		if err != nil {
			return 0, 0, fault.New(fault.Invalid, "stop: t=%q is not a number of seconds", t)
		}
		grace = time.Duration(seconds) * time.Second
	}
	if grace < 0 { // Docker's "wait for ever"
		grace = 100 * 365 * 24 * time.Hour
	}
	if name := param(r, "signal"); name != "" {
		sig, err = parseSignal(name)
	}
	return sig, grace, err
}

// signalAndWait sends a signal, the container's own if it is 0, and kills after the grace.
func (s *Server) signalAndWait(ctx context.Context, c engine.Container, sig syscall.Signal, grace time.Duration) error {
	if sig != 0 && grace > 0 {
		s.publishKill(c, sig)
		if err := s.opt.Engine.Signal(ctx, c.ID, sig); err != nil && !gone(err) {
			return err
		}
		if s.exitsWithin(ctx, c.ID, grace) {
			return s.opt.Engine.ReleaseIdle(ctx, c.PodID)
		}
		grace = 0
	}
	switch {
	case !alive(c):
	case grace == 0:
		s.publishKill(c, unix.SIGKILL)
	default:
		s.publishKill(c, stopSignal(c))
	}
	if err := s.opt.Engine.StopContainer(ctx, c.ID, grace); err != nil {
		return err
	}
	return s.opt.Engine.ReleaseIdle(ctx, c.PodID)
}

func (s *Server) exitsWithin(ctx context.Context, id string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := s.opt.Engine.Wait(ctx, id)
	return err == nil
}

func parseSignal(name string) (syscall.Signal, error) {
	sig, err := signal.ParseSignal(name)
	if err != nil || sig < 1 || sig > 64 {
		return 0, fault.New(fault.Invalid, "invalid signal: %s", name)
	}
	return sig, nil
}

func (s *Server) containerKill(w http.ResponseWriter, r *http.Request) error {
	c, err := s.findSettled(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	sig := unix.SIGKILL
	if name := param(r, "signal"); name != "" {
		if sig, err = parseSignal(name); err != nil {
			return err
		}
	}
	if !alive(c) {
		return fault.New(fault.Conflict, "cannot kill container: %s: container %s is not running", r.PathValue("id"), c.ID)
	}
	if endsIt(c, sig) {
		s.life.StopByHand(c.ID, s.lifeDir(c))
		if c, err = s.find(r.Context(), c.ID); err != nil { // its restart may have come first
			return err
		}
	}
	s.publishKill(c, sig)
	switch {
	case !alive(c), c.State == stateRestarting: // nothing runs
	case sig == unix.SIGKILL:
		err = s.opt.Engine.StopContainer(r.Context(), c.ID, 0)
	default:
		err = s.opt.Engine.Signal(r.Context(), c.ID, sig)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) containerPause(w http.ResponseWriter, r *http.Request) error {
	return s.onContainer(w, r, s.opt.Engine.Pause)
}

func (s *Server) containerUnpause(w http.ResponseWriter, r *http.Request) error {
	return s.onContainer(w, r, s.opt.Engine.Resume)
}

func (s *Server) onContainer(w http.ResponseWriter, r *http.Request, f func(context.Context, string) error) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := f(r.Context(), c.ID); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) containerRemove(w http.ResponseWriter, r *http.Request) error {
	if flag(r, "link") {
		return unsupported("removing a link")
	}
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if alive(c) && !flag(r, "force") {
		return fault.New(fault.Conflict,
			"cannot remove container %q: container is %s: stop the container before removing or force remove", "/"+c.Spec.Name, c.State)
	}
	if alive(c) { // else it might be started again while it is taken apart
		s.life.StopByHand(c.ID, s.lifeDir(c))
	}
	if err := s.removeContainer(context.WithoutCancel(r.Context()), c, flag(r, "v")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) containerPrune(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range s.containers(r.Context()) {
		if alive(c) || !match.container(c) || !match.noLabels(c.Spec.Labels) || !match.until(c.CreatedAt) {
			continue
		}
		if usage, err := s.opt.Engine.Stats(r.Context(), c.ID); err == nil {
			report.SpaceReclaimed += usage.RootfsBytes
		}
		if err := s.removeContainer(context.WithoutCancel(r.Context()), c, false); err != nil {
			return err
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.ID)
	}
	s.publish(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10)})
	return writeJSON(w, http.StatusOK, report)
}

func alive(c engine.Container) bool {
	return c.State == engine.StateRunning || c.State == engine.StatePaused || c.State == stateRestarting
}

// containerWait answers the header at once, so that a client may wait first
// and start then, and the exit code when the condition is met.
func (s *Server) containerWait(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	condition := container.WaitCondition(param(r, "condition"))
	switch condition {
	case "":
		condition = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return fault.New(fault.Invalid, "invalid condition: %q", condition)
	}
	events := s.opt.Engine.Subscribe(ctx) // before the look at the state, so that nothing falls between
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	code, err := s.awaitCondition(ctx, events, c, condition)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: int64(code)})
}

// awaitCondition returns the exit code of c once the condition holds. If events
// were missed it looks at the container again, which is as good.
func (s *Server) awaitCondition(ctx context.Context, events <-chan engine.Event, c engine.Container, condition container.WaitCondition) (int, error) {
	for condition != container.WaitConditionNotRunning || alive(c) {
		if code, ok := awaitExit(events, c, condition); ok {
			return code, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		events = s.opt.Engine.Subscribe(ctx)
		now, err := s.find(ctx, c.ID)
		if fault.Is(err, fault.NotFound) {
			break
		}
		if err != nil {
			return 0, err
		}
		exited := hasEnded(c, now)
		if c = now; exited && condition != container.WaitConditionRemoved {
			return s.lastExit(c), nil
		}
	}
	return c.ExitCode, nil
}

// hasEnded reports whether a container has ended since it was seen as before; it
// may have been started again.
func hasEnded(before, now engine.Container) bool {
	if alive(before) && !now.StartedAt.Equal(before.StartedAt) {
		return true
	}
	return !now.FinishedAt.IsZero() && !now.FinishedAt.Equal(before.FinishedAt)
}

// lastExit is the exit code of a container's last run that has ended.
func (s *Server) lastExit(c engine.Container) int {
	if !alive(c) {
		return c.ExitCode
	}
	list, _ := s.events.After(0)
	for _, m := range slices.Backward(list) {
		if m.Actor.ID != c.ID || m.Action != events.ActionDie {
			continue
		}
		if code, err := strconv.Atoi(m.Actor.Attributes["exitCode"]); err == nil {
			return code
		}
	}
	return c.ExitCode
}

// awaitExit reads events until the condition holds for c and returns its last
// exit code; false if the events end before.
func awaitExit(events <-chan engine.Event, c engine.Container, condition container.WaitCondition) (int, bool) {
	code := c.ExitCode
	for ev := range events {
		if ev.Container == nil || ev.Container.ID != c.ID {
			continue
		}
		switch ev.Type {
		case engine.EventExited:
			code = ev.Container.ExitCode
			if condition != container.WaitConditionRemoved {
				return code, true
			}
		case engine.EventDeleted:
			return code, true
		}
	}
	return 0, false
}
