package cli

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// apiVersion is what ferry speaks. It is fixed, for negotiating would cost a
// request, and the daemon is of the same release.
const apiVersion = "1.51"

// docker returns a client of the daemon's Docker API.
func (e *env) docker() (*client.Client, error) {
	cfg, err := e.config()
	if err != nil {
		return nil, err
	}
	return client.New(client.WithHost("unix://"+cfg.DockerSocket()), client.WithAPIVersion(apiVersion),
		client.WithUserAgent("ferry/"+Version))
}

// withDocker runs f with a client and gives its error a kind and a hint.
func (e *env) withDocker(f func(c *client.Client) error) error {
	c, err := e.docker()
	if err != nil {
		return err
	}
	defer c.Close()
	return e.dockerError(f(c))
}

// dockerError turns an error of the client library into one of ours.
func (e *env) dockerError(err error) error {
	var exit exitError
	switch {
	case err == nil, errors.As(err, &exit), errors.As(err, new(*fault.Error)), errors.Is(err, context.Canceled):
		return err
	case client.IsErrConnectionFailed(err), errors.Is(err, syscall.ECONNREFUSED):
		return e.notRunning()
	}
	text, hint, _ := strings.Cut(strings.Replace(err.Error(), "Error response from daemon: ", "", 1), "\nhint: ")
	out := fault.New(kindOf(err), "%s", text)
	if hint != "" {
		return out.Hint("%s", hint)
	}
	return out
}

// notRunning says why the daemon cannot be reached.
func (e *env) notRunning() error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if errors.Is(unix.Access(cfg.DockerSocket(), unix.W_OK), os.ErrPermission) {
		return fault.New(fault.Denied, "no permission to use Ferry's socket %s", cfg.DockerSocket()).Hint("run the command as root: sudo ferry …")
	}
	return fault.New(fault.Unavailable, "Ferry is not running").Hint("start it with `ferry up`")
}

func kindOf(err error) fault.Kind {
	// One that comes in a stream, whose answer had begun, brings its status along.
	if streamed := new(jsonstream.Error); errors.As(err, &streamed) && streamed.Code != 0 {
		err = errhttp.ToNative(streamed.Code)
	}
	switch {
	case errdefs.IsNotFound(err):
		return fault.NotFound
	case errdefs.IsConflict(err):
		return fault.Conflict
	case errdefs.IsInvalidArgument(err):
		return fault.Invalid
	case errdefs.IsPermissionDenied(err), errdefs.IsUnauthorized(err):
		return fault.Denied
	case errdefs.IsUnavailable(err):
		return fault.Unavailable
	case errdefs.IsNotImplemented(err):
		return fault.Unsupported
	}
	return fault.Internal
}

// each runs f for every name and goes on past errors; it returns the first
// kind and all messages.
func (e *env) each(names []string, f func(name string) error) error {
	var errs []error
	for _, name := range names {
		if err := e.dockerError(f(name)); err != nil {
			errs = append(errs, err)
			if fault.Is(err, fault.Unavailable) || errors.Is(err, context.Canceled) {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// completeContainers offers the names of containers to the shell.
func (e *env) completeContainers(all bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		err := e.withDocker(func(c *client.Client) error {
			list, err := c.ContainerList(cmd.Context(), client.ContainerListOptions{All: all})
			for _, item := range list.Items {
				names = append(names, containerName(item.Names, item.ID))
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeImages offers the names of images for the first argument, or for all.
func (e *env) completeImages(all bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !all {
			return nil, cobra.ShellCompDirectiveDefault
		}
		var names []string
		err := e.withDocker(func(c *client.Client) error {
			list, err := c.ImageList(cmd.Context(), client.ImageListOptions{})
			for _, item := range list.Items {
				names = append(names, item.RepoTags...)
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func containerName(names []string, id string) string {
	if len(names) > 0 {
		return strings.TrimPrefix(names[0], "/")
	}
	return shortID(id)
}

// shortID is the beginning of an ID as tables show it.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}
