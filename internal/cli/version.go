package cli

import (
	"context"
	"runtime"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

type versionOptions struct {
	output outputFlag
}

type versions struct {
	Client clientVersion  `json:"client"`
	Server *serverVersion `json:"server,omitempty"`
}

type clientVersion struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

type serverVersion struct {
	Version    string `json:"version"`
	APIVersion string `json:"apiVersion"`
	Kernel     string `json:"kernel"`
}

func (e *env) versionCommand() *cobra.Command {
	var opts versionOptions
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of ferry and of the daemon",
		Example: "  ferry version\n  ferry version -o json",
		Args:    noArgs,
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.runVersion(ctx, opts)
		}),
	}
	opts.output.addFlags(cmd)
	return cmd
}

// runVersion shows the daemon's version too if it runs; that it does not is no error here.
func (e *env) runVersion(ctx context.Context, opts versionOptions) error {
	v := versions{Client: clientVersion{Version: Version, Go: runtime.Version(), Arch: runtime.GOOS + "/" + runtime.GOARCH}}
	err := e.withDocker(func(c *client.Client) error {
		s, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
		if err == nil {
			v.Server = &serverVersion{Version: s.Version, APIVersion: s.APIVersion}
			for _, part := range s.Components {
				v.Server.Kernel = part.Details["KernelVersion"]
			}
		}
		return err
	})
	if err != nil && !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Denied) {
		return err
	}
	return opts.output.show(e.term, v, func() error {
		rows := [][]string{{"ferry", v.Client.Version + " (" + v.Client.Go + ", " + v.Client.Arch + ")"}}
		if v.Server != nil {
			rows = append(rows, []string{"ferryd", v.Server.Version + " (Docker API " + v.Server.APIVersion + ", kernel " + v.Server.Kernel + ")"})
		} else {
			rows = append(rows, []string{"ferryd", "not running"})
		}
		return e.term.Rows(nil, rows)
	})
}
