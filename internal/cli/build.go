package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/build/contextkey"
	"github.com/ferryos/ferry/internal/fault"
)

// BuildOptions say what to build. They are those of build/buildclient.
type BuildOptions struct {
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
	Key        string // of the files and settings, for the daemon to remember this build by; may be ""
}

// Build builds an image and returns its ID. It is nil in ferry itself, which
// leaves building to ferry-build beside it, the same program with BuildKit's
// client linked in: only to load that takes as long as all else of a short command.
var Build func(ctx context.Context, opt BuildOptions) (imageID string, err error)

// buildProgram is the name of the program that has Build.
const buildProgram = "ferry-build"

// keyVariable hands the key of a build over to ferry-build.
const keyVariable = "FERRY_BUILD_KEY"

// execBuild has the program with Build take this one's place.
func (e *env) execBuild(libexec, key string) error {
	path := filepath.Join(libexec, buildProgram)
	err := os.Setenv(keyVariable, key)
	if err == nil {
		err = unix.Exec(path, append([]string{path}, e.args...), os.Environ())
	}
	return fault.New(fault.Unavailable, "start %s: %w", path, err).Hint("`ferry doctor` tells what of the installation is missing")
}

// buildKey is the key of a build, "" if it is to be made anyway. Whatever is
// wrong with its files is for Build to tell.
func buildKey(opts BuildOptions) string {
	if opts.NoCache || opts.Pull || opts.Progress == "rawjson" {
		return ""
	}
	settings := fmt.Sprintf("%q", []any{Version, opts.Dockerfile, opts.BuildArgs, opts.Labels, opts.Target}) // maps in the order of their keys
	dockerfile := cmp.Or(opts.Dockerfile, filepath.Join(opts.Context, "Dockerfile"))
	key, err := contextkey.Of(opts.Context, dockerfile, []byte(settings))
	if err != nil {
		return ""
	}
	return key
}

// remembered is what the daemon knows of an earlier build.
type remembered struct {
	ID    string `json:"Id"`
	Built time.Time
}

// unchanged asks the daemon for the image of an earlier build of the same key,
// and to name it. It reports whether there is one.
func unchanged(ctx context.Context, opts BuildOptions) (was remembered, ok bool) {
	if opts.Key == "" {
		return was, false
	}
	var d net.Dialer
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", opts.Socket)
	}}}
	defer c.CloseIdleConnections()
	query := url.Values{"key": {opts.Key}, "t": opts.Tags}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/v"+apiVersion+"/build/unchanged?"+query.Encode(), nil)
	if err != nil {
		return was, false
	}
	res, err := c.Do(req)
	if err != nil {
		return was, false
	}
	defer res.Body.Close()
	return was, res.StatusCode == http.StatusOK && json.NewDecoder(res.Body).Decode(&was) == nil && was.ID != ""
}

// build builds an image, unless nothing has changed since that was done, and returns its ID.
func (e *env) build(ctx context.Context, opts BuildOptions, libexec string) (string, error) {
	if Build != nil {
		opts.Key = e.getenv(keyVariable)
		return Build(ctx, opts)
	}
	opts.Key = buildKey(opts)
	was, ok := unchanged(ctx, opts)
	if !ok {
		return "", e.execBuild(libexec, opts.Key)
	}
	if opts.Progress != "quiet" {
		fmt.Fprintf(opts.Out, "Nothing has changed since this was built %s ago: %s\n", time.Since(was.Built).Round(time.Second), was.ID)
	}
	return was.ID, nil
}

func (e *env) buildCommand() *cobra.Command {
	var opts BuildOptions
	var args, labels []string
	var quiet bool
	var idFile string
	cmd := &cobra.Command{
		Use: "build [flags] DIR", Short: "Build an image from a Dockerfile", Args: exactly(1, "DIR"),
		Example: "  ferry build -t app:v1 .\n  ferry build -t app:dev -f Dockerfile.dev --build-arg DEBUG=1 .",
		RunE: interruptible(func(ctx context.Context, dirs []string) error {
			cfg, err := e.config()
			if err != nil {
				return err
			}
			opts.Socket, opts.Context, opts.Out = cfg.DockerSocket(), dirs[0], e.term.Err
			if quiet {
				opts.Progress = "quiet"
			}
			if opts.BuildArgs, err = pairs("build-arg", args, e.getenv); err != nil {
				return err
			}
			if opts.Labels, err = pairs("label", labels, e.getenv); err != nil {
				return err
			}
			id, err := e.build(ctx, opts, cfg.LibexecDir)
			if err != nil {
				return err
			}
			if idFile != "" {
				if err := os.WriteFile(idFile, []byte(id), 0o644); err != nil {
					return fault.New(fault.Invalid, "--iidfile: %w", err).Hint("the image is built; name a file that can be written")
				}
			}
			if quiet || len(opts.Tags) == 0 {
				e.term.Printf("%s\n", id)
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringArrayVarP(&opts.Tags, "tag", "t", nil, "`name` of the image, as NAME[:TAG]")
	f.StringVarP(&opts.Dockerfile, "file", "f", "", "`path` of the Dockerfile, if it is not DIR/Dockerfile")
	f.StringArrayVar(&args, "build-arg", nil, "set `KEY=VALUE` for an ARG; KEY alone takes the value from here")
	f.StringArrayVar(&labels, "label", nil, "attach `KEY=VALUE`")
	f.StringVar(&opts.Target, "target", "", "stop at this `stage`")
	f.BoolVar(&opts.NoCache, "no-cache", false, "run every step again")
	f.BoolVar(&opts.Pull, "pull", false, "ask registries for newer base images")
	f.StringVar(&opts.Progress, "progress", "auto", "`style` of the progress: auto, plain, tty or rawjson")
	f.StringVar(&idFile, "iidfile", "", "write the image's ID to a `file`")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the image's ID alone")
	return cmd
}

// pairs reads KEY=VALUE flags.
func pairs(flag string, list []string, getenv func(string) string) (map[string]string, error) {
	out := map[string]string{}
	for _, item := range list {
		key, value, given := strings.Cut(item, "=")
		if key == "" {
			return nil, fault.New(fault.Invalid, "--%s %s: no key", flag, item).Hint("write KEY=VALUE")
		}
		if !given {
			value = getenv(key)
		}
		out[key] = value
	}
	return out, nil
}
