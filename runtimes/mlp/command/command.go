// Package command is the command line of the mlp runtime.
//
// Only its main imports it. Each file is one command: flags, then the work of
// the packages beside it.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitStopped = 143 // by SIGTERM or SIGINT, as a shell would report it
)

type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// Main runs the command line and returns its exit code. An error is printed to
// errs with its next step.
func Main(ctx context.Context, args []string, out, errs io.Writer) int {
	root := &cobra.Command{
		Use:           "mlp",
		Short:         "Train, publish and serve feed-forward networks",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(dataCommand(), trainCommand(), evalCommand(), predictCommand(), serveCommand(), pushCommand())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{hint.Wrap(err, "See '"+c.CommandPath()+" --help'.")}
	})
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(errs, "mlp: %v\n", err)
	if next := hint.Of(err); next != "" {
		fmt.Fprintf(errs, "hint: %s\n", next)
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if errors.Is(err, context.Canceled) {
		return exitStopped
	}
	return exitFailed
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{hint.Errorf("See '"+c.CommandPath()+" --help'.", "unexpected argument %q", args[0])}
	}
	return nil
}
