package cli

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	keys "github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

type attachOptions struct {
	noStdin, sigProxy bool
	detachKeys        string
}

func (e *env) attachCommand() *cobra.Command {
	var opts attachOptions
	cmd := &cobra.Command{
		Use: "attach [flags] CONTAINER", Short: "Connect the terminal to a running container", Args: exactly(1, "CONTAINER"),
		Long: "Attach connects standard input, output and error to those of a container's program, and ends with\n" +
			"its exit code. A program with a terminal is left with the detach keys, and runs on.",
		Example:           "  ferry attach web\n  ferry attach --no-stdin --sig-proxy=false web",
		ValidArgsFunction: e.completeContainers(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withDocker(func(c *client.Client) error { return e.runAttach(cmd.Context(), c, args[0], opts) })
		},
	}
	cmd.Flags().BoolVar(&opts.noStdin, "no-stdin", false, "do not connect standard input")
	cmd.Flags().BoolVar(&opts.sigProxy, "sig-proxy", true, "pass signals on to a program without a terminal")
	cmd.Flags().StringVar(&opts.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "`keys` that leave a program with a terminal")
	return cmd
}

func (e *env) runAttach(ctx context.Context, c *client.Client, name string, opts attachOptions) error {
	res, err := c.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	id, tty, stdin := res.Container.ID, res.Container.Config.Tty, res.Container.Config.OpenStdin && !opts.noStdin
	if err := attachable(name, res.Container.State); err != nil {
		return err
	}
	if tty && stdin && e.term.InputFile() == nil {
		return fault.New(fault.Invalid, "%s has a terminal, and standard input is none", name).Hint("--no-stdin shows its output alone")
	}
	leave, err := keys.ToBytes(opts.detachKeys)
	if err != nil {
		return fault.New(fault.Invalid, "--detach-keys %s: %w", opts.detachKeys, err).Hint("write keys as a or ctrl-a, divided by commas")
	}
	wait := c.ContainerWait(ctx, id, client.ContainerWaitOptions{})
	conn, err := c.ContainerAttach(ctx, id, client.ContainerAttachOptions{
		Stream: true, Stdin: stdin, Stdout: true, Stderr: true, DetachKeys: opts.detachKeys})
	if err != nil {
		return err
	}
	defer conn.Close()
	resize := func(size terminalSize) {
		_, _ = c.ContainerResize(ctx, id, client.ContainerResizeOptions(size)) // it may have ended already
	}
	if size, ok := e.terminalSize(); ok && tty {
		resize(terminalSize{Height: size.Height + 1, Width: size.Width + 1}) // a change has the program draw its screen again
		resize(size)
	}
	streams, err := e.connect(conn.HijackedResponse, tty, stdin, leave)
	if err != nil {
		return err
	}
	defer streams.restore()
	var send func(sig string)
	if opts.sigProxy && !tty {
		send = func(sig string) { _, _ = c.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: sig}) }
	}
	defer e.proxySignals(tty, send, resize)()
	return e.attachedEnd(id, streams, wait)
}

// attachable refuses a container that has no program to attach to.
func attachable(name string, state *container.State) error {
	switch {
	case state.Paused:
		return fault.New(fault.Conflict, "cannot attach to a paused container, unpause it first").Hint("`ferry unpause %s`", name)
	case state.Restarting:
		return fault.New(fault.Conflict, "cannot attach to a restarting container, wait until it is running")
	case !state.Running:
		return fault.New(fault.Conflict, "cannot attach to a stopped container, start it first").Hint("`ferry start %s`", name)
	}
	return nil
}

// attachedEnd waits for the end of a program and its output and returns its exit
// code, or nil if it was left.
func (e *env) attachedEnd(id string, streams *streams, wait client.ContainerWaitResult) error {
	if err := streams.wait(); err != nil {
		return err
	}
	if streams.left.Load() {
		e.term.Notef("\nleft container %s running", shortID(id))
		return nil
	}
	select {
	case res := <-wait.Result:
		if res.Error != nil {
			return fmt.Errorf("wait for container %s: %s", shortID(id), res.Error.Message)
		}
		if res.StatusCode != 0 {
			return exitError{int(res.StatusCode)}
		}
		return nil
	case err := <-wait.Error:
		return err
	}
}

// defaultLeave are the keys that leave a program with a terminal: ctrl-p, ctrl-q.
var defaultLeave = []byte{16, 17}

// leaving passes keys on and notes when those come by that the daemon takes for
// leaving: to it the end of the connection looks like that of the program.
type leaving struct {
	io.Reader
	keys []byte
	at   int // how many of them have come
	left *atomic.Bool
}

func (l *leaving) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	for _, key := range p[:n] {
		if key != l.keys[l.at] {
			l.at = 0 // this one is the first of nothing, as for the daemon
			continue
		}
		if l.at++; l.at == len(l.keys) {
			l.left.Store(true)
			l.at = 0
		}
	}
	return n, err
}
