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
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/control"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	bolt "go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"

	"github.com/ferryos/ferry/internal/engine"
)

// Options are what a Builder is made from.
type Options struct {
	Root string // cache metadata and history
	// Credential is what is shown to a registry whoever builds, "" for none; may be nil.
	Credential func(host string) (user, password string)
	Gateway    netip.Addr // this machine's address in the network of a build's steps
	Engine     *engine.Engine
	Log        *slog.Logger
}

// Builder is BuildKit, a lifecycle.Component and dockerapi's Builder. It costs
// nothing before the first build.
type Builder struct {
	opt     Options
	running runningBuilds
	onNamed func(ctx context.Context, name string) // may be nil
	past    *pastBuilds
	once    sync.Mutex
	kit     *kit // nil before the first build; once guards it
}

// kit is a running BuildKit.
type kit struct {
	sessions   *session.Manager
	controller *control.Controller
	server     *grpc.Server
	databases  []interface{ Close() error }
	unsynced   *unsynced
	lease      *buildLease
	stopping   chan struct{}

	// background runs f on a goroutine; its context ends at stop, which waits for it.
	background func(f func(context.Context))
	cancel     context.CancelFunc
	work       sync.WaitGroup
	local      *pipes // leads to server, for clients in this process
}

// BuildKit's databases below Options.Root.
const (
	cacheFile   = "cache.db"           // the solver's
	historyFile = "history.db"         // of builds
	recordsFile = "worker/metadata.db" // of the cache's records
)

// New returns a Builder.
func New(opt Options) *Builder {
	b := &Builder{opt: opt}
	b.past = newPastBuilds(b.images, opt.Log)
	return b
}

// images is the store's images, once it has started.
func (b *Builder) images() namedImages {
	s := b.opt.Engine.Images()
	return namedImages{s.ImageStore(), s, b.onNamed}
}

// OnNamed has f called whenever a build has given an image a name. It is called
// before the first build, if at all.
func (b *Builder) OnNamed(f func(ctx context.Context, name string)) { b.onNamed = f }

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
	k := b.kit
	b.kit = nil
	close(k.stopping)
	k.cancel()
	k.server.Stop()
	k.work.Wait()
	k.lease.endIdle()
	errs := []error{k.unsynced.stop(), k.controller.Close()}
	for _, db := range k.databases {
		errs = append(errs, db.Close())
	}
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

// tellVersion has BuildKit say what version of it is linked in: its own build
// does so with flags of the linker.
var tellVersion = sync.OnceFunc(func() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, m := range info.Deps {
		if m.Path == version.Package {
			version.Version = m.Version
		}
	}
})

func (b *Builder) newKit(ctx context.Context) (_ *kit, err error) {
	tellVersion()
	if err := os.MkdirAll(b.opt.Root, 0o700); err != nil {
		return nil, err
	}
	k := &kit{stopping: make(chan struct{}), local: newPipes(), lease: newBuildLease(ctx, b.opt.Engine.Images().Leases(), b.opt.Log)}
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
	cachePath, historyPath, recordsPath := filepath.Join(b.opt.Root, cacheFile), filepath.Join(b.opt.Root, historyFile), filepath.Join(b.opt.Root, recordsFile)
	if k.unsynced, err = newUnsynced(b.opt.Root, b.opt.Log, cachePath, historyPath, recordsPath); err != nil {
		return nil, err
	}
	opt, err := b.workerOptions(ctx, k)
	if err != nil {
		return nil, err
	}
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, err
	}
	if err := endOrphans(ctx, b.opt.Engine.Images(), opt.MetadataStore, b.opt.Log); err != nil {
		b.opt.Log.Error("collect what a killed build left", "error", err)
	}
	workers := &worker.Controller{}
	if err := workers.Add(imageWorker{w, b.opt.Engine.Images()}); err != nil {
		return nil, err
	}
	gatewayFrontend, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	ownFrontend := watchedFrontend{forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build)}
	cache, err := bboltcachestorage.NewStore(cachePath)
	if err != nil {
		return nil, err
	}
	k.databases = append(k.databases, cache)
	history, err := bolt.Open(historyPath, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, err
	}
	k.databases = append(k.databases, history)
	k.unsynced.databases = []transactor{opt.MetadataStore.DB(), history}
	k.controller, err = control.NewController(control.Opt{
		SessionManager: k.sessions, WorkerController: workers,
		Frontends: frontends(gatewayFrontend, ownFrontend),
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"inline":   inline.ResolveCacheExporterFunc(),
			"local":    localcache.ResolveCacheExporterFunc(k.sessions),
			"registry": registrycache.ResolveCacheExporterFunc(k.sessions, opt.RegistryHosts)},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"local":    localcache.ResolveCacheImporterFunc(k.sessions),
			"registry": registrycache.ResolveCacheImporterFunc(k.sessions, w.ContentStore(), opt.RegistryHosts)},
		CacheManager:  solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		Entitlements:  []string{string(entitlements.EntitlementNetworkHost)},
		MeterProvider: noop.NewMeterProvider(), HistoryDB: history, CacheStore: cache,
		LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(), GarbageCollect: w.GarbageCollect, GracefulStop: k.stopping,
	})
	if err != nil {
		return nil, err
	}
	k.server = grpc.NewServer(grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, k.unsynced.unary, k.lease.unary, b.past.unary),
		grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, k.unsynced.stream, b.past.stream))
	k.controller.Register(k.server)
	base, cancel := context.WithCancel(ctx)
	k.cancel = cancel
	k.background = func(f func(context.Context)) { k.work.Go(func() { f(base) }) }
	k.background(func(context.Context) {
		if err := k.server.Serve(k.local); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			b.opt.Log.Error("BuildKit stopped serving", "error", err)
		}
	})
	return k, nil
}

// client returns BuildKit's client on the BuildKit of this process, starting it
// the first time.
func (b *Builder) client(ctx context.Context) (*client.Client, *kit, error) {
	k, err := b.start(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("start BuildKit: %w", err)
	}
	c, err := client.New(ctx, "", client.WithContextDialer(k.local.dial))
	return c, k, err
}

// dialSession is a session.Dialer of sessions in this process.
func (k *kit) dialSession(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	k.background(func(ctx context.Context) {
		_ = k.sessions.HandleConn(ctx, theirs, meta) // says only how the session ended, which its owner knows
	})
	return ours, nil
}

// hijacker gives a wrapped ResponseWriter the method that BuildKit looks for.
type hijacker struct {
	http.ResponseWriter
	*http.ResponseController
}
