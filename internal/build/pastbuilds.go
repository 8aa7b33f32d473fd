package build

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ferryos/ferry/internal/build/contextkey"
	"github.com/ferryos/ferry/internal/fault"
)

const (
	// pastBuildAge is how long a build is remembered before BuildKit must confirm it,
	// which has its cache records count as used.
	pastBuildAge  = time.Hour
	maxPastBuilds = 256
)

// pastBuilds are what the last builds came to, so that a build of which nothing
// has changed is answered without going through its steps: the files are those
// of before by the client's key, the bases still have their names, the image is
// still here. Builds that took something from elsewhere (a URL, a git
// repository, a registry, another frontend) are not remembered. They are kept in
// memory alone.
type pastBuilds struct {
	images func() namedImages
	log    *slog.Logger

	mu   sync.Mutex
	done map[string]pastBuild // by key
}

// pastBuild is what a build came to.
type pastBuild struct {
	target    ocispec.Descriptor
	id        string                   // the image's
	bases     map[string]digest.Digest // names of images, and what they meant
	steps     []string                 // as textProgress shows them; nil if it did not
	confirmed time.Time
}

// Remembered is the image of a build of which nothing has changed.
type Remembered struct {
	ID    string    `json:"Id"`
	Built time.Time // when BuildKit went through it last
}

func newPastBuilds(images func() namedImages, log *slog.Logger) *pastBuilds {
	return &pastBuilds{images: images, log: log, done: map[string]pastBuild{}}
}

// Unchanged gives the names to the image that the last build of this key made.
// NotFound says that there is none, or that it may come out differently now.
func (b *Builder) Unchanged(ctx context.Context, key string, names []string) (Remembered, error) {
	names, err := fullTags(names)
	if err != nil {
		return Remembered{}, err
	}
	was, ok := b.past.find(ctx, key, names)
	if !ok {
		return Remembered{}, fault.New(fault.NotFound, "no build of these files is remembered").Hint("build them")
	}
	return Remembered{ID: was.id, Built: was.confirmed}, nil
}

// find returns the last build of a key, if it would come to the same now, and
// gives the image the names, which are full. What goes wrong is for BuildKit to
// find too.
func (p *pastBuilds) find(ctx context.Context, key string, names []string) (pastBuild, bool) {
	p.mu.Lock()
	was, ok := p.done[key]
	p.mu.Unlock()
	if !ok || time.Since(was.confirmed).Abs() > pastBuildAge {
		return pastBuild{}, false
	}
	ok, err := p.holds(ctx, was)
	if err == nil && ok {
		err = p.name(ctx, was.target, names)
	}
	if err != nil {
		p.log.Warn("a build is made again", "image", was.id, "error", err)
	}
	return was, ok && err == nil
}

// holds reports whether the bases are what they were, and the image is there.
func (p *pastBuilds) holds(ctx context.Context, was pastBuild) (bool, error) {
	all := p.images()
	for name, meant := range was.bases {
		if is, err := all.Get(ctx, name); err != nil || is.Target.Digest != meant {
			return false, ignoreNotFound(err)
		}
	}
	with, err := all.List(ctx, "target.digest=="+was.target.Digest.String())
	return len(with) > 0, err
}

func (p *pastBuilds) name(ctx context.Context, target ocispec.Descriptor, names []string) error {
	all := p.images()
	for _, name := range names {
		img := images.Image{Name: name, Target: target}
		_, err := all.Update(ctx, img)
		if errdefs.IsNotFound(err) {
			_, err = all.Create(ctx, img)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// remember keeps a build. The ones that were not confirmed for longest go.
func (p *pastBuilds) remember(key string, b pastBuild) {
	b.confirmed = time.Now().Round(0) // by the clock on the wall, which may be set
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[key] = b
	if len(p.done) > maxPastBuilds {
		delete(p.done, slices.MinFunc(slices.Collect(maps.Keys(p.done)), func(a, b string) int {
			return p.done[a].confirmed.Compare(p.done[b].confirmed)
		}))
	}
}

// showed adds what a client has seen of a build to what is remembered of it.
func (p *pastBuilds) showed(key string, steps []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b, ok := p.done[key]; ok {
		b.steps = steps
		p.done[key] = b
	}
}

// forget has every build go through its steps again.
func (p *pastBuilds) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.done)
}

// unary watches the builds that have a key.
func (p *pastBuilds) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	key := metadata.ValueFromIncomingContext(ctx, contextkey.Header)
	solve, ok := req.(*controlapi.SolveRequest)
	if !ok || len(key) != 1 || key[0] == "" || !isPlain(solve) {
		return next(ctx, req)
	}
	w := &witness{images: p.images, build: pastBuild{bases: map[string]digest.Digest{}}}
	res, err := next(context.WithValue(ctx, witnessKey{}, w), req)
	if b, whole := w.built(); err == nil && whole {
		p.remember(key[0], b)
	}
	return res, err
}

// isPlain reports whether a request is for one image from a Dockerfile, with
// nothing that a key does not know.
func isPlain(r *controlapi.SolveRequest) bool {
	cache := r.GetCache()
	return r.GetFrontend() == "dockerfile.v0" && len(r.GetExporters()) == 1 && r.GetDefinition() == nil && len(r.GetFrontendInputs()) == 0 &&
		r.GetSourcePolicy() == nil && r.GetSourcePolicySession() == "" && len(cache.GetExports())+len(cache.GetImports()) == 0
}

// stream forgets when the cache is pruned: who does that wants steps to run again.
func (p *pastBuilds) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if strings.HasSuffix(info.FullMethod, "/Prune") {
		defer p.forget()
	}
	return next(srv, s)
}

// witnessKey is the key of a build's witness in its context.
type witnessKey struct{}

// witnessOf returns the witness of the build that ctx belongs to, nil for none.
func witnessOf(ctx context.Context) *witness {
	w, _ := ctx.Value(witnessKey{}).(*witness)
	return w
}

// watchedFrontend tells the witness of a build what the build is made from.
type watchedFrontend struct{ frontend.Frontend }

// Solve implements frontend.Frontend.
func (f watchedFrontend) Solve(ctx context.Context, llb frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string,
	inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if w := witnessOf(ctx); w != nil {
		llb = watchedBridge{llb, w}
	}
	return f.Frontend.Solve(ctx, llb, exec, opt, inputs, sid, sm)
}

// watchedBridge passes on what a frontend asks of the solver.
type watchedBridge struct {
	frontend.FrontendLLBBridge
	witness *witness
}

// Solve implements frontend.FrontendLLBBridge.
func (b watchedBridge) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	b.witness.saw(ctx, req)
	return b.FrontendLLBBridge.Solve(ctx, req, sid)
}

// ResolveSourceMetadata implements frontend.FrontendLLBBridge. What it tells can
// be all that a build takes of a source: the settings of an image without layers.
func (b watchedBridge) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	res, err := b.FrontendLLBBridge.ResolveSourceMetadata(ctx, op, opt)
	if err == nil && res.Image != nil {
		b.witness.source(ctx, op.GetIdentifier(), res.Image.Digest)
	} else {
		b.witness.lose()
	}
	return res, err
}

// Warn implements frontend.FrontendLLBBridge. A warning is to be seen each time.
func (b watchedBridge) Warn(ctx context.Context, step digest.Digest, msg string, opts frontend.WarnOpts) error {
	b.witness.lose()
	return b.FrontendLLBBridge.Warn(ctx, step, msg, opts)
}

// witness notes what a build is made from and what it comes to.
type witness struct {
	images func() namedImages

	mu      sync.Mutex
	build   pastBuild
	unknown bool // something may change of which nothing is known here
}

// saw notes the sources of what a frontend has solved.
func (w *witness) saw(ctx context.Context, req frontend.SolveRequest) {
	// The frontend that is linked in is watched by itself when another line asks for it.
	other := req.Frontend != "" && !(req.Frontend == "gateway.v0" && isBuiltin(req.FrontendOpt[frontend.KeySource]))
	if other || len(req.FrontendInputs) > 0 || len(req.CacheImports) > 0 {
		w.lose()
		return
	}
	for _, data := range req.Definition.GetDef() {
		var op pb.Op
		if err := op.UnmarshalVT(data); err != nil {
			w.lose()
			return
		}
		if source := op.GetSource(); source != nil {
			w.source(ctx, source.GetIdentifier(), "")
		}
	}
}

// source notes a source: a part of what the client sends, or an image that is
// here. An image's digest comes with its name, or as what the name was found to mean.
func (w *witness) source(ctx context.Context, identifier string, meant digest.Digest) {
	scheme, rest, _ := strings.Cut(identifier, "://")
	if scheme == "local" && (rest == "context" || rest == "dockerfile") {
		return
	}
	ref, err := reference.ParseNormalizedNamed(rest)
	if scheme != "docker-image" || err != nil {
		w.lose()
		return
	}
	tagged, hasTag := ref.(reference.Tagged)
	if exact, ok := ref.(reference.Digested); ok {
		if !hasTag { // means the same for ever
			return
		}
		meant = exact.Digest()
	}
	name := ref.Name() + ":latest"
	if hasTag {
		name = ref.Name() + ":" + tagged.Tag()
	}
	if img, err := w.images().Get(ctx, name); err != nil || img.Target.Digest != meant {
		w.lose()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if was, again := w.build.bases[name]; again && was != meant {
		w.unknown = true // moved meanwhile
	}
	w.build.bases[name] = meant
}

func (w *witness) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unknown = true
}

// made notes the image.
func (w *witness) made(target ocispec.Descriptor, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.build.target, w.build.id = target, id
}

// built returns what the build came to, if all is known that it depends on.
func (w *witness) built() (pastBuild, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.build, !w.unknown && w.build.id != ""
}
