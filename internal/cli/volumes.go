package cli

import (
	"context"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

func (e *env) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Manage volumes: directories that outlive containers", Args: noArgs,
		Example: "  ferry volume create data\n  ferry run --rm -v data:/data app:v1"}
	cmd.AddCommand(e.volumeListCommand(), e.volumeCreateCommand(), e.volumeRemoveCommand(), e.volumeInspectCommand(), e.volumePruneCommand())
	return cmd
}

// completeVolumes offers the names of volumes to the shell.
func (e *env) completeVolumes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	err := e.withDocker(func(c *client.Client) error {
		list, err := c.VolumeList(cmd.Context(), client.VolumeListOptions{})
		for _, v := range list.Items {
			names = append(names, v.Name)
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (e *env) volumeListCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "ls", Short: "List volumes", Args: noArgs, Example: "  ferry volume ls\n  ferry volume ls -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				list, err := c.VolumeList(ctx, client.VolumeListOptions{})
				if err != nil {
					return err
				}
				return output.show(e.term, list.Items, func() error {
					var rows [][]string
					for _, v := range list.Items {
						rows = append(rows, []string{v.Name, v.CreatedAt, v.Mountpoint})
					}
					return e.term.Rows([]string{"NAME", "CREATED", "PATH"}, rows)
				})
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) volumeCreateCommand() *cobra.Command {
	var labels, options []string
	cmd := &cobra.Command{
		Use: "create [NAME]", Short: "Make a volume",
		Example: "  ferry volume create data\n  ferry volume create --opt type=none --opt o=bind --opt device=/srv/data data",
		Args:    atLeast(0, ""),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if len(args) > 1 {
				return fault.New(fault.Invalid, "volume create: unexpected argument %q", args[1])
			}
			opts := client.VolumeCreateOptions{Name: strings.Join(args, "")}
			var err error
			if opts.Labels, err = pairs("label", labels, noValue); err != nil {
				return err
			}
			if opts.DriverOpts, err = pairs("opt", options, noValue); err != nil {
				return err
			}
			return e.withDocker(func(c *client.Client) error {
				res, err := c.VolumeCreate(ctx, opts)
				if err == nil {
					e.term.Printf("%s\n", res.Volume.Name)
				}
				return err
			})
		}),
	}
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "set a `KEY=VALUE` label")
	cmd.Flags().StringArrayVar(&options, "opt", nil, "set `KEY=VALUE` of type, o and device: what the volume is made of")
	return cmd
}

// noValue is the value of a label or an option given without one.
func noValue(string) string { return "" }

func (e *env) volumeRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm VOLUME…", Short: "Remove volumes and what is in them", Example: "  ferry volume rm data",
		Args: atLeast(1, "VOLUME"), ValidArgsFunction: e.completeVolumes,
		RunE: interruptible(func(ctx context.Context, names []string) error {
			return e.withDocker(func(c *client.Client) error {
				return e.each(names, func(name string) error {
					if _, err := c.VolumeRemove(ctx, name, client.VolumeRemoveOptions{}); err != nil {
						return err
					}
					e.term.Printf("%s\n", name)
					return nil
				})
			})
		}),
	}
}

func (e *env) volumeInspectCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "inspect VOLUME…", Short: "Show everything about volumes", Example: "  ferry volume inspect data",
		Args: atLeast(1, "VOLUME"), ValidArgsFunction: e.completeVolumes,
		RunE: interruptible(func(ctx context.Context, names []string) error {
			return e.withDocker(func(c *client.Client) error {
				var list []volume.Volume
				for _, name := range names {
					res, err := c.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
					if err != nil {
						return err
					}
					list = append(list, res.Volume)
				}
				return output.show(e.term, list, func() error { return e.term.Value("json", list) })
			})
		}),
	}
	output.addFormats(cmd, "output `format`: json or yaml", "json", "yaml")
	return cmd
}

func (e *env) volumePruneCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the volumes that no container has", Args: noArgs, Example: "  ferry volume prune\n  ferry volume prune -a",
		Long: "Removes anonymous volumes that no container has; with -a, named ones too.",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				_, err := e.pruneVolumes(ctx, c, all)
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "named volumes too")
	return cmd
}

// pruneVolumes removes unused volumes, prints them and returns the space they had.
func (e *env) pruneVolumes(ctx context.Context, c *client.Client, all bool) (uint64, error) {
	res, err := c.VolumePrune(ctx, client.VolumePruneOptions{All: all})
	if err != nil {
		return 0, err
	}
	for _, name := range res.Report.VolumesDeleted {
		e.term.Printf("volume %s\n", name)
	}
	e.term.Notef("volumes: %s reclaimed", units.HumanSize(float64(res.Report.SpaceReclaimed)))
	return res.Report.SpaceReclaimed, nil
}
