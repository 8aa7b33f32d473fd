package build

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	controlapi "github.com/moby/buildkit/api/services/control"
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

	mu      sync.Mutex
	done    map[string]pastBuild // by key
	watched map[string]*witness  // by session
}

// pastBuild is what a build came to.
type pastBuild struct {
	target    ocispec.Descriptor
	id        string                   // the image's
	bases     map[string]digest.Digest // names of images, and what they meant
	steps     []string                 // as textProgress shows them; nil if it did not
	confirmed time.Time
}

// Rebuilt is the image of a build of which nothing has changed.
type Rebuilt struct {
	ID    string    `json:"Id"`
	Built time.Time // when BuildKit went through it last
}

func newPastBuilds(images func() namedImages) *pastBuilds {
	return &pastBuilds{images: images, done: map[string]pastBuild{}, watched: map[string]*witness{}}
}

// Unchanged gives the names to the image that the last build of this key made.
// NotFound says that there is none, or that it may come out differently now.
func (b *Builder) Unchanged(ctx context.Context, key string, names []string) (Rebuilt, error) {
	for i, name := range names {
		var err error
		if names[i], err = full(name); err != nil {
			return Rebuilt{}, err
		}
	}
	o, ok, err := b.past.find(ctx, key, names)
	if err != nil {
		return Rebuilt{}, err
	}
	if !ok {
		return Rebuilt{}, fault.New(fault.NotFound, "no build of these files is remembered").Hint("build them")
	}
	return Rebuilt{ID: o.id, Built: o.confirmed}, nil
}

// find returns the last build of a key, if it would come to the same now, and gives the image the
// names, which are full.
func (o *pastBuilds) find(ctx context.Context, key string, names []string) (pastBuild, bool, error) {
	o.mu.Lock()
	got, ok := o.done[key]
	o.mu.Unlock()
	if !ok || time.Since(got.confirmed) > pastBuildAge || time.Until(got.confirmed) > 0 {
		return pastBuild{}, false, nil
	}
	all := o.images()
	for name, was := range got.bases {
		if is, err := all.Get(ctx, name); err != nil || is.Target.Digest != was {
			return pastBuild{}, false, ignoreNotFound(err)
		}
	}
	with, err := all.List(ctx, "target.digest=="+got.target.Digest.String())
	if err != nil || len(with) == 0 {
		return pastBuild{}, false, err
	}
	for _, name := range names {
		img := images.Image{Name: name, Target: got.target}
		_, err := all.Update(ctx, img)
		if errdefs.IsNotFound(err) {
			_, err = all.Create(ctx, img)
		}
		if err != nil {
			return pastBuild{}, false, err
		}
	}
	return got, true, nil
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// remember keeps a build. The ones that were not confirmed for longest go.
func (o *pastBuilds) remember(key string, got pastBuild) {
	got.confirmed = time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done[key] = got
	if len(o.done) > maxPastBuilds {
		delete(o.done, slices.MinFunc(slices.Collect(maps.Keys(o.done)), func(a, b string) int {
			return cmp.Compare(o.done[a].confirmed.UnixNano(), o.done[b].confirmed.UnixNano())
		}))
	}
}

// showed adds what a client has seen of a build to what is remembered of it.
func (o *pastBuilds) showed(key string, steps []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if got, ok := o.done[key]; ok {
		got.steps = steps
		o.done[key] = got
	}
}

// forget has every build go through its steps again.
func (o *pastBuilds) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.done)
}

// unary watches the builds that have a key.
func (o *pastBuilds) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	key := metadata.ValueFromIncomingContext(ctx, contextkey.Header)
	solve, ok := req.(*controlapi.SolveRequest)
	if !ok || len(key) != 1 || len(solve.GetExporters()) != 1 {
		return next(ctx, req)
	}
	w := &witness{images: o.images, got: pastBuild{bases: map[string]digest.Digest{}}}
	o.watch(solve.GetSession(), w)
	defer o.watch(solve.GetSession(), nil)
	res, err := next(ctx, req)
	if got, whole := w.built(); err == nil && whole {
		o.remember(key[0], got)
	}
	return res, err
}

// stream forgets when the cache is pruned: who does that wants steps to run again.
func (o *pastBuilds) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if strings.HasSuffix(info.FullMethod, "/Prune") {
		defer o.forget()
	}
	return next(srv, s)
}

// watch has w told of the build of a session; nil ends that.
func (o *pastBuilds) watch(session string, w *witness) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w == nil {
		delete(o.watched, session)
		return
	}
	o.watched[session] = w
}

func (o *pastBuilds) witness(session string) *witness {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.watched[session]
}

// watchedFrontend tells the witness of a build what the build is made from.
type watchedFrontend struct {
	frontend.Frontend
	past *pastBuilds
}

// Solve implements frontend.Frontend.
func (f watchedFrontend) Solve(ctx context.Context, llb frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string,
	inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if w := f.past.witness(sid); w != nil {
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

// witness notes what a build is made from and what it comes to.
type witness struct {
	images func() namedImages

	mu      sync.Mutex
	got     pastBuild
	unknown bool // something may change of which nothing is known here
}

// saw notes the sources of what a frontend has solved.
func (w *witness) saw(ctx context.Context, req frontend.SolveRequest) {
	if req.Frontend != "" || len(req.FrontendInputs) > 0 || len(req.CacheImports) > 0 {
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
			w.source(ctx, source.GetIdentifier())
		}
	}
}

// source notes a source: a part of what the client sends, or an image that is
// here, whose name comes with the digest that it was found to mean.
func (w *witness) source(ctx context.Context, identifier string) {
	scheme, rest, _ := strings.Cut(identifier, "://")
	if scheme == "local" && (rest == "context" || rest == "dockerfile") {
		return
	}
	ref, err := reference.ParseNormalizedNamed(rest)
	meant, resolved := ref.(reference.Digested)
	if scheme != "docker-image" || err != nil || !resolved {
		w.lose()
		return
	}
	tagged, ok := ref.(reference.Tagged)
	if !ok { // by its digest alone, which means the same for ever
		return
	}
	name := ref.Name() + ":" + tagged.Tag()
	if img, err := w.images().Get(ctx, name); err != nil || img.Target.Digest != meant.Digest() {
		w.lose()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if was, again := w.got.bases[name]; again && was != meant.Digest() {
		w.unknown = true // moved meanwhile
	}
	w.got.bases[name] = meant.Digest()
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
	w.got.target, w.got.id = target, id
}

// built returns what the build came to, if all is known that it depends on.
func (w *witness) built() (pastBuild, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got, !w.unknown && w.got.id != ""
}
