package cli

import (
	"context"
	"net/netip"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

func (e *env) networkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "network", Short: "Make and remove networks, connect containers to them", Args: noArgs,
		Example: "  ferry network create app\n  ferry run -d --name db --network app postgres\n  ferry run --rm --network app client db",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(e.networkListCommand(), e.networkCreateCommand(), e.networkInspectCommand(), e.networkConnectCommand(),
		e.networkDisconnectCommand(), e.networkRemoveCommand(), e.networkPruneCommand())
	return cmd
}

func (e *env) networkListCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "ls", Short: "List networks", Args: noArgs,
		Example: "  ferry network ls\n  ferry network ls -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				list, err := c.NetworkList(ctx, client.NetworkListOptions{})
				if err != nil {
					return err
				}
				return output.show(e.term, list.Items, func() error {
					var rows [][]string
					for _, n := range list.Items {
						subnet := ""
						for _, config := range n.IPAM.Config {
							subnet = config.Subnet.String()
						}
						rows = append(rows, []string{n.Name, shortID(n.ID), n.Driver, subnet})
					}
					return e.term.Rows([]string{"NAME", "ID", "DRIVER", "SUBNET"}, rows)
				})
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) networkCreateCommand() *cobra.Command {
	var subnet, gateway string
	var internal bool
	cmd := &cobra.Command{
		Use: "create NETWORK", Short: "Make a network, on which containers find each other by name", Args: exactly(1, "NETWORK"),
		Example: "  ferry network create app\n  ferry network create --internal --subnet 10.9.0.0/24 backend",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			options := client.NetworkCreateOptions{Internal: internal}
			if subnet != "" || gateway != "" {
				config, err := ipamConfig(subnet, gateway)
				if err != nil {
					return err
				}
				options.IPAM = &network.IPAM{Config: []network.IPAMConfig{config}}
			}
			return e.withDocker(func(c *client.Client) error {
				if _, err := c.NetworkCreate(ctx, args[0], options); err != nil {
					return err
				}
				e.term.Printf("%s\n", args[0])
				return nil
			})
		}),
	}
	cmd.Flags().StringVar(&subnet, "subnet", "", "IPv4 `range` of the network, as 10.9.0.0/24; without it a free one")
	cmd.Flags().StringVar(&gateway, "gateway", "", "`address` of this machine on it; without it the subnet's first")
	cmd.Flags().BoolVar(&internal, "internal", false, "cut it off from everything but this machine")
	return cmd
}

func ipamConfig(subnet, gateway string) (config network.IPAMConfig, err error) {
	if subnet != "" {
		if config.Subnet, err = netip.ParsePrefix(subnet); err != nil {
			return config, fault.New(fault.Invalid, "--subnet %s: %w", subnet, err).Hint("write a range, as 10.9.0.0/24")
		}
	}
	if gateway != "" {
		if config.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return config, fault.New(fault.Invalid, "--gateway %s: %w", gateway, err).Hint("write an address, as 10.9.0.1")
		}
	}
	return config, nil
}

func (e *env) networkInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NETWORK", Short: "Show everything about a network, as JSON", Args: exactly(1, "NETWORK"),
		Example: "  ferry network inspect app",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				n, err := c.NetworkInspect(ctx, args[0], client.NetworkInspectOptions{})
				if err != nil {
					return err
				}
				return e.term.Value(term.JSON, n.Network)
			})
		}),
	}
}

func (e *env) networkConnectCommand() *cobra.Command {
	var ip string
	var aliases []string
	cmd := &cobra.Command{
		Use: "connect NETWORK CONTAINER", Short: "Put a container on a network, also while it runs", Args: exactly(2, "NETWORK or CONTAINER"),
		Example: "  ferry network connect --alias database app db",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			endpoint := &network.EndpointSettings{Aliases: aliases}
			if ip != "" {
				addr, err := netip.ParseAddr(ip)
				if err != nil {
					return fault.New(fault.Invalid, "--ip %s: %w", ip, err).Hint("write an address, as 10.9.0.5")
				}
				endpoint.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: addr}
			}
			return e.withDocker(func(c *client.Client) error {
				_, err := c.NetworkConnect(ctx, args[0], client.NetworkConnectOptions{Container: args[1], EndpointConfig: endpoint})
				return err
			})
		}),
	}
	cmd.Flags().StringVar(&ip, "ip", "", "`address` to have there")
	cmd.Flags().StringArrayVar(&aliases, "alias", nil, "one more `name` there")
	return cmd
}

func (e *env) networkDisconnectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "disconnect NETWORK CONTAINER", Short: "Take a container off a network, also while it runs", Args: exactly(2, "NETWORK or CONTAINER"),
		Example: "  ferry network disconnect app db",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				_, err := c.NetworkDisconnect(ctx, args[0], client.NetworkDisconnectOptions{Container: args[1]})
				return err
			})
		}),
	}
}

func (e *env) networkRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NETWORK…", Short: "Remove networks that no running container is on", Args: atLeast(1, "NETWORK"),
		Example: "  ferry network rm app",
		RunE: interruptible(func(ctx context.Context, names []string) error {
			return e.withDocker(func(c *client.Client) error {
				return e.each(names, func(name string) error {
					if _, err := c.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}); err != nil {
						return err
					}
					e.term.Printf("%s\n", name)
					return nil
				})
			})
		}),
	}
}

func (e *env) networkPruneCommand() *cobra.Command {
	return &cobra.Command{
		Use: "prune", Short: "Remove all networks that no running container is on", Args: noArgs,
		Example: "  ferry network prune",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				result, err := c.NetworkPrune(ctx, client.NetworkPruneOptions{})
				if err != nil {
					return err
				}
				for _, name := range result.Report.NetworksDeleted {
					e.term.Printf("%s\n", name)
				}
				return nil
			})
		}),
	}
}
