// Package build is BuildKit in this process: its solver and Dockerfile frontend
// on the engine's own image store, and with the engine as what runs RUN steps.
// What is built is an image of the store, with nothing copied or exported.
//
// Clients reach it through the Docker Engine API's /grpc and /session. It is
// the importer of BuildKit, but for its client in build/buildclient, and plugs
// BuildKit into the containerd parts that engine/store hands out.
package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	bolt "go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"

	"github.com/ferryos/ferry/internal/engine"
)

// Options are what a Builder is made from.
type Options struct {
	Root      string   // cache metadata and history
	PlainHTTP []string // registries ("host:port") spoken to without TLS
	Engine    *engine.Engine
	Log       *slog.Logger
}

// Builder is BuildKit, a lifecycle.Component and dockerapi's Builder. It costs
// nothing before the first build.
type Builder struct {
	opt  Options
	once sync.Mutex
	kit  *kit // nil before the first build; once guards it
}

// kit is a running BuildKit.
type kit struct {
	sessions   *session.Manager
	controller *control.Controller
	server     *grpc.Server
	databases  []interface{ Close() error }
	stopping   chan struct{}
}

// New returns a Builder.
func New(opt Options) *Builder { return &Builder{opt: opt} }

// Name implements lifecycle.Component.
func (b *Builder) Name() string { return "builder" }

// Start does nothing: BuildKit starts with the first build.
func (b *Builder) Start(context.Context) error { return nil }

// Stop ends BuildKit. Builds have ended with the connections they came by.
func (b *Builder) Stop(context.Context) error {
	b.once.Lock()
	defer b.once.Unlock()
	if b.kit == nil {
		return nil
	}
	close(b.kit.stopping)
	b.kit.server.Stop()
	errs := []error{b.kit.controller.Close()}
	for _, db := range b.kit.databases {
		errs = append(errs, db.Close())
	}
	b.kit = nil
	return errors.Join(errs...)
}

// ServeGRPC serves BuildKit's control API by HTTP/2 on conn until it ends or ctx is done.
func (b *Builder) ServeGRPC(ctx context.Context, conn net.Conn) {
	k, err := b.start(ctx)
	if err != nil {
		b.opt.Log.Error("start BuildKit", "error", err)
		conn.Close()
		return
	}
	serveHTTP2(ctx, conn, k.server, b.opt.Log)
}

// ServeSession takes a request over as a build session and returns at its end.
func (b *Builder) ServeSession(w http.ResponseWriter, r *http.Request) error {
	k, err := b.start(r.Context())
	if err != nil {
		return fmt.Errorf("start BuildKit: %w", err)
	}
	return k.sessions.HandleHTTPRequest(r.Context(), hijacker{w, http.NewResponseController(w)}, r)
}

// start returns the running BuildKit, starting it the first time.
func (b *Builder) start(ctx context.Context) (*kit, error) {
	b.once.Lock()
	defer b.once.Unlock()
	if b.kit != nil {
		return b.kit, nil
	}
	k, err := b.newKit(context.WithoutCancel(ctx))
	if err == nil {
		b.kit = k
	}
	return k, err
}

func (b *Builder) newKit(ctx context.Context) (_ *kit, err error) {
	if err := os.MkdirAll(b.opt.Root, 0o700); err != nil {
		return nil, err
	}
	k := &kit{stopping: make(chan struct{})}
	defer func() {
		if err != nil {
			for _, db := range k.databases {
				err = errors.Join(err, db.Close())
			}
		}
	}()
	if k.sessions, err = session.NewManager(); err != nil {
		return nil, err
	}
	opt, err := b.workerOptions(k)
	if err != nil {
		return nil, err
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(imageWorker{w}); err != nil {
		return nil, err
	}
	gatewayFrontend, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(b.opt.Root, "cache.db"))
	if err != nil {
		return nil, err
	}
	k.databases = append(k.databases, cache)
	history, err := bolt.Open(filepath.Join(b.opt.Root, "history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	k.databases = append(k.databases, history)
	k.controller, err = control.NewController(control.Opt{
		SessionManager: k.sessions, WorkerController: workers,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build), "gateway.v0": gatewayFrontend},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{"inline": inline.ResolveCacheExporterFunc()},
		CacheManager:              solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		MeterProvider:             noop.NewMeterProvider(), HistoryDB: history, CacheStore: cache,
		LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(), GarbageCollect: w.GarbageCollect, GracefulStop: k.stopping,
	})
	if err != nil {
		return nil, err
	}
	k.server = grpc.NewServer()
	k.controller.Register(k.server)
	return k, nil
}

// imageWorker is BuildKit's worker that knows Docker's own exporter, "moby",
// which buildx asks for: an image in the daemon's store.
type imageWorker struct{ *base.Worker }

// Exporter implements worker.Worker.
func (w imageWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name == "moby" {
		name = "image"
	}
	return w.Worker.Exporter(name, sm)
}

// hijacker gives a wrapped ResponseWriter the method that BuildKit looks for.
type hijacker struct {
	http.ResponseWriter
	*http.ResponseController
}
