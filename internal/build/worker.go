package build

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// workerOptions plugs the image store and the engine into BuildKit's worker.
func (b *Builder) workerOptions(ctx context.Context, k *kit) (base.WorkerOpt, error) {
	root := filepath.Join(b.opt.Root, "worker")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return base.WorkerOpt{}, err
	}
	id, err := base.ID(root)
	if err != nil {
		return base.WorkerOpt{}, err
	}
	meta, err := metadata.NewStore(filepath.Join(b.opt.Root, recordsFile))
	if err != nil {
		return base.WorkerOpt{}, err
	}
	k.databases = append(k.databases, meta)
	s := b.opt.Engine.Images()
	blobs := containerdsnapshot.NewContentStore(blobs{s.ContentStore(), k.lease}, store.Namespace)
	return base.WorkerOpt{
		ID: id, Root: root, MetadataStore: meta, Labels: map[string]string{snapshotterLabel: store.SnapshotterName, gatewayLabel: b.opt.Gateway.String()}, Platforms: []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())},
		// Networks are the executor's business; BuildKit only asks which modes there are.
		NetworkProviders: map[pb.NetMode]network.Provider{pb.NetMode_UNSET: network.NewNoneProvider(),
			pb.NetMode_NONE: network.NewNoneProvider(), pb.NetMode_HOST: network.NewHostProvider()},
		Executor:       newExecutor(b.opt.Engine, root, b.opt.Log),
		Snapshotter:    containerdsnapshot.NewSnapshotter(store.SnapshotterName, s.Snapshotter(), store.Namespace, nil),
		ContentStore:   blobs,
		Applier:        apply.NewFileSystemApplier(blobs),
		Differ:         walking.NewWalkingDiff(blobs),
		ImageStore:     b.images(),
		LeaseManager:   leaseutil.WithNamespace(k.lease, store.Namespace),
		GCPolicy:       cachePolicy(root),
		RegistryHosts:  b.registries(ctx),
		MountPoolRoot:  filepath.Join(root, "cachemounts"),
		GarbageCollect: func(ctx context.Context) (gc.Stats, error) { k.lease.endIdle(); return nil, s.GC(ctx) },
	}, nil
}

// registries says how registries are spoken to: as the store does, but for the
// credentials, which are the client's. One of the daemon's own goes with each request.
func (b *Builder) registries(ctx context.Context) docker.RegistryHosts {
	hosts := b.opt.Engine.Images().Hosts(ctx, store.Auth{})
	if b.opt.Credential == nil {
		return hosts
	}
	return func(host string) ([]docker.RegistryHost, error) {
		list, err := hosts(host)
		user, password := b.opt.Credential(host)
		if err != nil || user == "" {
			return list, err
		}
		for i := range list {
			if list[i].Host != host {
				continue // a mirror is not to see it
			}
			r := http.Request{Header: http.Header{}}
			r.SetBasicAuth(user, password)
			list[i].Header = r.Header
		}
		return list, nil
	}
}

// cachePolicy is what of the build cache is kept: contexts and cache mounts for
// two days, all else while there is room for it, as BuildKit's own daemon does.
func cachePolicy(root string) []client.PruneInfo {
	const gigabyte = 1 << 30
	limit := int64(20 * gigabyte)
	var st unix.Statfs_t
	if unix.Statfs(root, &st) == nil {
		limit = min(limit, int64(st.Blocks)*st.Bsize/10)
	}
	return []client.PruneInfo{
		{Filter: []string{"type==source.local,type==exec.cachemount,type==source.git.checkout"}, KeepDuration: 48 * time.Hour, MaxUsedSpace: limit / 10},
		{KeepDuration: 60 * 24 * time.Hour, MaxUsedSpace: limit},
		{MaxUsedSpace: limit},
		{All: true, MaxUsedSpace: limit},
	}
}

// namedImages is the image store for BuildKit, whose calls do not carry the
// metadata namespace and whose names may be short, as the client wrote them.
type namedImages struct {
	images.Store
	all     *store.Store
	onNamed func(ctx context.Context, name string)
}

func named(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, store.Namespace)
}

// full is a name as the store keeps it: docker.io/library/app:latest for app.
func full(name string) (string, error) {
	if digest, nameless := strings.CutPrefix(name, danglingPrefix+"@"); nameless {
		return digest, nil
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fault.New(fault.Invalid, "image name %q: %w", name, err)
	}
	return ref.String(), nil
}

// Get implements images.Store.
func (n namedImages) Get(ctx context.Context, name string) (images.Image, error) {
	name, err := full(name)
	if err != nil {
		return images.Image{}, err
	}
	return n.Store.Get(named(ctx), name)
}

// List implements images.Store.
func (n namedImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return n.Store.List(named(ctx), filters...)
}

// Create implements images.Store.
func (n namedImages) Create(ctx context.Context, img images.Image) (images.Image, error) {
	var err error
	if img.Name, err = full(img.Name); err != nil {
		return images.Image{}, err
	}
	created, err := n.Store.Create(named(ctx), img)
	n.tell(ctx, img.Name, err)
	return created, err
}

// tell says that a build has given an image a name.
func (n namedImages) tell(ctx context.Context, name string, err error) {
	if err != nil || n.onNamed == nil {
		return
	}
	if _, err := digest.Parse(name); err == nil {
		return // for want of a name
	}
	if ref, err := reference.ParseNormalizedNamed(name); err == nil {
		n.onNamed(ctx, reference.FamiliarString(ref))
	}
}

// Update implements images.Store. The image that had the name stays, without it.
func (n namedImages) Update(ctx context.Context, img images.Image, fields ...string) (images.Image, error) {
	var err error
	if img.Name, err = full(img.Name); err != nil {
		return images.Image{}, err
	}
	ctx = named(ctx)
	old, err := n.Store.Get(ctx, img.Name)
	if err == nil && old.Target.Digest == img.Target.Digest {
		n.tell(ctx, img.Name, nil)
		return old, nil // nothing to write: a rebuild
	}
	if err == nil {
		if err := n.all.KeepUnnamed(ctx, img.Name, old.Target, img.Target); err != nil {
			return images.Image{}, err
		}
	}
	updated, err := n.Store.Update(ctx, img, fields...)
	n.tell(ctx, img.Name, err)
	return updated, err
}

// Delete implements images.Store.
func (n namedImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	name, err := full(name)
	if err != nil {
		return err
	}
	return n.Store.Delete(named(ctx), name, opts...)
}
