package cli

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

// Exit codes of run and exec for failures that are not the program's own.
const (
	exitEngine    = 125
	exitCannotRun = 126
	exitNoProgram = 127
)

type runOptions struct {
	createFlags
	detach bool
	pull   string

	entrypointSet bool
}

func (e *env) runCommand() *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG…]]",
		Short: "Run a container from an image",
		Example: "  ferry run --rm digits:v1 train --epochs 1\n" +
			"  ferry run -d --name web -p 8080:80 web:v1\n" +
			"  ferry run --rm -it app:v1 sh",
		Args:              atLeast(1, "IMAGE"),
		ValidArgsFunction: e.completeImages(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.entrypointSet = cmd.Flags().Changed("entrypoint")
			return e.runRun(cmd.Context(), opts, args)
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after the image are the program's
	opts.addFlags(cmd)
	cmd.Flags().BoolVarP(&opts.detach, "detach", "d", false, "leave it running and print its ID")
	cmd.Flags().StringVar(&opts.pull, "pull", "missing", "`when` to pull the image: missing, always or never")
	return cmd
}

func (e *env) runRun(ctx context.Context, opts runOptions, args []string) error {
	if opts.tty && opts.stdin && !opts.detach && e.term.InputFile() == nil {
		return codedError{fault.New(fault.Invalid, "-it needs a terminal, and standard input is none").
			Hint("leave out -t; -i alone reads from a pipe"), exitEngine}
	}
	req, err := opts.request(args, opts.entrypointSet, os.LookupEnv)
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"missing", "always", "never"}, opts.pull) {
		return fault.New(fault.Invalid, "--pull %s is not known", opts.pull).Hint("use missing, always or never")
	}
	if opts.detach {
		req.Config.AttachStdin, req.Config.AttachStdout, req.Config.AttachStderr, req.Config.StdinOnce = false, false, false, false
	}
	if opts.tty {
		if size, ok := e.terminalSize(); ok {
			req.HostConfig.ConsoleSize = [2]uint{size.Height, size.Width}
		}
	}
	err = e.withDocker(func(c *client.Client) error {
		id, err := e.create(ctx, c, req, opts.pull)
		if err != nil {
			return err
		}
		if opts.detach {
			if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
				return err
			}
			e.term.Printf("%s\n", id)
			return nil
		}
		return e.runAttached(ctx, c, id, req)
	})
	return engineError(err)
}

// engineError gives a failure that is not the program's own its exit code.
func engineError(err error) error {
	var exit exitError
	if err == nil || errors.As(err, &exit) || errors.Is(err, context.Canceled) {
		return err
	}
	code := exitEngine
	switch msg := err.Error(); {
	case strings.Contains(msg, "executable file not found"), strings.Contains(msg, "no such file or directory"):
		code = exitNoProgram
	case strings.Contains(msg, "permission denied"), strings.Contains(msg, "is a directory"), strings.Contains(msg, "exec format error"):
		code = exitCannotRun
	}
	return codedError{err, code}
}

// create makes the container, pulling its image if that is wanted.
func (e *env) create(ctx context.Context, c *client.Client, req client.ContainerCreateOptions, pull string) (string, error) {
	if pull == "always" {
		if err := e.pull(ctx, c, req.Config.Image, "", true); err != nil {
			return "", err
		}
	}
	res, err := c.ContainerCreate(ctx, req)
	if missing := e.dockerError(err); pull == "missing" && fault.Is(missing, fault.NotFound) && strings.Contains(missing.Error(), "No such image") {
		e.term.Notef("image %s is not on this machine; pulling it", req.Config.Image)
		if err := e.pull(ctx, c, req.Config.Image, "", true); err != nil {
			return "", err
		}
		res, err = c.ContainerCreate(ctx, req)
	}
	if err != nil {
		return "", err
	}
	for _, w := range res.Warnings {
		e.term.Notef("warning: %s", w)
	}
	return res.ID, nil
}

// runAttached starts the container connected to this terminal and ends with
// its exit code.
func (e *env) runAttached(ctx context.Context, c *client.Client, id string, req client.ContainerCreateOptions) error {
	tty := req.Config.Tty
	conn, err := c.ContainerAttach(ctx, id, client.ContainerAttachOptions{
		Stream: true, Stdin: req.Config.OpenStdin, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	defer conn.Close()
	condition := container.WaitConditionNextExit
	if req.HostConfig.AutoRemove {
		condition = container.WaitConditionRemoved
	}
	wait := c.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: condition})
	streams, err := e.connect(conn.HijackedResponse, tty, req.Config.OpenStdin, defaultLeave)
	if err != nil {
		return err
	}
	defer streams.restore()
	stop := e.proxySignals(tty, func(sig string) {
		// The container may have ended already.
		_, _ = c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: sig})
	}, func(size terminalSize) {
		_, _ = c.ContainerResize(ctx, id, client.ContainerResizeOptions(size))
	})
	defer stop()
	if _, err := c.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		if req.HostConfig.AutoRemove {
			_ = awaitRemoval(wait) // why it could not start says more
		}
		return err
	}
	return e.attachedEnd(id, streams, wait)
}

// awaitRemoval waits until the daemon has removed a container that could not start.
func awaitRemoval(wait client.ContainerWaitResult) error {
	select {
	case <-wait.Result:
		return nil
	case err := <-wait.Error:
		return err
	}
}
