package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
)

// ensureBridge makes the node's own bridge, or takes over the one an earlier
// run made, and returns its index.
func (n *Network) ensureBridge() (int, error) {
	link, err := n.ownBridge(n.o.Bridge)
	if err != nil {
		return 0, err
	}
	if err := n.checkOverlap(link); err != nil {
		return 0, err
	}
	index, err := n.raiseBridge(n.o.Bridge, n.mtu, netip.PrefixFrom(n.gateway, n.o.Subnet.Bits()))
	if err != nil {
		return 0, err
	}
	return index, n.routeServices(index)
}

// raiseBridge makes a bridge whose only address is this one, or makes ours so,
// and returns its index.
func (n *Network) raiseBridge(name string, mtu int, addr netip.Prefix) (int, error) {
	link, err := n.ownBridge(name)
	if err != nil {
		return 0, err
	}
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Alias, attrs.MTU = name, bridgeAlias, mtu
		// A fixed address: otherwise the bridge takes the lowest of its ports'
		// and containers' neighbour caches go stale when one comes or goes.
		attrs.HardwareAddr = hardwareAddr(addr.Addr())
		if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return 0, kernelError(err, "make bridge %s", name)
		}
		if link, err = linkOf(n.nl, name); err != nil {
			return 0, err
		}
		if link == nil {
			return 0, fmt.Errorf("bridge %s vanished", name)
		}
		// Not every kernel takes the alias with the creation.
		if err := n.nl.LinkSetAlias(link, bridgeAlias); err != nil {
			return 0, fmt.Errorf("mark bridge %s: %w", name, err)
		}
	}
	if err := n.nl.LinkSetMTU(link, mtu); err != nil {
		return 0, fmt.Errorf("set MTU of bridge %s: %w", name, err)
	}
	if err := n.setBridgeAddress(link, addr); err != nil {
		return 0, err
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bring up bridge %s: %w", name, err)
	}
	return link.Attrs().Index, nil
}

// dropBridge removes a bridge of ours with what is connected to it. Idempotent.
func (n *Network) dropBridge(name string) error {
	link, err := n.ownBridge(name)
	if fault.Is(err, fault.Conflict) {
		return nil // someone else's: not ours to remove
	}
	if err != nil || link == nil {
		return err
	}
	links, err := dump(n.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		if isPort(l, map[int]bool{link.Attrs().Index: true}) {
			errs = append(errs, n.deleteLink(l.Attrs().Name))
		}
	}
	return errors.Join(append(errs, n.deleteLink(name))...)
}

// isPort reports whether a link is the host's end of a container's pair on one
// of these bridges.
func isPort(l netlink.Link, bridges map[int]bool) bool {
	a := l.Attrs()
	return l.Type() == "veth" && bridges[a.MasterIndex] && strings.HasPrefix(a.Name, linkPrefix)
}

// routeServices leads Services to the bridge. A proxy rewrites their addresses
// only after a route has been found, so without this a machine with no default
// route could not reach one, and a packet that no proxy rewrote would leave
// for the network outside.
func (n *Network) routeServices(bridge int) error {
	if !n.o.Services.IsValid() {
		return nil
	}
	err := n.nl.RouteReplace(&netlink.Route{
		LinkIndex: bridge, Dst: ipNet(n.o.Services.Masked()), Src: n.gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
	})
	if err != nil {
		return fmt.Errorf("route Services %s to %s: %w", n.o.Services, n.o.Bridge, err)
	}
	return nil
}

// ownBridge returns our bridge of that name, nil if there is none, and a conflict if the
// name belongs to something else.
func (n *Network) ownBridge(name string) (netlink.Link, error) {
	link, err := linkOf(n.nl, name)
	if err != nil || link == nil {
		return nil, err
	}
	if link.Type() != "bridge" || link.Attrs().Alias != bridgeAlias {
		return nil, fault.New(fault.Conflict, "interface %s exists and was not made by Ferry", name).
			Hint("set network.bridge to another name, or remove it with: ip link delete %s", name)
	}
	return link, nil
}

// setBridgeAddress leaves addr as the bridge's only IPv4 address.
func (n *Network) setBridgeAddress(link netlink.Link, addr netip.Prefix) error {
	name, want := link.Attrs().Name, ipNet(addr)
	have, err := dump(func() ([]netlink.Addr, error) { return n.nl.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	found := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			found = true
			continue
		}
		if err := n.nl.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s of %s: %w", a.IPNet, name, err)
		}
	}
	if found {
		return nil
	}
	if err := n.nl.AddrAdd(link, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, want, err)
	}
	return nil
}

// checkOverlap refuses a range that the machine already reaches some other way.
// A range that the bridge, which may be nil, has from an earlier run is not
// looked at: containers use it, and a route that came since (a VPN's, say) must
// hinder neither their next start nor their end.
func (n *Network) checkOverlap(bridge netlink.Link) error {
	var theirs []usedRange
	ours := map[netip.Prefix]bool{}
	err := n.eachRange(func(what string, p netip.Prefix, index int) {
		if bridge != nil && index == bridge.Attrs().Index {
			ours[p] = true
			return
		}
		theirs = append(theirs, usedRange{what, p, index})
	})
	if err != nil {
		return err
	}
	for _, r := range []struct {
		prefix netip.Prefix
		field  string
	}{{n.o.Subnet, "network.podCIDR"}, {n.o.Services, "network.serviceCIDR"}} {
		if !r.prefix.IsValid() || ours[r.prefix.Masked()] {
			continue
		}
		for _, u := range theirs {
			if u.Overlaps(r.prefix) {
				return fault.New(fault.Conflict, "the range %s overlaps the %s %s of %s", r.prefix, u.what, u.Prefix, n.linkLabel(u.index)).
					Hint("set %s to a range that is not in use here", r.field)
			}
		}
	}
	return nil
}

// eachRange calls f for each range that this machine reaches by a route or has
// an address in, the default route aside.
func (n *Network) eachRange(f func(what string, p netip.Prefix, index int)) error {
	routes, err := dump(func() ([]netlink.Route, error) { return n.nl.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return n.nl.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	note := func(what string, dst *net.IPNet, index int) {
		if p, ok := prefix(dst); ok && p.Bits() > 0 {
			f(what, p, index)
		}
	}
	for _, r := range routes {
		note("route", r.Dst, r.LinkIndex)
	}
	for _, a := range addrs {
		note("address", a.IPNet, a.LinkIndex)
	}
	return nil
}

// usedRange is a range that the machine reaches by an interface, and whether by
// a route or an address.
type usedRange struct {
	what string
	netip.Prefix
	index int
}

func (n *Network) linkLabel(index int) string {
	if link, err := n.nl.LinkByIndex(index); err == nil {
		return link.Attrs().Name
	}
	return fmt.Sprintf("interface %d", index)
}
