// Package cli is the ferry command: one file a command, all of them plain
// clients of the Docker Engine API and the Kubernetes API.
//
// Only cmd/ferry and cmd/ferry-build import it, and the size and the start time
// of the first depend on what it imports: no containerd, no BuildKit, no k8s.io/api. It does not import
// the engine or the platform's parts; what another client of the two APIs could
// not do, it cannot either. The exceptions are the commands about the daemon
// itself: up, down, status and doctor.
package cli

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

// Version is Ferry's version, set when the program is linked.
var Version = "dev"

// exitInterrupted is a shell's exit code for a program ended by SIGINT.
const exitInterrupted = 130

// garbagePercent is how much the heap grows before it is collected. Most
// commands have ended before they get there.
const garbagePercent = 400

// exitError ends the program with a container's exit code and no message.
type exitError struct{ code int }

func (e exitError) Error() string { return "" }

// env is what the commands work with.
type env struct {
	term   *term.Terminal
	getenv func(string) string
	args   []string // after the program's name
	// config reads the configuration once.
	config func() (config.Config, error)
}

// Main runs the ferry command with the arguments after the program's name and
// returns its exit code.
func Main(ctx context.Context, args []string, in io.Reader, out, errs io.Writer, getenv func(string) string) int {
	e := &env{term: term.New(in, out, errs, getenv), getenv: getenv, args: args, config: sync.OnceValues(config.Load)}
	debug.SetGCPercent(garbagePercent)
	root := e.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	cmd, err := root.ExecuteContextC(ctx)
	var exit exitError
	switch {
	case err == nil:
		return fault.ExitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	e.term.Fail(formatOf(cmd), err)
	if code, ok := errors.AsType[codedError](err); ok {
		return code.exit
	}
	return fault.ExitCode(err)
}

// codedError is an error whose exit code is not that of its kind.
type codedError struct {
	error
	exit int
}

func (e codedError) Unwrap() error { return e.error }

// formatOf is the output format that was asked for, so that the error comes in
// the same one.
func formatOf(cmd *cobra.Command) term.Format {
	// Other commands have an --output too: a file.
	if f := cmd.Flags().Lookup("output"); f != nil && f.Changed && f.Annotations[formatFlag] != nil {
		return term.Format(f.Value.String())
	}
	return term.Table
}

func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "ferry",
		Short: "Build, run, train and serve AI applications on one machine",
		Long: "Ferry builds AI applications into images, runs them isolated, trains models and serves them,\n" +
			"on one machine with nothing else installed. It speaks the Docker and the Kubernetes API:\n" +
			"docker and kubectl work with it as they are.",
		Example: "  ferry up                       start the platform\n" +
			"  ferry build -t app:v1 .        build an image from a Dockerfile\n" +
			"  ferry run --rm app:v1          run it\n" +
			"  kubectl --context ferry apply -f app.yaml",
		SilenceErrors: true,
		SilenceUsage:  true,

		SuggestionsMinimumDistance: 2,

		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			err := fault.New(fault.Invalid, "unknown command %q", args[0])
			if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
				return err.Hint("did you mean `ferry %s`? `ferry --help` lists the commands", like[0])
			}
			return err.Hint("`ferry --help` lists the commands")
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fault.New(fault.Invalid, "%w", err).Hint("`%s --help` lists the flags", cmd.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "node", Title: "The platform:"}, &cobra.Group{ID: "container", Title: "Containers:"},
		&cobra.Group{ID: "image", Title: "Images:"})
	e.addGroup(root, "node", e.upCommand(), e.downCommand(), e.statusCommand(), e.doctorCommand(), e.systemCommand(), e.versionCommand())
	e.addGroup(root, "container", e.runCommand(), e.psCommand(), e.logsCommand(), e.execCommand(), e.attachCommand(),
		e.startCommand(), e.stopCommand(), e.restartCommand(), e.killCommand(), e.rmCommand(), e.inspectCommand(),
		e.pauseCommand(), e.unpauseCommand(), e.renameCommand(), e.updateCommand(), e.waitCommand(), e.topCommand(), e.portCommand(),
		e.cpCommand(), e.diffCommand(), e.exportCommand(), e.commitCommand(), e.volumeCommand(), e.networkCommand(), e.eventsCommand(), e.statsCommand())
	e.addGroup(root, "image", e.buildCommand(), e.imageCommand(), e.imagesCommand(), e.tagCommand(), e.rmiCommand(),
		e.pullCommand(), e.pushCommand(), e.loadCommand(), e.saveCommand(), e.importCommand())
	root.AddCommand(helpTopics()...)
	return root
}

func (e *env) addGroup(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// interruptible gives f a context that ends at Ctrl-C and SIGTERM.
func interruptible(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return f(ctx, args)
	}
}

// atLeast and exactly check the number of arguments, naming them in the error.
func atLeast(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return usageError(cmd, "%s: %s missing", cmd.CommandPath(), what)
	}
}

func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < n:
			return usageError(cmd, "%s: %s missing", cmd.CommandPath(), what)
		case len(args) > n:
			return usageError(cmd, "%s: unexpected argument %q", cmd.CommandPath(), args[n])
		}
		return nil
	}
}

func noArgs(cmd *cobra.Command, args []string) error { return exactly(0, "")(cmd, args) }

func usageError(cmd *cobra.Command, format string, args ...any) error {
	return fault.New(fault.Invalid, format, args...).Hint("usage: %s", strings.TrimSpace(cmd.UseLine()))
}

// formatFlag annotates the -o of an outputFlag.
const formatFlag = "ferry-format"

// outputFlag is the -o of commands that read.
type outputFlag struct{ format string }

// addFlags adds -o to a command.
func (o *outputFlag) addFlags(cmd *cobra.Command) {
	o.addFormats(cmd, "output `format`: table, json or yaml", "table", "json", "yaml")
}

// addFormats adds -o with these formats, of which the first is the default.
func (o *outputFlag) addFormats(cmd *cobra.Command, usage string, formats ...string) {
	cmd.Flags().StringVarP(&o.format, "output", "o", formats[0], usage)
	_ = cmd.Flags().SetAnnotation("output", formatFlag, formats)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// show prints v as JSON or YAML, or calls table.
func (o *outputFlag) show(t *term.Terminal, v any, table func() error) error {
	format, err := term.ParseFormat(o.format)
	if err != nil {
		return err
	}
	if format == term.Table {
		return table()
	}
	return t.Value(format, v)
}
