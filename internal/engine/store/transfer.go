package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/ferryos/ferry/internal/fault"
)

// parallel is how many blobs are transferred at a time.
const parallel = 4

// TransferOptions are how an image is pulled or pushed.
type TransferOptions struct {
	Auth Auth
	// Platform is OS[/ARCH[/VARIANT]] of the variant that is meant. Empty: to pull,
	// this machine's; to push, all that are here.
	Platform string
	// Progress is called with what happens, never twice at a time. May be nil.
	Progress func(Event)
}

// Pull fetches an image or artifact and, if it is one for this machine, unpacks
// it. On error or when ctx ends the name stays what it was; what was downloaded
// by then is kept for a day and taken up by the next pull.
func (s *Store) Pull(ctx context.Context, name string, opt TransferOptions) (_ Image, err error) {
	ref, err := normalize(name)
	if err != nil {
		return Image{}, err
	}
	want, err := s.matcher(opt.Platform)
	if err != nil {
		return Image{}, err
	}
	ctx = namespaced(ctx)
	resolver := s.resolver(ctx, opt.Auth)
	_, target, err := resolver.Resolve(ctx, ref)
	if err == nil {
		err = verifyKnown(target)
	}
	if err != nil {
		return Image{}, remoteError("pull", name, err)
	}
	remote, err := resolver.Fetcher(ctx, ref)
	if err != nil {
		return Image{}, remoteError("pull", name, err)
	}
	leased, done, err := s.withLease(ctx)
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, done()) }()
	lease, _ := leases.FromContext(leased)
	p := &pull{fetcher: fetcher{store: s, remote: remote, lease: lease}, want: want, platform: opt.Platform,
		downloads: semaphore.NewWeighted(parallel), report: newReporter(opt.Progress).report}
	if err := p.tree(ctx, target, 0); err != nil {
		return Image{}, remoteError("pull", name, err)
	}
	s.known.forget(target.Digest) // it may have another variant now
	img, err := s.readVariant(leased, target, opt.Platform)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", name, err)
	}
	if err := ctx.Err(); err != nil { // what is here already is found without a look at ctx
		return Image{}, fmt.Errorf("pull %s: %w", name, err)
	}
	if err := s.name(leased, ref, target); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", name, err)
	}
	img.Names = []string{ref}
	return img, nil
}

// pull is one Pull.
type pull struct {
	fetcher
	want      platforms.MatchComparer
	platform  string
	downloads *semaphore.Weighted
	report    func(Event)
}

// tree fetches a manifest with all that belongs to it, or of an index what the
// platform asks for.
func (p *pull) tree(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if desc.Size > maxManifest {
		return fault.New(fault.Invalid, "manifest of %d bytes; at most %d are possible", desc.Size, maxManifest)
	}
	if err := p.fetch(ctx, desc, func(int64) {}); err != nil {
		return err
	}
	blobs := p.store.db.ContentStore()
	list, err := children(ctx, blobs, desc, depth)
	if err != nil {
		return err
	}
	if !images.IsIndexType(desc.MediaType) {
		if err := p.store.label(ctx, desc, list); err != nil {
			return err
		}
		return p.manifest(ctx, desc)
	}
	fits := pick(list, p.want)
	if len(fits) == 0 {
		return fault.New(fault.NotFound, "no matching manifest for %s in the manifest list entries", p.platformName()).
			Hint("the image is not made for that platform; name another with --platform")
	}
	chosen := append([]ocispec.Descriptor{fits[0]}, attestationsOf(list, fits[0].Digest)...)
	if err := p.store.label(ctx, desc, chosen); err != nil {
		return err
	}
	for _, child := range chosen {
		if err := p.tree(ctx, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *pull) platformName() string {
	if p.platform != "" {
		return p.platform
	}
	return platforms.Format(platforms.DefaultSpec())
}

// manifest fetches what a manifest names, and unpacks it if that can be run here.
func (p *pull) manifest(ctx context.Context, desc ocispec.Descriptor) error {
	var m ocispec.Manifest
	if err := readDocument(ctx, p.store.db.ContentStore(), desc, maxManifest, &m); err != nil {
		return err
	}
	isImage := images.IsConfigType(m.Config.MediaType)
	if isImage && m.Config.Size > maxConfig {
		return fault.New(fault.Invalid, "configuration of %d bytes; at most %d are possible", m.Config.Size, maxConfig)
	}
	if err := p.fetch(ctx, m.Config, func(int64) {}); err != nil {
		return err
	}
	for _, l := range m.Layers {
		p.report(Event{ID: l.Digest, Status: StatusQueued})
	}
	if isImage && !isAttestation(desc) {
		img, err := p.store.decode(ctx, desc, "")
		if err != nil {
			return err
		}
		if len(m.Layers) > 0 && p.store.runnable(img) == nil {
			return p.unpacked(ctx, img)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for i := range m.Layers {
		g.Go(func() error {
			if err := p.layer(gctx, m.Layers[i]); err != nil {
				return err
			}
			p.report(Event{ID: m.Layers[i].Digest, Status: StatusComplete})
			return nil
		})
	}
	return g.Wait()
}

// unpacked fetches an image's layers and unpacks each as soon as it is there.
func (p *pull) unpacked(ctx context.Context, img Image) error {
	if err := p.store.refer(ctx, img.ID, labelSnapshotRef, img.ChainID()); err != nil {
		return err
	}
	// A layer is fetched without the lease that unpack's contexts have, but ends with them.
	ready := func(unpacking context.Context, i int) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(unpacking, cancel)()
		return p.layer(ctx, img.Layers[i])
	}
	return p.store.unpack(p.leased(ctx), img, ready, p.report)
}

// layer fetches one layer when it is its turn.
func (p *pull) layer(ctx context.Context, desc ocispec.Descriptor) error {
	if there, err := p.have(ctx, desc); err != nil {
		return err
	} else if there {
		p.report(Event{ID: desc.Digest, Status: StatusExists})
		return nil
	}
	if err := p.downloads.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer p.downloads.Release(1)
	err := p.fetch(ctx, desc, func(done int64) {
		p.report(Event{ID: desc.Digest, Status: StatusDownloading, Current: done, Total: desc.Size})
	})
	if err == nil {
		p.report(Event{ID: desc.Digest, Status: StatusDownloaded})
	}
	return err
}

// Push sends an image to the registry of its name and returns its digest and
// size there: an index if all that it lists is here, else the variant for this
// machine, or the one asked for.
func (s *Store) Push(ctx context.Context, name string, opt TransferOptions) (ocispec.Descriptor, error) {
	ref, err := normalize(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	ctx = namespaced(ctx)
	rec, err := s.images.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fault.New(fault.NotFound, "no image has the name %s", name).Hint("name one with `ferry tag IMAGE %s`", name)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target, err := s.pushed(ctx, rec.Target, opt.Platform)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push %s: %w", name, err)
	}
	pusher, err := s.resolver(ctx, opt.Auth).Pusher(ctx, ref)
	if err != nil {
		return ocispec.Descriptor{}, remoteError("push", name, err)
	}
	report := newReporter(opt.Progress).report
	shown := func(h images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if !images.IsLayerType(desc.MediaType) {
				return h.Handle(ctx, desc)
			}
			report(Event{ID: desc.Digest, Status: StatusPushing, Total: desc.Size})
			list, err := h.Handle(ctx, desc)
			if err == nil {
				report(Event{ID: desc.Digest, Status: StatusPushed})
			}
			return list, err
		})
	}
	if err := remotes.PushContent(ctx, pusher, target, s.db.ContentStore(), semaphore.NewWeighted(parallel), platforms.All, shown); err != nil {
		return ocispec.Descriptor{}, remoteError("push", name, err)
	}
	return target, nil
}

// pushed is what of an image is pushed.
func (s *Store) pushed(ctx context.Context, target ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	if platform == "" && images.IsIndexType(target.MediaType) {
		if complete, err := s.complete(ctx, target, 0); err != nil || complete {
			return target, err
		}
	}
	return s.variant(ctx, target, platform)
}

// complete reports whether everything below desc is in the store.
func (s *Store) complete(ctx context.Context, desc ocispec.Descriptor, depth int) (bool, error) {
	blobs := s.db.ContentStore()
	if ok, err := content.Exists(ctx, blobs, desc); err != nil || !ok {
		return false, err
	}
	if !images.IsIndexType(desc.MediaType) && !images.IsManifestType(desc.MediaType) {
		return true, nil
	}
	list, err := children(ctx, blobs, desc, depth)
	if err != nil {
		return false, err
	}
	for _, child := range list {
		if ok, err := s.complete(ctx, child, depth+1); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// remoteError says what to do about a registry's refusal or silence.
func remoteError(op, name string, err error) error {
	var network net.Error
	var status remoteerrors.ErrUnexpectedStatus
	errors.As(err, &status)
	switch {
	case fault.HintOf(err) != "" || fault.KindOf(err) != fault.Internal: // it is said already
		return fmt.Errorf("%s %s: %w", op, name, err)
	case errdefs.IsNotFound(err):
		return fault.New(fault.NotFound, "%s %s: %w", op, name, err).Hint("check the name and tag; the registry has none such")
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errors.Is(err, docker.ErrInvalidAuthorization),
		status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
		return fault.New(fault.Denied, "%s %s: %w", op, name, err).Hint("the registry asks for a credential, or for another one")
	case status.StatusCode >= http.StatusInternalServerError, status.StatusCode == http.StatusTooManyRequests:
		return fault.New(fault.Unavailable, "%s %s: %w", op, name, err).Hint("the registry has a fault of its own, or too much to do; try again later")
	case errors.As(err, &network):
		return fault.New(fault.Unavailable, "%s %s: %w", op, name, err).
			Hint("the registry cannot be reached; images of this machine are listed by `ferry images`")
	default:
		return asFault(fmt.Errorf("%s %s: %w", op, name, err))
	}
}

// Remote tells what a registry has under a name, and for which platforms,
// without fetching it.
func (s *Store) Remote(ctx context.Context, name string, auth Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	ref, err := normalize(name)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	ctx = namespaced(ctx)
	resolver := s.resolver(ctx, auth)
	_, desc, err := resolver.Resolve(ctx, ref)
	if err == nil {
		err = verifyKnown(desc)
	}
	if err != nil {
		return desc, nil, remoteError("inspect", name, err)
	}
	fetcher, err := resolver.Fetcher(ctx, ref)
	if err != nil {
		return desc, nil, remoteError("inspect", name, err)
	}
	var m struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    ocispec.Descriptor   `json:"config"`
	}
	if err := fetchJSON(ctx, fetcher, desc, maxManifest, &m); err != nil {
		return desc, nil, remoteError("inspect", name, err)
	}
	var list []ocispec.Platform
	for _, d := range m.Manifests {
		if d.Platform != nil && !isAttestation(d) {
			list = append(list, *d.Platform)
		}
	}
	if images.IsConfigType(m.Config.MediaType) {
		var p ocispec.Platform
		if err := fetchJSON(ctx, fetcher, m.Config, maxConfig, &p); err != nil {
			return desc, nil, remoteError("inspect", name, err)
		}
		list = append(list, p)
	}
	return desc, list, nil
}

// fetchJSON reads a document of a registry, verified, without keeping it.
func fetchJSON(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor, limit int64, into any) error {
	if desc.Size > limit {
		return fault.New(fault.Invalid, "%s of %d bytes; at most %d are possible", desc.MediaType, desc.Size, limit)
	}
	if err := desc.Digest.Validate(); err != nil {
		return fault.New(fault.Invalid, "digest %q: %w", desc.Digest, err)
	}
	desc.URLs = nil
	body, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, limit))
	if err != nil {
		return err
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return fault.New(fault.Invalid, "the registry sent %s for %s", got, desc.Digest)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fault.New(fault.Invalid, "%s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return nil
}
