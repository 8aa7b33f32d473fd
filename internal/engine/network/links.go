package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// bridgeAlias marks a bridge as made by Ferry, so that an interface of the
	// same name that someone else made is never touched.
	bridgeAlias = "ferry container network"
	defaultMTU  = 1500
	// dumpTries bounds how often a listing is repeated that the kernel reports
	// as interrupted by a concurrent change.
	dumpTries = 20
)

// dump repeats a netlink listing until the kernel gave a consistent one.
func dump[T any](list func() (T, error)) (T, error) {
	var v T
	var err error
	for range dumpTries {
		if v, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return v, err
}

// linkOf returns the link of that name, nil without an error if there is none.
func linkOf(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := dump(func() (netlink.Link, error) { return h.LinkByName(name) })
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return link, nil
}

// ensureBridge makes the bridge, or takes over the one an earlier run made,
// and returns its index.
func (n *Network) ensureBridge() (int, error) {
	link, err := n.ownBridge()
	if err != nil {
		return 0, err
	}
	if err := n.checkOverlap(link); err != nil {
		return 0, err
	}
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Alias, attrs.MTU = n.o.Bridge, bridgeAlias, n.mtu
		// A fixed address: otherwise the bridge takes the lowest of its ports'
		// and containers' neighbour caches go stale when one comes or goes.
		attrs.HardwareAddr = hardwareAddr(n.gateway)
		if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return 0, kernelError(err, "make bridge %s", n.o.Bridge)
		}
		if link, err = linkOf(n.nl, n.o.Bridge); err != nil {
			return 0, err
		}
		if link == nil {
			return 0, fmt.Errorf("bridge %s vanished", n.o.Bridge)
		}
		// Not every kernel takes the alias with the creation.
		if err := n.nl.LinkSetAlias(link, bridgeAlias); err != nil {
			return 0, fmt.Errorf("mark bridge %s: %w", n.o.Bridge, err)
		}
	}
	if err := n.nl.LinkSetMTU(link, n.mtu); err != nil {
		return 0, fmt.Errorf("set MTU of bridge %s: %w", n.o.Bridge, err)
	}
	if err := n.setGatewayAddress(link); err != nil {
		return 0, err
	}
	if err := n.nl.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bring up bridge %s: %w", n.o.Bridge, err)
	}
	return link.Attrs().Index, n.routeServices(link.Attrs().Index)
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

// ownBridge returns our bridge, nil if there is none, and a conflict if the
// name belongs to something else.
func (n *Network) ownBridge() (netlink.Link, error) {
	link, err := linkOf(n.nl, n.o.Bridge)
	if err != nil || link == nil {
		return nil, err
	}
	if link.Type() != "bridge" || link.Attrs().Alias != bridgeAlias {
		return nil, fault.New(fault.Conflict, "interface %s exists and was not made by Ferry", n.o.Bridge).
			Hint("set network.bridge to another name, or remove it with: ip link delete %s", n.o.Bridge)
	}
	return link, nil
}

// setGatewayAddress leaves the gateway as the bridge's only IPv4 address.
func (n *Network) setGatewayAddress(link netlink.Link) error {
	want := ipNet(netip.PrefixFrom(n.gateway, n.o.Subnet.Bits()))
	have, err := dump(func() ([]netlink.Addr, error) { return n.nl.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", n.o.Bridge, err)
	}
	found := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			found = true
			continue
		}
		if err := n.nl.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s of %s: %w", a.IPNet, n.o.Bridge, err)
		}
	}
	if found {
		return nil
	}
	if err := n.nl.AddrAdd(link, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", n.o.Bridge, want, err)
	}
	return nil
}

// checkOverlap refuses a range that the machine already reaches some other way.
// A range that the bridge, which may be nil, has from an earlier run is not
// looked at: containers use it, and a route that came since (a VPN's, say) must
// hinder neither their next start nor their end.
func (n *Network) checkOverlap(bridge netlink.Link) error {
	routes, err := dump(func() ([]netlink.Route, error) { return n.nl.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return n.nl.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var theirs []usedRange
	ours := map[netip.Prefix]bool{}
	note := func(what string, dst *net.IPNet, index int) {
		p, ok := prefix(dst)
		switch {
		case !ok || p.Bits() == 0:
		case bridge != nil && index == bridge.Attrs().Index:
			ours[p] = true
		default:
			theirs = append(theirs, usedRange{what, p, index})
		}
	}
	for _, r := range routes {
		note("route", r.Dst, r.LinkIndex)
	}
	for _, a := range addrs {
		note("address", a.IPNet, a.LinkIndex)
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

// outwardMTU is the MTU of the interface that the default route leaves by.
func outwardMTU(h *netlink.Handle) (int, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefix(r.Dst); (ok && p.Bits() > 0) || r.LinkIndex == 0 {
			continue
		}
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("look up the default route's interface: %w", err)
		}
		return link.Attrs().MTU, nil
	}
	return defaultMTU, nil
}

// slot is a namespace with its address, ready for a container.
type slot struct {
	addr netip.Addr
	path string // of the namespace
}

func (n *Network) slotOf(addr netip.Addr) slot {
	return slot{addr: addr, path: filepath.Join(n.o.NetnsDir, addr.String())}
}

// makeSlot takes an address and makes its namespace, or connects an existing
// one. On failure nothing is left.
func (n *Network) makeSlot(ctx context.Context, netns string) (slot, error) {
	if err := ctx.Err(); err != nil {
		return slot{}, err
	}
	addr, next, err := n.addrs.take()
	if err != nil {
		return slot{}, err
	}
	s := n.slotOf(addr)
	if err := saveCursor(n.cursorPath(), next); err != nil {
		n.addrs.release(addr)
		return slot{}, err
	}
	if err := onOwnThread(func() error { return n.buildNetns(s, netns) }); err != nil {
		return slot{}, fmt.Errorf("make network namespace %s: %w", s.path, errors.Join(err, n.destroySlot(s)))
	}
	return s, nil
}

// buildNetns moves the calling thread into a new namespace, or an existing one,
// binds that to s.path and connects it to the bridge.
func (n *Network) buildNetns(s slot, netns string) error {
	if netns != "" {
		if err := enterNetns(netns); err != nil {
			return err
		}
	} else if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return kernelError(err, "unshare the network namespace")
	}
	if err := bindNetns(s.path); err != nil {
		return err
	}
	// Before eth0 exists, so that it takes them from "default".
	if err := writeSysctls(n.nsSysctls); err != nil {
		return err
	}
	inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look up lo: %w", err)
	}
	if err := inside.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := n.makePair(s); err != nil {
		return err
	}
	return n.configureEth0(inside, s.addr)
}

// makePair makes the pair of interfaces: one end on the bridge, the other as
// eth0 in the namespace of s.
func (n *Network) makePair(s slot) error {
	fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	defer unix.Close(fd)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = linkName(s.addr), n.mtu, n.bridge, net.FlagUp
	// One queue each: the kernel would otherwise allocate one for each possible CPU.
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(fd)
	veth.PeerHardwareAddr = hardwareAddr(s.addr)
	if err := n.nl.LinkAdd(veth); err != nil {
		return kernelError(err, "make interfaces %s", attrs.Name)
	}
	// A container reaches itself through its own host port or Service: with
	// br_netfilter on, that frame leaves by the port it came in.
	host := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: attrs.Name, Index: veth.Index}}
	if err := n.nl.LinkSetHairpin(host, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", attrs.Name, err)
	}
	return nil
}

// configureEth0 gives eth0 its /32 address and a route to everything through
// the gateway. See the package comment for why no neighbour is on-link.
func (n *Network) configureEth0(inside *netlink.Handle, addr netip.Addr) error {
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("look up eth0: %w", err)
	}
	if err := inside.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 32))}); err != nil {
		return fmt.Errorf("give eth0 the address %s: %w", addr, err)
	}
	if err := inside.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring up eth0: %w", err)
	}
	index, gw := eth0.Attrs().Index, ipNet(netip.PrefixFrom(n.gateway, 32))
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Dst: gw, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("add the route to the gateway: %w", err)
	}
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gw.IP}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// destroySlot removes a slot and gives its address back. Idempotent; what
// fails is left for the next Start to find.
func (n *Network) destroySlot(s slot) error {
	if err := errors.Join(removeNetns(s.path), n.deleteLink(linkName(s.addr))); err != nil {
		return err
	}
	n.addrs.release(s.addr)
	return nil
}

func (n *Network) deleteLink(name string) error {
	link, err := linkOf(n.nl, name)
	if err != nil || link == nil {
		return err
	}
	// ENODEV: it went with its namespace meanwhile.
	if err := n.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// removeStrays removes every namespace and interface of ours that no lease
// holds: the unused pool of a process that was killed.
func (n *Network) removeStrays(keep map[netip.Addr]bool) error {
	var errs []error
	entries, err := os.ReadDir(n.o.NetnsDir)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		if addr, err := netip.ParseAddr(e.Name()); err == nil && !keep[addr] {
			// The interface by name, in case the bridge was deleted under it: it
			// would live as long as a process is in the namespace.
			errs = append(errs, removeNetns(filepath.Join(n.o.NetnsDir, e.Name())), n.deleteLink(linkName(addr)))
		}
	}
	links, err := dump(n.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	kept := map[string]bool{}
	for addr := range keep {
		kept[linkName(addr)] = true
	}
	for _, l := range links {
		a := l.Attrs()
		if l.Type() == "veth" && a.MasterIndex == n.bridge && strings.HasPrefix(a.Name, linkPrefix) && !kept[a.Name] {
			errs = append(errs, n.deleteLink(a.Name))
		}
	}
	return errors.Join(errs...)
}

// rejoin puts the host's end of a living container back on the bridge, in case
// the bridge was deleted under it. It reports whether the container still has one.
func (n *Network) rejoin(addr netip.Addr) (bool, error) {
	link, err := linkOf(n.nl, linkName(addr))
	if err != nil || link == nil {
		return false, err
	}
	if link.Attrs().MasterIndex == n.bridge {
		return true, nil
	}
	err = errors.Join(
		n.nl.LinkSetMasterByIndex(link, n.bridge),
		n.nl.LinkSetHairpin(link, true),
		n.nl.LinkSetUp(link))
	if err != nil {
		return false, fmt.Errorf("put %s back on %s: %w", link.Attrs().Name, n.o.Bridge, err)
	}
	return true, nil
}

// kernelError names the missing kernel feature where the error means one.
func kernelError(err error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	for _, missing := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOSYS, unix.EINVAL} {
		if errors.Is(err, missing) {
			return fault.New(fault.Unsupported, "%s: %w", what, err).
				Hint("the kernel needs bridge, veth, network namespaces and nf_tables with NAT; try: modprobe -a bridge veth nf_tables nft_chain_nat nft_masq nft_fib_ipv4")
		}
	}
	if errors.Is(err, unix.EPERM) {
		return fault.New(fault.Denied, "%s: %w", what, err).Hint("run as root")
	}
	return fmt.Errorf("%s: %w", what, err)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix converts a route's destination or an interface's address; ok is false
// for nil (a default route in some kernels' answers) and for IPv6.
func prefix(in *net.IPNet) (p netip.Prefix, ok bool) {
	if in == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(in.IP)
	if !ok || !addr.Unmap().Is4() {
		return netip.Prefix{}, false
	}
	bits, _ := in.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits).Masked(), true
}
