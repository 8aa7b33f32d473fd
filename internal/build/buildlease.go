package build

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/ferryos/ferry/internal/engine/store"
)

// Times of a build lease.
const (
	// shortLease is the longest that a lease which BuildKit makes and forgets is for.
	shortLease = 10 * time.Minute
	// leaseDelay is how long a build lease outlives its last build at least.
	leaseDelay = 10 * time.Second
)

// Labels of leases.
const (
	labelTemporary = "buildkit/lease.temporary"
	labelExpire    = "containerd.io/gc.expire"
)

// buildLease is one lease for all that builds are in the middle of, in place of
// one for each build and for each look at an image: to make a lease, to give it
// what exists already and to end it each wait for the disk, eighteen times in a
// rebuild of which nothing changes. It ends soon after the last build, and with
// a kill as every lease that no cache record has; see endOrphans.
//
// It is BuildKit's leases.Manager. Leases that belong to cache records, and
// those whose content is taken over by one, are made as they are asked for.
type buildLease struct {
	leases.Manager                       // the store's
	remove         func(id string) error // a lease, whatever has become of who asked for it
	log            *slog.Logger

	mu    sync.Mutex
	id    string // "" while there is none
	users int    // builds
	until time.Time
	held  map[leases.Resource]bool // known to be the lease's
	idle  *time.Timer              // nil or ends it
}

func newBuildLease(ctx context.Context, m leases.Manager, log *slog.Logger) *buildLease {
	ctx = named(context.WithoutCancel(ctx))
	return &buildLease{Manager: m, log: log, remove: func(id string) error { return m.Delete(ctx, leases.Lease{ID: id}) }}
}

// Create implements leases.Manager.
func (b *buildLease) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var asked leases.Lease
	for _, opt := range opts {
		if err := opt(&asked); err != nil {
			return leases.Lease{}, err
		}
	}
	expires, err := time.Parse(time.RFC3339, asked.Labels[labelExpire])
	if ns, _ := namespaces.Namespace(ctx); err != nil || ns != store.Namespace || asked.Labels[labelTemporary] == "" || time.Until(expires) > shortLease {
		return b.Manager.Create(ctx, opts...)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ensure(ctx); err != nil {
		return leases.Lease{}, err
	}
	if b.until.Before(expires) {
		b.until = expires
	}
	b.endLater()
	return leases.Lease{ID: b.id, CreatedAt: time.Now(), Labels: maps.Clone(asked.Labels)}, nil
}

// ensure makes the lease unless there is one; b.mu is held.
func (b *buildLease) ensure(ctx context.Context) error {
	if b.id != "" {
		return nil
	}
	l, err := b.Manager.Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("lease of builds: %w", err)
	}
	b.id, b.held = l.ID, map[leases.Resource]bool{}
	return nil
}

// enter has what is made with the returned context kept until done and some time beyond.
func (b *buildLease) enter(ctx context.Context) (_ context.Context, done func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ensure(named(ctx)); err != nil {
		return nil, nil, err
	}
	b.users++
	return leases.WithLease(ctx, b.id), b.leave, nil
}

func (b *buildLease) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users--
	if soon := time.Now().Add(leaseDelay); b.until.Before(soon) {
		b.until = soon
	}
	b.endLater()
}

// endLater ends the lease when nobody needs it any more; b.mu is held.
func (b *buildLease) endLater() {
	if b.idle != nil {
		b.idle.Stop()
	}
	if b.users == 0 {
		b.idle = time.AfterFunc(time.Until(b.until), b.endIdle)
	}
}

// endIdle ends the lease unless builds are under way.
func (b *buildLease) endIdle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.idle != nil {
		b.idle.Stop()
	}
	if b.users > 0 || b.id == "" {
		return
	}
	if err := b.remove(b.id); err != nil && !errdefs.IsNotFound(err) {
		b.log.Error("end the lease of builds", "lease", b.id, "error", err)
	}
	b.id, b.held, b.until = "", nil, time.Time{}
}

// Delete implements leases.Manager. A lease that does not exist costs no write.
func (b *buildLease) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	b.mu.Lock()
	shared := l.ID == b.id
	b.mu.Unlock()
	if shared {
		b.endIdle()
		return nil
	}
	if _, err := b.Manager.ListResources(ctx, l); errdefs.IsNotFound(err) {
		return err
	}
	return b.Manager.Delete(ctx, l, opts...)
}

// AddResource implements leases.Manager.
func (b *buildLease) AddResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	if b.holds(l.ID, r) {
		return nil
	}
	err := b.Manager.AddResource(ctx, l, r)
	if err == nil {
		b.note(l.ID, r)
	}
	return err
}

// DeleteResource implements leases.Manager.
func (b *buildLease) DeleteResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	b.mu.Lock()
	if l.ID == b.id {
		delete(b.held, r)
	}
	b.mu.Unlock()
	return b.Manager.DeleteResource(ctx, l, r)
}

// holds reports whether r is known to be kept by the lease of that ID.
func (b *buildLease) holds(id string, r leases.Resource) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return id != "" && id == b.id && b.held[r]
}

func (b *buildLease) note(id string, r leases.Resource) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if id != "" && id == b.id {
		b.held[r] = true
	}
}

// unary has builds work under the lease.
func (b *buildLease) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !strings.HasSuffix(info.FullMethod, "/Solve") {
		return next(ctx, req)
	}
	ctx, done, err := b.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return next(ctx, req)
}

// blobs is the store's content for BuildKit, without the writes that change nothing.
type blobs struct {
	content.Store
	lease *buildLease
}

// Writer implements content.Ingester.
func (b blobs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var asked content.WriterOpts
	for _, opt := range opts {
		if err := opt(&asked); err != nil {
			return nil, err
		}
	}
	lease, _ := leases.FromContext(ctx)
	blob := leases.Resource{ID: asked.Desc.Digest.String(), Type: "content"}
	if b.lease.holds(lease, blob) {
		return nil, fmt.Errorf("content %s: %w", asked.Desc.Digest, errdefs.ErrAlreadyExists)
	}
	w, err := b.Store.Writer(ctx, opts...)
	if errdefs.IsAlreadyExists(err) {
		b.lease.note(lease, blob)
	}
	return w, err
}

// Update implements content.Manager.
func (b blobs) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	if old, err := b.Store.Info(ctx, info.Digest); err == nil && sameLabels(old.Labels, info.Labels, fields) {
		return old, nil
	}
	return b.Store.Update(ctx, info, fields...)
}

// sameLabels reports whether an update of the fields, labels all, changes nothing.
func sameLabels(old, want map[string]string, fields []string) bool {
	for _, field := range fields {
		label, ok := strings.CutPrefix(field, "labels.")
		if !ok || old[label] != want[label] {
			return false
		}
	}
	return len(fields) > 0
}
