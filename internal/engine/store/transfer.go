package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/semaphore"

	"github.com/ferryos/ferry/internal/fault"
)

// Auth is a registry credential; the zero value is none.
type Auth struct{ Username, Password string }

// parallel is how many blobs are transferred at a time.
const parallel = 4

// resolver speaks the OCI distribution protocol with the registries.
func (s *Store) resolver(auth Auth) remotes.Resolver {
	credential := func(host string) (string, string, error) {
		if auth.Username != "" || auth.Password != "" || s.opt.Credential == nil {
			return auth.Username, auth.Password, nil
		}
		user, password := s.opt.Credential(host)
		return user, password, nil
	}
	plain := func(host string) (bool, error) {
		if s.opt.PlainHTTP != nil && s.opt.PlainHTTP(host) {
			return true, nil
		}
		return docker.MatchLocalhost(host)
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(
		docker.WithPlainHTTP(plain),
		docker.WithClient(http.DefaultClient),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(docker.WithAuthCreds(credential))),
	)})
}

// Pull fetches an image or artifact for this platform and unpacks it. On error
// the name stays what it was.
func (s *Store) Pull(ctx context.Context, name string, auth Auth) (_ Image, err error) {
	ref, err := normalize(name)
	if err != nil {
		return Image{}, err
	}
	ctx, done, err := s.withLease(namespaced(ctx))
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, done()) }()
	resolver := s.resolver(auth)
	_, target, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return Image{}, remoteError("pull", name, err)
	}
	fetcher, err := resolver.Fetcher(ctx, ref)
	if err != nil {
		return Image{}, remoteError("pull", name, err)
	}
	blobs := s.db.ContentStore()
	children := images.SetChildrenLabels(blobs, images.FilterPlatforms(images.ChildrenHandler(blobs), s.platform))
	handler := images.Handlers(remotes.FetchHandler(blobs, fetcher), children)
	if err := images.Dispatch(ctx, handler, semaphore.NewWeighted(parallel), target); err != nil {
		return Image{}, remoteError("pull", name, err)
	}
	img, err := s.read(ctx, target)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", name, err)
	}
	if img.ArtifactType == "" {
		if err := s.ensureUnpacked(ctx, img); err != nil {
			return Image{}, fmt.Errorf("pull %s: %w", name, err)
		}
	}
	if err := s.setName(ctx, ref, target); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", name, err)
	}
	img.Names = []string{ref}
	return img, nil
}

// Push sends an image to the registry of its name and returns its digest there.
func (s *Store) Push(ctx context.Context, name string, auth Auth) (digest string, err error) {
	ref, err := normalize(name)
	if err != nil {
		return "", err
	}
	ctx = namespaced(ctx)
	rec, err := s.images.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return "", fault.New(fault.NotFound, "no image has the name %s", name).Hint("name one with `ferry tag IMAGE %s`", name)
	}
	if err != nil {
		return "", err
	}
	target, err := s.manifestOf(ctx, rec.Target)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", name, err)
	}
	pusher, err := s.resolver(auth).Pusher(ctx, ref)
	if err != nil {
		return "", remoteError("push", name, err)
	}
	if err := remotes.PushContent(ctx, pusher, target, s.db.ContentStore(), semaphore.NewWeighted(parallel), s.platform, nil); err != nil {
		return "", remoteError("push", name, err)
	}
	return target.Digest.String(), nil
}

// remoteError says what to do about a registry's refusal or silence.
func remoteError(op, name string, err error) error {
	var network net.Error
	var dns *net.DNSError
	switch {
	case errdefs.IsNotFound(err):
		return fault.New(fault.NotFound, "%s %s: %w", op, name, err).Hint("check the name and tag; the registry has none such")
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errors.Is(err, docker.ErrInvalidAuthorization):
		return fault.New(fault.Denied, "%s %s: %w", op, name, err).Hint("the registry asks for a credential, or for another one")
	case errors.As(err, &dns), errors.As(err, &network):
		return fault.New(fault.Unavailable, "%s %s: %w", op, name, err).
			Hint("the registry cannot be reached; images of this machine are listed by `ferry images`")
	default:
		return asFault(fmt.Errorf("%s %s: %w", op, name, err))
	}
}
