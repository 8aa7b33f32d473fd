// Package buildclient builds an image through the daemon's Docker socket, as
// docker's own buildx does: BuildKit's protocol on a connection that is taken
// over from POST /grpc. ferry-build imports it.
package buildclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"github.com/ferryos/ferry/internal/build/contextkey"
	"github.com/ferryos/ferry/internal/fault"
)

// Options say what to build.
type Options struct {
	Socket     string // the daemon's Docker socket
	Context    string // directory
	Dockerfile string // path; "" is Dockerfile in Context
	Tags       []string
	BuildArgs  map[string]string
	Labels     map[string]string
	Target     string
	NoCache    bool
	Pull       bool   // ask registries even for images that are here
	Progress   string // auto, plain, tty, quiet or rawjson
	Out        io.Writer
	// Key tells the files and settings of this build from all others, so that the
	// daemon can remember what it came to; "" has it remember nothing.
	Key string
}

// Result is what was built.
type Result struct {
	ImageID string // digest of the configuration
	Digest  string // digest of the manifest
}

// Build builds an image and shows its progress.
func Build(ctx context.Context, opt Options) (Result, error) {
	dockerfile, err := opt.check()
	if err != nil {
		return Result{}, err
	}
	solve, err := opt.solve(dockerfile)
	if err != nil {
		return Result{}, err
	}
	display, err := progressui.NewDisplay(opt.Out, progressui.DisplayMode(opt.Progress))
	if err != nil {
		return Result{}, fault.New(fault.Invalid, "--progress %s: %w", opt.Progress, err).Hint("use auto, plain, tty, quiet or rawjson")
	}
	c, err := client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, opt.Socket) }))
	if err != nil {
		return Result{}, err
	}
	defer c.Close()
	var res *client.SolveResponse
	status := make(chan *client.SolveStatus)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		ctx := gctx
		if opt.Key != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, contextkey.Header, opt.Key)
		}
		res, err = c.Solve(ctx, nil, solve, status)
		return err
	})
	g.Go(func() error {
		// Goes on after a failure, to show what led to it.
		_, err := display.UpdateFrom(context.WithoutCancel(ctx), status)
		return err
	})
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return Result{}, ctx.Err()
		}
		return Result{}, buildError(err)
	}
	return Result{ImageID: res.ExporterResponse["containerimage.config.digest"], Digest: res.ExporterResponse["containerimage.digest"]}, nil
}

// check looks at what can be seen before the daemon is asked.
func (o *Options) check() (dockerfile string, err error) {
	st, err := os.Stat(o.Context)
	switch {
	case err != nil:
		return "", fault.New(fault.NotFound, "build context: %w", err).Hint("name a directory that holds a Dockerfile")
	case !st.IsDir():
		return "", fault.New(fault.Invalid, "build context %s is no directory", o.Context).Hint("name the directory; the Dockerfile is named with -f")
	}
	dockerfile = o.Dockerfile
	if dockerfile == "" {
		dockerfile = filepath.Join(o.Context, "Dockerfile")
	}
	if _, err := os.Stat(dockerfile); err != nil {
		return "", fault.New(fault.NotFound, "Dockerfile: %w", err).Hint("write one, or name it with -f FILE")
	}
	for _, tag := range o.Tags {
		if _, err := reference.ParseNormalizedNamed(tag); err != nil {
			return "", fault.New(fault.Invalid, "name %q: %w", tag, err).Hint("write it as NAME:TAG in lower case, for example app:v1")
		}
	}
	return dockerfile, nil
}

func (o *Options) solve(dockerfile string) (client.SolveOpt, error) {
	attrs := map[string]string{"filename": filepath.Base(dockerfile)}
	if o.Target != "" {
		attrs["target"] = o.Target
	}
	if o.NoCache {
		attrs["no-cache"] = ""
	}
	// What is on the machine is what is meant, unless a registry is to be asked.
	attrs["image-resolve-mode"] = "local"
	if o.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	for k, v := range o.BuildArgs {
		attrs["build-arg:"+k] = v
	}
	for k, v := range o.Labels {
		attrs["label:"+k] = v
	}
	files, err := fsutil.NewFS(o.Context)
	if err != nil {
		return client.SolveOpt{}, err
	}
	dockerfiles, err := fsutil.NewFS(filepath.Dir(dockerfile))
	if err != nil {
		return client.SolveOpt{}, err
	}
	export := map[string]string{}
	if len(o.Tags) > 0 {
		export["name"] = strings.Join(o.Tags, ",")
	}
	return client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: attrs,
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": dockerfiles},
		Exports:     []client.ExportEntry{{Type: "moby", Attrs: export}},
		Internal:    true, // no record is kept for buildx's history: that costs more than a rebuild
	}, nil
}

// buildError takes gRPC's words off a build's failure.
func buildError(err error) error {
	msg := err.Error()
	for _, prefix := range []string{"failed to solve: ", "rpc error: code = Unknown desc = "} {
		msg = strings.TrimPrefix(msg, prefix)
	}
	e := fault.New(fault.Internal, "build: %s", msg)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case strings.Contains(msg, "dockerfile parse error"), strings.Contains(msg, "unknown instruction"):
		return fault.New(fault.Invalid, "build: %s", msg).Hint("correct the Dockerfile")
	case strings.Contains(msg, "failed to resolve source metadata"):
		return fault.New(fault.Unavailable, "build: %s", msg).
			Hint("the base image is not on this machine (`ferry images`) and its registry does not give it")
	}
	return e
}

// dial opens a connection to the daemon and has it taken over for BuildKit.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "Ferry is not running").Hint("start it with `ferry up`")
	}
	if _, err := io.WriteString(conn, "POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		conn.Close()
		return nil, err
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		conn.Close()
		return nil, fmt.Errorf("the daemon answered %s", res.Status)
	}
	return &buffered{conn, r}, nil
}

// buffered is a connection of which some was read already.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
