// Package dockerapi serves the Docker Engine API on a unix socket, so that
// docker, its libraries and the ferry command use the engine unmodified.
//
// Only internal/app imports it. It keeps almost no state of its own: a Docker
// container is an engine pod with one container, its HostConfig travels in the
// container's record, and what happens is learnt from the engine's events. It
// is not an orchestrator and knows nothing of Kubernetes: containers of other
// owners are neither shown nor touched.
//
// A route that is missing answers 404, and a setting that cannot be honoured
// is refused by name; nothing is silently ignored.
package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/moby/locker"
	apibuild "github.com/moby/moby/api/types/build"

	"github.com/ferryos/ferry/internal/build"
	"github.com/ferryos/ferry/internal/dockerapi/eventlog"
	"github.com/ferryos/ferry/internal/dockerapi/supervise"
	"github.com/ferryos/ferry/internal/dockerapi/volume"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/lifecycle"
)

// The range of API versions that is served.
const (
	maxAPIVersion = "1.51"
	minAPIVersion = "1.40"
)

// Builder is the BuildKit behind the endpoints that build.
type Builder interface {
	// ServeGRPC serves BuildKit's control API by HTTP/2 on conn until it ends or ctx is done.
	ServeGRPC(ctx context.Context, conn net.Conn)
	// ServeSession takes the request over as a build session and returns at its end.
	ServeSession(w http.ResponseWriter, r *http.Request) error
	// ServeBuild builds what a POST /build asks for and answers it. The build ends with the request.
	ServeBuild(w http.ResponseWriter, r *http.Request) error
	// Unchanged gives the names to the image of the last build whose client gave the same, which the key tells.
	Unchanged(ctx context.Context, key string, names []string) (build.Remembered, error)
	// CancelBuild ends the build of ServeBuild whose client gave it this ID, if it runs.
	CancelBuild(id string) error
	BuildCache
	// OnNamed has f called whenever a build has given an image a name. Call it before the first build.
	OnNamed(f func(ctx context.Context, name string))
}

// BuildCache is what builds leave for the next ones.
type BuildCache interface {
	// CacheUsage lists the build cache.
	CacheUsage(ctx context.Context) ([]apibuild.CacheRecord, error)
	// PruneCache removes of the build cache what it is told and nothing uses.
	PruneCache(ctx context.Context, p build.Prune) (apibuild.CachePruneReport, error)
}

// Options are what a Server is made from; all but Builder and OwnRegistry are needed.
type Options struct {
	Engine  *engine.Engine
	Builder Builder // nil: what builds answers 501
	Socket  string  // path of the unix socket; its directory is made if missing
	LogDir  string  // where containers' logs are kept, <LogDir>/<pod>/0.log
	Root    string  // shown by /info as DockerRootDir; volumes are kept in it
	Version string  // Ferry's version
	// OwnRegistry reports whether a host is the built-in registry, whose credential
	// the engine has; may be nil.
	OwnRegistry func(host string) bool
	// Defaults are what containers get that ask for nothing else.
	Defaults Defaults
	Log      *slog.Logger
}

// Server is the API server, a lifecycle.Component.
type Server struct {
	opt    Options
	names  nameTable
	execs  execTable
	events *eventlog.Log
	life   *supervise.Supervisor // set by Start

	volumes *volume.Store
	// using is held for reading while a container is made and finds its volumes, not
	// while they are filled; for writing while volumes are removed.
	using sync.RWMutex
	// filling locks a directory while an image's content is copied into it.
	filling *locker.Locker

	http *http.Server
	// background runs f on a goroutine until it returns; its context ends at Stop.
	background func(f func(context.Context))
	cancel     context.CancelFunc
	work       sync.WaitGroup
}

// New returns a Server that listens once started.
func New(opt Options) *Server {
	return &Server{opt: opt, names: newNameTable(), execs: newExecTable(), events: &eventlog.Log{}, filling: locker.New()}
}

// Name implements lifecycle.Component.
func (s *Server) Name() string { return "docker-api" }

// Start listens on the socket. A socket file that nobody serves is replaced.
func (s *Server) Start(ctx context.Context) error {
	if log, err := eventlog.Open(filepath.Join(s.opt.Root, "events"), s.opt.Log); err != nil {
		s.opt.Log.Error("events are not kept", "error", err)
	} else {
		s.events = log
	}
	var err error
	if s.volumes, err = volume.Open(filepath.Join(s.opt.Root, "volumes"), s.opt.Log); err != nil {
		return err
	}
	if err := s.removeDoomed(ctx); err != nil {
		s.opt.Log.Error("remove the volumes of removed containers", "error", err)
	}
	listener, err := listen(ctx, s.opt.Socket)
	if err != nil {
		return errors.Join(err, s.events.Close())
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.background = func(f func(context.Context)) { s.work.Go(func() { f(base) }) }
	if s.opt.Builder != nil {
		s.opt.Builder.OnNamed(s.publishTag)
	}
	s.http = &http.Server{
		Handler:           s.handler(),
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.opt.Log.Handler(), slog.LevelDebug),
	}
	s.life = supervise.New(supervised{s}, s.background, s.opt.Log)
	events := s.opt.Engine.Subscribe(base)
	s.look(base) // before the first request, which may ask for somebody's health
	s.background(func(ctx context.Context) { s.follow(ctx, events) })
	s.background(func(context.Context) {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.opt.Log.Error("docker API stopped serving", "error", err)
		}
	})
	return nil
}

// Stop ends all requests, long ones too, and removes the socket.
func (s *Server) Stop(ctx context.Context) error {
	s.cancel()
	return errors.Join(lifecycle.StopHTTP(ctx, s.http, &s.work), s.events.Close())
}

// listen opens the unix socket for root and its group alone.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	var dialer net.Dialer
	if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return nil, fault.New(fault.Conflict, "listen on %s: another program serves this socket", path).
			Hint("stop it, or set another runDir in the configuration")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// follow does what Docker's daemon does by itself when a container exits or
// is gone, until ctx ends: it starts it again or --rm removes it, its name and
// its log become free.
func (s *Server) follow(ctx context.Context, events <-chan engine.Event) {
	for {
		s.removeStrayLogs(ctx)
		s.look(ctx)
		for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
			if c.State == engine.StateExited {
				s.autoRemove(ctx, c)
			}
		}
		s.followEvents(ctx, events)
		if ctx.Err() != nil {
			return
		}
		events = s.opt.Engine.Subscribe(ctx) // some were missed
	}
}

func (s *Server) followEvents(ctx context.Context, events <-chan engine.Event) {
	for ev := range events {
		if ev.Pod.Spec.Owner != engine.OwnerDocker {
			continue
		}
		if ev.Container == nil {
			s.publishEngine(ev)
			continue
		}
		s.observe(ev)
		s.publishEngine(ev)
		switch ev.Type {
		case engine.EventExited:
			s.autoRemove(ctx, *ev.Container)
		case engine.EventDeleted:
			s.execs.forget(ev.Container.ID)
			if err := os.RemoveAll(filepath.Join(s.opt.LogDir, ev.Pod.ID)); err != nil {
				s.opt.Log.Warn("remove a container's log", "container", ev.Container.ID, "error", err)
			}
		}
	}
}

var podID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// removeStrayLogs removes the logs of pods that were removed while no server was
// there to hear of it.
func (s *Server) removeStrayLogs(ctx context.Context) {
	dirs, err := os.ReadDir(s.opt.LogDir) // before the pods, of which there may be more by then
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.opt.Log.Warn("look for logs of removed containers", "error", err)
	}
	for _, dir := range dirs {
		if !podID.MatchString(dir.Name()) {
			continue // not made here
		}
		if _, err := s.opt.Engine.Pod(ctx, dir.Name()); !fault.Is(err, fault.NotFound) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.opt.LogDir, dir.Name())); err != nil {
			s.opt.Log.Warn("remove a container's log", "pod", dir.Name(), "error", err)
		}
	}
}

func (s *Server) autoRemove(ctx context.Context, c engine.Container) {
	if !settingsOf(c).HostConfig.AutoRemove {
		return
	}
	s.work.Go(func() {
		if err := s.removeContainer(ctx, c, true); err != nil {
			s.opt.Log.Error("remove an exited container", "container", c.ID, "error", err)
		}
	})
}
