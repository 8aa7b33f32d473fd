package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

func (e *env) pauseCommand() *cobra.Command {
	return e.onContainers("pause", "Freeze the processes of containers", "  ferry pause web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerPause(ctx, name, client.ContainerPauseOptions{})
			return err
		})
}

func (e *env) unpauseCommand() *cobra.Command {
	return e.onContainers("unpause", "Let frozen containers go on", "  ferry unpause web",
		func(ctx context.Context, c *client.Client, name string) error {
			_, err := c.ContainerUnpause(ctx, name, client.ContainerUnpauseOptions{})
			return err
		})
}

func (e *env) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Give a container another name", Example: "  ferry rename web web-old", Args: exactly(2, "CONTAINER and NAME"),
		ValidArgsFunction: e.completeContainers(true),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				_, err := c.ContainerRename(ctx, args[0], client.ContainerRenameOptions{NewName: args[1]})
				return err
			})
		}),
	}
}

func (e *env) updateCommand() *cobra.Command {
	var memory, cpus, restart string
	var pids int64
	var cmd *cobra.Command
	cmd = e.onContainers("update", "Change the limits and the restart policy of containers", "  ferry update --memory 1g web\n  ferry update --restart unless-stopped web",
		func(ctx context.Context, c *client.Client, name string) error {
			limits := container.Resources{}
			if err := setLimits(&limits, memory, cpus); err != nil {
				return err
			}
			if memory != "" {
				limits.MemorySwap = 2 * limits.Memory
			}
			if cmd.Flags().Changed("pids-limit") {
				limits.PidsLimit = &pids
			}
			var policy container.RestartPolicy
			if restart != "" {
				var err error
				if policy, err = restartPolicy(restart); err != nil {
					return err
				}
			}
			_, err := c.ContainerUpdate(ctx, name, client.ContainerUpdateOptions{Resources: &limits, RestartPolicy: &policy})
			return err
		})
	cmd.Flags().StringVarP(&memory, "memory", "m", "", "memory limit as a `size`: 512m, 2g; swap is limited to as much again")
	cmd.Flags().StringVar(&cpus, "cpus", "", "limit to a `number` of processors: 1.5")
	cmd.Flags().Int64Var(&pids, "pids-limit", 0, "limit the `number` of processes; -1 for none")
	cmd.Flags().StringVar(&restart, "restart", "", "restart `policy`: no, always, unless-stopped, on-failure[:N]")
	return cmd
}

// restartPolicy reads NAME[:N].
func restartPolicy(s string) (container.RestartPolicy, error) {
	name, count, found := strings.Cut(s, ":")
	p := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	if found {
		n, err := strconv.Atoi(count)
		if err != nil {
			return p, flagError("restart", s, errors.New("the number of retries is not a number"))
		}
		p.MaximumRetryCount = n
	}
	if err := container.ValidateRestartPolicy(p); err != nil {
		return p, flagError("restart", s, err)
	}
	return p, nil
}

func (e *env) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER…", Short: "Wait until containers have ended, and print their exit codes", Example: "  ferry wait job", Args: atLeast(1, "CONTAINER"),
		ValidArgsFunction: e.completeContainers(false),
		RunE: interruptible(func(ctx context.Context, names []string) error {
			return e.withDocker(func(c *client.Client) error {
				return e.each(names, func(name string) error {
					wait := c.ContainerWait(ctx, name, client.ContainerWaitOptions{})
					select {
					case res := <-wait.Result:
						e.term.Printf("%d\n", res.StatusCode)
						return nil
					case err := <-wait.Error:
						return err
					}
				})
			})
		}),
	}
}

func (e *env) topCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top CONTAINER [PS-OPTION…]", Short: "List a container's processes", Example: "  ferry top web\n  ferry top web -o pid,rss,args", Args: atLeast(1, "CONTAINER"),
		ValidArgsFunction: e.completeContainers(false),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				top, err := c.ContainerTop(ctx, args[0], client.ContainerTopOptions{Arguments: args[1:]})
				if err != nil {
					return err
				}
				return e.term.Rows(top.Titles, top.Processes)
			})
		}),
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (e *env) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER", Short: "List the ports that a container publishes", Example: "  ferry port web", Args: exactly(1, "CONTAINER"),
		ValidArgsFunction: e.completeContainers(false),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				res, err := c.ContainerInspect(ctx, args[0], client.ContainerInspectOptions{})
				if err != nil || res.Container.NetworkSettings == nil {
					return err
				}
				var lines []string
				for port, bindings := range res.Container.NetworkSettings.Ports {
					for _, b := range bindings {
						lines = append(lines, fmt.Sprintf("%s -> %s:%s\n", port, b.HostIP, b.HostPort))
					}
				}
				slices.Sort(lines)
				e.term.Printf("%s", strings.Join(lines, ""))
				return nil
			})
		}),
	}
}

func (e *env) eventsCommand() *cobra.Command {
	var since, until string
	var only []string
	var output outputFlag
	cmd := &cobra.Command{
		Use: "events", Short: "Follow what happens to containers, images, networks and volumes", Args: noArgs,
		Example: "  ferry events --filter event=die\n  ferry events --since 10m --until 0s -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			filters := client.Filters{}
			for _, f := range only {
				key, value, ok := strings.Cut(f, "=")
				if !ok {
					return fault.New(fault.Invalid, "--filter %s: no value", f).Hint("write KEY=VALUE, as event=die")
				}
				filters.Add(key, value)
			}
			return e.withDocker(func(c *client.Client) error {
				stream := c.Events(ctx, client.EventsListOptions{Since: since, Until: until, Filters: filters})
				for {
					select {
					case m := <-stream.Messages:
						if err := output.show(e.term, m, func() error { e.term.Printf("%s\n", eventLine(m)); return nil }); err != nil {
							return err
						}
					case err := <-stream.Err:
						if errors.Is(err, io.EOF) {
							return nil
						}
						return err
					}
				}
			})
		}),
	}
	cmd.Flags().StringVar(&since, "since", "", "from this `time` on: RFC 3339, or a duration such as 10m")
	cmd.Flags().StringVar(&until, "until", "", "to this `time`")
	cmd.Flags().StringArrayVarP(&only, "filter", "f", nil, "`KEY=VALUE`: container, daemon, event, image, label, network, scope, type or volume")
	output.addFlags(cmd)
	return cmd
}

func eventLine(m events.Message) string {
	name := m.Actor.Attributes["name"]
	if name == "" {
		name = m.Actor.ID
	}
	return fmt.Sprintf("%s %s %s %s", time.Unix(0, m.TimeNano).Format(time.RFC3339), m.Type, m.Action, name)
}

func (e *env) statsCommand() *cobra.Command {
	var output outputFlag
	var once bool
	cmd := &cobra.Command{
		Use: "stats [CONTAINER…]", Short: "Show what running containers use now",
		Long:              "Stats shows what running containers use: on a terminal anew every second until Ctrl-C, elsewhere once.",
		Example:           "  ferry stats\n  ferry stats --no-stream\n  ferry stats web -o json",
		ValidArgsFunction: e.completeContainers(false),
		RunE: interruptible(func(ctx context.Context, names []string) error {
			return e.withDocker(func(c *client.Client) error {
				if once || e.term.OutputFile() == nil || e.getenv("TERM") == "dumb" || term.Format(output.format) != term.Table {
					return e.showStats(ctx, c, names, &output, "")
				}
				tick := time.NewTicker(time.Second) // should nothing run that takes its time to answer
				defer tick.Stop()
				for {
					if err := e.showStats(ctx, c, names, &output, clearScreen); err != nil {
						return err
					}
					select {
					case <-tick.C:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			})
		}),
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "show it once on a terminal too")
	output.addFlags(cmd)
	return cmd
}

// clearScreen goes to the terminal's first line and clears what is there and below.
const clearScreen = "\x1b[H\x1b[J"

// showStats shows what the named containers use, or all that run, after the text before.
func (e *env) showStats(ctx context.Context, c *client.Client, names []string, output *outputFlag, before string) error {
	all, err := samples(ctx, c, names)
	if err != nil {
		return err
	}
	return output.show(e.term, all, func() error {
		var rows [][]string
		for _, v := range all {
			rows = append(rows, []string{strings.TrimPrefix(v.Name, "/"), processors(v), memory(v), strconv.FormatUint(v.PidsStats.Current, 10)})
		}
		e.term.Printf("%s", before)
		return e.term.Rows([]string{"NAME", "CPU", "MEMORY", "PROCESSES"}, rows)
	})
}

// samples asks for the usage of the named containers, or of all that run, at once:
// each answer takes a second.
func samples(ctx context.Context, c *client.Client, names []string) ([]container.StatsResponse, error) {
	listed := len(names) == 0
	if listed {
		list, err := c.ContainerList(ctx, client.ContainerListOptions{})
		if err != nil {
			return nil, err
		}
		for _, item := range list.Items {
			names = append(names, containerName(item.Names, item.ID))
		}
	}
	type answer struct {
		v   container.StatsResponse
		err error
	}
	answers := make([]chan answer, len(names))
	for i, name := range names {
		answers[i] = make(chan answer, 1)
		go func() {
			var a answer
			res, err := c.ContainerStats(ctx, name, client.ContainerStatsOptions{IncludePreviousSample: true})
			if a.err = err; err == nil {
				a.err = json.NewDecoder(res.Body).Decode(&a.v)
				res.Body.Close()
			}
			answers[i] <- a
		}()
	}
	all := []container.StatsResponse{}
	var errs []error
	for _, ch := range answers {
		a := <-ch
		if listed && errdefs.IsNotFound(a.err) {
			continue // removed meanwhile
		}
		all, errs = append(all, a.v), append(errs, a.err)
	}
	return all, errors.Join(errs...)
}

// processors is the load between two samples, 100% being one processor.
func processors(v container.StatsResponse) string {
	used := float64(v.CPUStats.CPUUsage.TotalUsage) - float64(v.PreCPUStats.CPUUsage.TotalUsage)
	all := float64(v.CPUStats.SystemUsage) - float64(v.PreCPUStats.SystemUsage)
	if used <= 0 || all <= 0 {
		return "0%"
	}
	return fmt.Sprintf("%.1f%%", used/all*float64(v.CPUStats.OnlineCPUs)*100)
}

// memory is the memory in use without the page cache that can be dropped.
func memory(v container.StatsResponse) string {
	cache, ok := v.MemoryStats.Stats["total_inactive_file"] // cgroups v1
	if !ok {
		cache = v.MemoryStats.Stats["inactive_file"]
	}
	used := v.MemoryStats.Usage - min(cache, v.MemoryStats.Usage)
	return units.BytesSize(float64(used)) + " / " + units.BytesSize(float64(v.MemoryStats.Limit))
}
