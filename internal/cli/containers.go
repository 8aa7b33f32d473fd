package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

func (e *env) psCommand() *cobra.Command {
	var opts struct {
		all, quiet bool
		output     outputFlag
	}
	cmd := &cobra.Command{
		Use: "ps", Short: "List containers", Args: noArgs,
		Example: "  ferry ps\n  ferry ps -a -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				list, err := c.ContainerList(ctx, client.ContainerListOptions{All: opts.all})
				if err != nil {
					return err
				}
				return opts.output.show(e.term, list.Items, func() error {
					var rows [][]string
					for _, item := range list.Items {
						if opts.quiet {
							rows = append(rows, []string{shortID(item.ID)})
							continue
						}
						rows = append(rows, []string{shortID(item.ID), containerName(item.Names, item.ID), item.Image, item.Command, item.Status})
					}
					if opts.quiet {
						return e.term.Rows(nil, rows)
					}
					return e.term.Rows([]string{"ID", "NAME", "IMAGE", "COMMAND", "STATUS"}, rows)
				})
			})
		}),
	}
	cmd.Flags().BoolVarP(&opts.all, "all", "a", false, "stopped containers too")
	cmd.Flags().BoolVarP(&opts.quiet, "quiet", "q", false, "IDs alone")
	opts.output.addFlags(cmd)
	return cmd
}

// onContainers is a command that does one thing to each container named.
func (e *env) onContainers(use, short, example string, f func(ctx context.Context, c *client.Client, name string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " CONTAINER…", Short: short, Example: example, Args: atLeast(1, "CONTAINER"),
		ValidArgsFunction: e.completeContainers(true),
		RunE: interruptible(func(ctx context.Context, names []string) error {
			return e.withDocker(func(c *client.Client) error {
				return e.each(names, func(name string) error {
					if err := f(ctx, c, name); err != nil {
						return err
					}
					e.term.Printf("%s\n", name)
					return nil
				})
			})
		}),
	}
}

func (e *env) startCommand() *cobra.Command {
	return e.onContainers("start", "Start stopped containers", "  ferry start web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerStart(ctx, name, client.ContainerStartOptions{})
			return err
		})
}

func (e *env) stopCommand() *cobra.Command {
	var grace stopTime
	cmd := e.onContainers("stop", "Stop running containers", "  ferry stop -t 2 web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerStop(ctx, name, client.ContainerStopOptions{Timeout: grace.seconds})
			return err
		})
	grace.addFlag(cmd)
	return cmd
}

func (e *env) restartCommand() *cobra.Command {
	var grace stopTime
	cmd := e.onContainers("restart", "Stop and start containers", "  ferry restart web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerRestart(ctx, name, client.ContainerRestartOptions{Timeout: grace.seconds})
			return err
		})
	grace.addFlag(cmd)
	return cmd
}

// hideDefault keeps a default that only says "not given" out of the help text.
func hideDefault(cmd *cobra.Command, flag string) { cmd.Flags().Lookup(flag).DefValue = "0" }

// stopTime is a flag; without it the container's own time holds.
type stopTime struct{ seconds *int }

func (s *stopTime) addFlag(cmd *cobra.Command) {
	cmd.Flags().VarP(s, "time", "t", "`seconds` to wait before killing; -1 waits for ever; without it the container's own time, or 10")
}

func (s *stopTime) Type() string { return "int" }

func (s *stopTime) String() string {
	if s.seconds == nil {
		return ""
	}
	return strconv.Itoa(*s.seconds)
}

func (s *stopTime) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < -1 {
		return errors.New("not a number of seconds")
	}
	seconds := int(n)
	s.seconds = &seconds
	return nil
}

func (e *env) killCommand() *cobra.Command {
	var signal string
	cmd := e.onContainers("kill", "Send a signal to containers", "  ferry kill web\n  ferry kill -s HUP web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerKill(ctx, name, client.ContainerKillOptions{Signal: signal})
			return err
		})
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "`signal`, by name or number")
	return cmd
}

func (e *env) rmCommand() *cobra.Command {
	var force, volumes bool
	cmd := e.onContainers("rm", "Remove containers", "  ferry rm web\n  ferry rm -fv web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: force, RemoveVolumes: volumes})
			return err
		})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "running ones too, killing them")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "with their anonymous volumes")
	return cmd
}

func (e *env) inspectCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "inspect CONTAINER|IMAGE", Short: "Show everything about a container or an image", Args: exactly(1, "CONTAINER or IMAGE"),
		Example: "  ferry inspect web\n  ferry inspect -o yaml digits:v1",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				show := func(v any) error {
					return output.show(e.term, v, func() error { return e.term.Value(term.JSON, v) })
				}
				res, err := c.ContainerInspect(ctx, args[0], client.ContainerInspectOptions{})
				if err == nil {
					return show(res.Container)
				}
				if !errdefs.IsNotFound(err) {
					return err
				}
				img, err := c.ImageInspect(ctx, args[0])
				if errdefs.IsNotFound(err) {
					return fault.New(fault.NotFound, "no container and no image is called %s", args[0]).Hint("see `ferry ps -a` and `ferry images`")
				}
				if err != nil {
					return err
				}
				return show(img.InspectResponse)
			})
		}),
	}
	output.addFormats(cmd, "output `format`: json or yaml", "json", "yaml")
	return cmd
}

func (e *env) execCommand() *cobra.Command {
	var opts client.ExecCreateOptions
	var stdin bool
	var env []string
	cmd := &cobra.Command{
		Use: "exec [flags] CONTAINER COMMAND [ARG…]", Short: "Run a command in a running container",
		Example:           "  ferry exec web ls /data\n  ferry exec -it web sh",
		Args:              atLeast(2, "CONTAINER or COMMAND"),
		ValidArgsFunction: e.completeContainers(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Cmd, opts.AttachStdin, opts.AttachStdout, opts.AttachStderr = args[1:], stdin, true, true
			var err error
			if opts.Env, err = environment(env, os.LookupEnv); err != nil {
				return err
			}
			return engineError(e.withDocker(func(c *client.Client) error { return e.runExec(cmd.Context(), c, args[0], opts) }))
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "interactive", "i", false, "connect standard input")
	cmd.Flags().BoolVarP(&opts.TTY, "tty", "t", false, "give the command a terminal")
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set `KEY=VALUE` in the environment; KEY alone takes the value from here")
	cmd.Flags().StringVarP(&opts.User, "user", "u", "", "run as `USER[:GROUP]`")
	cmd.Flags().StringVarP(&opts.WorkingDir, "workdir", "w", "", "working `directory`")
	cmd.Flags().BoolVar(&opts.Privileged, "privileged", false, "all capabilities")
	return cmd
}

func (e *env) runExec(ctx context.Context, c *client.Client, name string, opts client.ExecCreateOptions) error {
	attach := client.ExecAttachOptions{TTY: opts.TTY}
	if size, ok := e.terminalSize(); ok && opts.TTY {
		opts.ConsoleSize, attach.ConsoleSize = size, size
	}
	created, err := c.ExecCreate(ctx, name, opts)
	if err != nil {
		return err
	}
	conn, err := c.ExecAttach(ctx, created.ID, attach)
	if err != nil {
		return err
	}
	defer conn.Close()
	streams, err := e.connect(conn.HijackedResponse, opts.TTY, opts.AttachStdin, defaultLeave)
	if err != nil {
		return err
	}
	defer streams.restore()
	if opts.TTY {
		stop := e.proxySignals(true, func(string) {}, func(size terminalSize) {
			_, _ = c.ExecResize(ctx, created.ID, client.ExecResizeOptions(size)) // the process may have ended already
		})
		defer stop()
	}
	if err := streams.wait(); err != nil {
		return err
	}
	res, err := c.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	if err != nil {
		return err
	}
	if res.ExitCode != 0 {
		return exitError{res.ExitCode}
	}
	return nil
}

// age is a time as tables show it.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case t.IsZero() || t.Unix() <= 0:
		return "-"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return strings.TrimSpace(fmt.Sprintf("%dd", int(d.Hours()/24)))
}
