package cli

import (
	"context"
	"strconv"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func (e *env) systemCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "system", Short: "See and free the disk that Ferry uses", Args: noArgs, Example: "  ferry system df\n  ferry system prune"}
	cmd.AddCommand(e.systemDFCommand(), e.systemPruneCommand())
	return cmd
}

func (e *env) systemDFCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "df", Short: "Show what images, containers, volumes and the build cache take", Args: noArgs, Example: "  ferry system df\n  ferry system df -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				df, err := c.DiskUsage(ctx, client.DiskUsageOptions{})
				if err != nil {
					return err
				}
				return output.show(e.term, df, func() error {
					row := func(kind string, total, active, size, reclaimable int64) []string {
						return []string{kind, strconv.FormatInt(total, 10), strconv.FormatInt(active, 10), units.HumanSize(float64(size)), units.HumanSize(float64(reclaimable))}
					}
					return e.term.Rows([]string{"KIND", "TOTAL", "IN USE", "SIZE", "RECLAIMABLE"}, [][]string{
						row("images", df.Images.TotalCount, df.Images.ActiveCount, df.Images.TotalSize, df.Images.Reclaimable),
						row("containers", df.Containers.TotalCount, df.Containers.ActiveCount, df.Containers.TotalSize, df.Containers.Reclaimable),
						row("volumes", df.Volumes.TotalCount, df.Volumes.ActiveCount, df.Volumes.TotalSize, df.Volumes.Reclaimable),
						row("build cache", df.BuildCache.TotalCount, df.BuildCache.ActiveCount, df.BuildCache.TotalSize, df.BuildCache.Reclaimable),
					})
				})
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) systemPruneCommand() *cobra.Command {
	var all, volumes bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what is not in use", Args: noArgs, Example: "  ferry system prune\n  ferry system prune -a --volumes",
		Long: "Removes stopped containers and nameless images; with -a every image that no container uses,\nwith --volumes anonymous volumes that no container has.",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error { return e.prune(ctx, c, all, volumes) })
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "every image that no container uses")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "anonymous volumes that no container has")
	return cmd
}

func (e *env) prune(ctx context.Context, c *client.Client, all, volumes bool) error {
	containers, err := c.ContainerPrune(ctx, client.ContainerPruneOptions{})
	if err != nil {
		return err
	}
	for _, id := range containers.Report.ContainersDeleted {
		e.term.Printf("container %s\n", shortID(id))
	}
	total := containers.Report.SpaceReclaimed
	if volumes {
		size, err := e.pruneVolumes(ctx, c, false)
		if err != nil {
			return err
		}
		total += size
	}
	var opts client.ImagePruneOptions
	if all {
		opts.Filters = client.Filters{}.Add("dangling", "false")
	}
	images, err := c.ImagePrune(ctx, opts)
	if err != nil {
		return err
	}
	for _, item := range images.Report.ImagesDeleted {
		if item.Untagged != "" {
			e.term.Printf("image %s\n", item.Untagged)
		}
	}
	e.term.Notef("%s reclaimed", units.HumanSize(float64(total+images.Report.SpaceReclaimed)))
	return nil
}
