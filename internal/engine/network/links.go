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

// slot is a namespace, ready for a container.
type slot struct {
	// addr is its address on the node's own network, which it keeps as long as it
	// is there; the zero Addr of one that is made for other networks.
	addr netip.Addr
	path string // of the namespace
}

func (n *Network) slotOf(addr netip.Addr) slot {
	return slot{addr: addr, path: filepath.Join(n.o.NetnsDir, addr.String())}
}

// slotAt is the slot whose namespace is at path, see slotOf and ownNetns.
func slotAt(path string) slot {
	addr, err := netip.ParseAddr(filepath.Base(path))
	if err != nil {
		return slot{path: path}
	}
	return slot{addr: addr, path: path}
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
	err = n.buildNetns(s, netns, func(inside *netlink.Handle) error {
		err := n.makePair(pair{host: linkName(addr), master: n.bridge, mtu: n.mtu, inside: "eth0", mac: hardwareAddr(addr), netns: s.path})
		if err != nil {
			return err
		}
		return n.configureRouted(inside, "eth0", addr)
	})
	if err != nil {
		return slot{}, fmt.Errorf("make network namespace %s: %w", s.path, errors.Join(err, n.destroySlot(s)))
	}
	return s, nil
}

// buildNetns makes a namespace, or takes an existing one, binds it to s.path and
// has connect give it interfaces, on a thread that is inside.
func (n *Network) buildNetns(s slot, netns string, connect func(inside *netlink.Handle) error) error {
	return onOwnThread(func() error { return n.moveToNetns(s, netns, connect) })
}

func (n *Network) moveToNetns(s slot, netns string, connect func(inside *netlink.Handle) error) error {
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
	return connect(inside)
}

// pair is the two interfaces that connect a namespace to a bridge.
type pair struct {
	host     string // name of the end on the bridge
	master   int    // index of the bridge
	mtu      int
	isolated bool   // reaches the bridge itself alone, none of its other ports
	inside   string // name of the end in the namespace
	mac      net.HardwareAddr
	netns    string // path of the namespace
}

func (n *Network) makePair(p pair) error {
	fd, err := unix.Open(p.netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", p.netns, err)
	}
	defer unix.Close(fd)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = p.host, p.mtu, p.master, net.FlagUp
	// One queue each: the kernel would otherwise allocate one for each possible CPU.
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = p.inside, netlink.NsFd(fd)
	veth.PeerHardwareAddr = p.mac
	if err := n.nl.LinkAdd(veth); err != nil {
		return kernelError(err, "make interfaces %s", attrs.Name)
	}
	// A container reaches itself through its own host port or Service: with
	// br_netfilter on, that frame leaves by the port it came in.
	host := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: attrs.Name, Index: veth.Index}}
	if err := n.nl.LinkSetHairpin(host, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", attrs.Name, err)
	}
	if !p.isolated {
		return nil
	}
	if err := n.nl.LinkSetIsolated(host, true); err != nil {
		return fmt.Errorf("isolate %s: %w", attrs.Name, err)
	}
	return nil
}

// configureRouted gives an interface on the node's own network its /32 address
// and a route to everything through the gateway, unless there is one already.
// See the package comment for why no neighbour is on-link.
func (n *Network) configureRouted(inside *netlink.Handle, name string, addr netip.Addr) error {
	link, err := inside.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if err := inside.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 32))}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, addr, err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	index, gw := link.Attrs().Index, ipNet(netip.PrefixFrom(n.gateway, 32))
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Dst: gw, Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("add the route to the gateway: %w", err)
	}
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gw.IP}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// destroySlot removes a slot and gives its address back. Idempotent; what
// fails is left for the next Start to find.
func (n *Network) destroySlot(s slot) error {
	if err := removeNetns(s.path); err != nil || !s.addr.IsValid() {
		return err
	}
	if err := n.deleteLink(linkName(s.addr)); err != nil {
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
// holds: the unused pool of a process that was killed, and what it was making.
// cut says that one went which a container's default route may have led through.
func (n *Network) removeStrays(keep map[string]bool) (cut bool, err error) {
	var errs []error
	entries, err := os.ReadDir(n.o.NetnsDir)
	if err != nil && !os.IsNotExist(err) {
		return false, fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		s := slotAt(filepath.Join(n.o.NetnsDir, e.Name()))
		if keep[e.Name()] || !s.addr.IsValid() && !strings.HasPrefix(e.Name(), netnsPrefix) {
			continue
		}
		errs = append(errs, removeNetns(s.path))
		if s.addr.IsValid() {
			// The interface by name, in case the bridge was deleted under it: it
			// would live as long as a process is in the namespace.
			errs = append(errs, n.deleteLink(linkName(s.addr)))
		}
	}
	links, err := dump(n.nl.LinkList)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	bridges := map[int]bool{}
	n.mu.Lock()
	for _, s := range n.segments {
		if s.broken == nil {
			bridges[s.index] = true
		}
	}
	n.mu.Unlock()
	for _, l := range links {
		if name := l.Attrs().Name; isPort(l, bridges) && !keep[name] {
			cut = true
			errs = append(errs, n.deleteLink(name))
		}
	}
	return cut, errors.Join(errs...)
}

// rejoin puts the host's end of a living container back on its network's
// bridge, in case that was deleted under it. It reports whether the container
// still has one.
func (n *Network) rejoin(addr netip.Addr, s *segment) (bool, error) {
	link, err := linkOf(n.nl, linkName(addr))
	if err != nil || link == nil {
		return false, err
	}
	if link.Attrs().MasterIndex == s.index || s.broken != nil {
		return true, nil
	}
	errs := []error{n.nl.LinkSetMasterByIndex(link, s.index), n.nl.LinkSetHairpin(link, true), n.nl.LinkSetUp(link)}
	if s.Isolated {
		errs = append(errs, n.nl.LinkSetIsolated(link, true))
	}
	if err := errors.Join(errs...); err != nil {
		return false, fmt.Errorf("put %s back on %s: %w", link.Attrs().Name, s.Bridge, err)
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
