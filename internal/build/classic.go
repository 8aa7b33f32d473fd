package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/moby/api/types/registry"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/ferryos/ferry/internal/build/contextkey"
	"github.com/ferryos/ferry/internal/fault"
)

// ServeBuild answers Docker's POST /build, by which clients without BuildKit's
// protocol build: it builds what the request asks for and tells how it goes as
// a stream of JSON messages. The build ends with the request.
func (b *Builder) ServeBuild(w http.ResponseWriter, req *http.Request) error {
	r, err := parseRequest(req.URL.Query(), req.Header, b.opt.Gateway.String())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	if r.id != "" {
		forget, err := b.running.add(r.id, cancel)
		if err != nil {
			return err
		}
		defer forget()
	}
	var files *tarContext
	if r.remote == "" {
		if files, err = newTarContext(req.Body); err != nil {
			return err
		}
		defer files.Close()
		if !files.has(r.dockerfile) {
			return fault.New(fault.Invalid, "Cannot locate specified Dockerfile: %s", r.dockerfile).Hint("it must be in the build context")
		}
	}
	r.key = contentKey(req.URL.Query(), r, files)
	if was, ok := b.past.find(ctx, r.key, r.tags); ok && (was.steps != nil || r.quiet) {
		return repeat(w, r, was)
	}
	var out progress = newTextProgress(w, r.quiet)
	if r.traces {
		out = newTraceProgress(w)
	}
	id, err := b.solve(ctx, r, files, out)
	if err == nil {
		if text, ok := out.(*textProgress); ok {
			b.past.showed(r.key, text.steps)
		}
		return out.built(id, r.tags)
	}
	if cause := context.Cause(ctx); cause != nil && req.Context().Err() == nil {
		err = cause // cancelled by its ID
	}
	return out.failed(err)
}

// contentKey is the key of a build whose files came with the request: a digest of
// them and of all that the request says, but for its names. It is "" if the
// build needs something else, or is meant to be made anew.
func contentKey(q url.Values, r *request, files *tarContext) string {
	if files == nil || r.session != "" || r.traces || isTrue(q.Get("nocache")) || isTrue(q.Get("pull")) || q.Get("outputs") != "" {
		return ""
	}
	q.Del("t")
	q.Del("buildid")
	return fmt.Sprintf("%x:%s", sha256.Sum256([]byte(q.Encode())), files.digest)
}

// repeat answers a build of which nothing has changed.
func repeat(w http.ResponseWriter, r *request, was pastBuild) error {
	out := newTextProgress(w, r.quiet)
	for _, step := range was.steps {
		if err := out.send(message{Stream: step + usingCache}); err != nil {
			return err
		}
	}
	return out.built(was.id, r.tags)
}

// CancelBuild ends a build that was given this ID.
func (b *Builder) CancelBuild(id string) error { return b.running.end(id) }

// progress tells a client how its build goes.
type progress interface {
	update(*client.SolveStatus) error
	built(id string, tags []string) error
	// failed tells of the error, or returns it if nothing was told yet.
	failed(error) error
}

// solve builds. It returns the image's ID, "" if none was made.
func (b *Builder) solve(ctx context.Context, r *request, files *tarContext, out progress) (id string, err error) {
	c, k, err := b.client(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	g, gctx := errgroup.WithContext(ctx)
	sessionCtx, endSession := context.WithCancel(gctx)
	own, err := b.ownSession(sessionCtx, r, files)
	if err != nil {
		endSession()
		return "", err
	}
	g.Go(func() error { return own.Run(sessionCtx, k.dialSession) })
	solve := &controlapi.SolveRequest{Ref: identity.NewID(), Session: own.ID(), Frontend: "dockerfile.v0", FrontendAttrs: r.attrs,
		Cache: &r.cache, Entitlements: r.allowed, Internal: true} // no record of it is kept for buildx's history, which costs more than a rebuild
	if r.export != nil {
		solve.Exporters = []*controlapi.Exporter{r.export}
	}
	if r.session != "" {
		solve.Session = r.session
		if files != nil {
			r.attrs["local-sessionid:context"], r.attrs["local-sessionid:dockerfile"] = own.ID(), own.ID()
		}
	}
	g.Go(func() error {
		defer endSession()
		ctx := gctx
		if r.key != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, contextkey.Header, r.key)
		}
		res, err := c.ControlClient().Solve(ctx, solve)
		if err == nil {
			if id = res.ExporterResponse["containerimage.config.digest"]; id == "" {
				id = res.ExporterResponse["containerimage.digest"]
			}
		}
		return err
	})
	g.Go(func() error {
		// Ends by itself, after a failure too, with what led to it.
		status, err := c.ControlClient().Status(context.WithoutCancel(ctx), &controlapi.StatusRequest{Ref: solve.Ref})
		for err == nil {
			var res *controlapi.StatusResponse
			if res, err = status.Recv(); err == nil {
				err = out.update(client.NewSolveStatus(res))
			}
		}
		return nil
	})
	return id, g.Wait()
}

// ownSession is the session in which BuildKit finds what came with the request.
func (b *Builder) ownSession(ctx context.Context, r *request, files *tarContext) (*session.Session, error) {
	// Builds of one archive find what earlier ones have sent, and of no other: BuildKit
	// takes a file of the same size and time for unchanged, and an archive's times are of whole seconds.
	shared := "classic:"
	if files != nil {
		shared += files.digest
	}
	s, err := session.NewSession(ctx, shared)
	if err != nil {
		return nil, err
	}
	if files != nil {
		s.Allow(filesync.NewFSSyncProvider(filesync.StaticDirSource{"context": files, "dockerfile": files}, nil))
	}
	s.Allow(credentials{known: r.auths})
	return s, nil
}

// credentials answers BuildKit's question for what the client knows of a registry.
type credentials struct {
	auth.UnimplementedAuthServer
	known map[string]registry.AuthConfig
}

// Register implements session.Attachable.
func (c credentials) Register(server *grpc.Server) { auth.RegisterAuthServer(server, c) }

// Credentials implements auth.AuthServer. Docker Hub goes by two names.
func (c credentials) Credentials(_ context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	host := req.Host
	if host == "registry-1.docker.io" {
		host = "index.docker.io/v1"
	}
	for name, a := range c.known {
		if strings.Trim(strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://"), "/") != host {
			continue
		}
		if a.IdentityToken != "" {
			return &auth.CredentialsResponse{Secret: a.IdentityToken}, nil
		}
		return &auth.CredentialsResponse{Username: a.Username, Secret: a.Password}, nil
	}
	return &auth.CredentialsResponse{}, nil
}

// stepCommand finds the command in BuildKit's error of a step.
var stepCommand = regexp.MustCompile(`process "((?:[^"\\]|\\.)*)" did not complete successfully`)

// explain makes an error of BuildKit's one of ours, in the words of Docker's
// builder where it has words for it. code is that of a command that failed.
func explain(err error) (code int, explained error) {
	text := err.Error()
	if _, after, ok := strings.Cut(text, "code = Unknown desc = "); ok {
		text = after
	}
	text = strings.TrimPrefix(text, "failed to solve: ")
	if exit, ok := errors.AsType[*gatewayapi.ExitError](err); ok {
		command := "of a step"
		if m := stepCommand.FindStringSubmatch(text); m != nil {
			command = "'" + strings.ReplaceAll(strings.ReplaceAll(m[1], `\"`, `"`), `\\`, `\`) + "'"
		}
		return int(exit.ExitCode), fault.New(fault.Invalid, "The command %s returned a non-zero code: %d", command, exit.ExitCode)
	}
	kind := fault.KindOf(err)
	switch {
	case kind != fault.Internal || errors.Is(err, context.Canceled):
		return 0, err
	case strings.Contains(text, "dockerfile parse error"), strings.Contains(text, "unknown instruction"), strings.Contains(text, "failed to create LLB definition"),
		strings.Contains(text, "target stage"):
		kind = fault.Invalid
	case strings.Contains(text, "failed to resolve source metadata"):
		kind = fault.NotFound
	case strings.Contains(text, "is not allowed"):
		kind = fault.Denied
	case strings.Contains(text, "no space left on device"):
		kind = fault.Unavailable
	}
	return 0, fault.New(kind, "%s", text)
}
