package network

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EndpointSpec asks for a place on a network.
type EndpointSpec struct {
	Network string `json:"network"` // DefaultNetwork or the ID of a Definition
	// IP is the address to have; the zero Addr is any. Not on the node's own network.
	IP netip.Addr `json:"ip,omitzero"`
	// MAC is the hardware address to have; "" is one made of the address.
	MAC string `json:"mac,omitempty"`
	// Names are what others on the network call it; the first is what its address
	// is called. The node's own network has no names.
	Names []string `json:"names,omitempty"`
	// Aliases are more such names: those that its user chose.
	Aliases []string `json:"aliases,omitempty"`
	// Links are names that only it uses, and whose of the network they are.
	Links map[string]string `json:"links,omitempty"`
	// GatewayPriority says which network leads everywhere else: of the highest
	// ones the one whose name comes first.
	GatewayPriority int `json:"gatewayPriority,omitempty"`
}

// Endpoint is a place on a network.
type Endpoint struct {
	EndpointSpec
	ID        string `json:"id"`
	Interface string `json:"interface"`
	// Address has the length of the network's subnet.
	Address netip.Prefix `json:"address"`
	// Gateway is the zero Addr on an internal network.
	Gateway      netip.Addr `json:"gateway,omitzero"`
	HardwareAddr string     `json:"hardwareAddr"`
	// NetworkName orders the networks that could lead everywhere else.
	NetworkName string `json:"networkName"`
}

// newID returns 64 hexadecimal digits, as Docker's IDs are.
func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// CheckEndpoint refuses what Connect would refuse at any time; an address may
// still be in use then.
func (n *Network) CheckEndpoint(spec EndpointSpec) error {
	n.mu.Lock()
	s, ok := n.segments[spec.Network]
	n.mu.Unlock()
	if !ok {
		return fault.New(fault.NotFound, "network %s not found", spec.Network)
	}
	return s.check(spec)
}

func (s *segment) check(spec EndpointSpec) error {
	if spec.MAC != "" {
		mac, err := net.ParseMAC(spec.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fault.New(fault.Invalid, "%q is no hardware address of one interface", spec.MAC).Hint("write six bytes, as in 02:00:00:00:00:01")
		}
	}
	if !spec.IP.IsValid() {
		return nil
	}
	if s.routed {
		return fault.New(fault.Invalid, "user specified IP address is supported on user defined networks only")
	}
	if !spec.IP.Is4() {
		return fault.New(fault.Unsupported, "address %s: containers have IPv4 only", spec.IP)
	}
	return s.addrs.check(spec.IP)
}

// reserve finds the network of spec and takes an address of it. held is the one
// that the attachment's namespace has on the node's own network anyway. The
// network cannot be removed until joined is called.
func (n *Network) reserve(spec EndpointSpec, held netip.Addr) (s *segment, e Endpoint, joined func(), err error) {
	n.mu.Lock()
	s, ok := n.segments[spec.Network]
	if ok {
		s.joining++
	}
	n.mu.Unlock()
	if !ok {
		return nil, e, nil, fault.New(fault.NotFound, "network %s not found", spec.Network)
	}
	done := func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		s.joining--
	}
	addr, err := s.take(spec, held)
	if err != nil {
		done()
		return nil, e, nil, err
	}
	return s, s.endpoint(spec, addr), done, nil
}

func (s *segment) take(spec EndpointSpec, held netip.Addr) (netip.Addr, error) {
	if err := cmp.Or(s.broken, s.check(spec)); err != nil {
		return netip.Addr{}, err
	}
	switch {
	case s.routed && held.IsValid():
		return held, nil
	case spec.IP.IsValid():
		return spec.IP, s.addrs.takeThis(spec.IP)
	}
	addr, _, err := s.addrs.take()
	return addr, err
}

func (s *segment) endpoint(spec EndpointSpec, addr netip.Addr) Endpoint {
	e := Endpoint{EndpointSpec: spec, ID: newID(), NetworkName: s.Name, Gateway: s.Gateway,
		Address: netip.PrefixFrom(addr, s.Subnet.Bits()), HardwareAddr: cmp.Or(spec.MAC, hardwareAddr(addr).String())}
	if s.Internal {
		e.Gateway = netip.Addr{}
	}
	return e
}

// release gives an endpoint's address back.
func (n *Network) release(e Endpoint) {
	n.mu.Lock()
	s := n.segments[e.Network]
	n.mu.Unlock()
	if s != nil { // else it went with its network
		s.addrs.release(e.Address.Addr())
	}
}

// join makes the endpoint's pair of interfaces. The calling thread is in the
// namespace at path.
func (n *Network) join(inside *netlink.Handle, path string, s *segment, e *Endpoint) error {
	name, err := freeInterface(inside)
	if err != nil {
		return err
	}
	e.Interface = name
	mac, err := net.ParseMAC(e.HardwareAddr)
	if err != nil {
		return fmt.Errorf("hardware address of %s: %w", name, err)
	}
	err = n.makePair(pair{host: linkName(e.Address.Addr()), master: s.index, mtu: cmp.Or(s.MTU, n.mtu), isolated: s.Isolated,
		inside: name, mac: mac, netns: path})
	if err != nil {
		return err
	}
	if s.routed {
		return n.configureRouted(inside, name, e.Address.Addr())
	}
	// Neighbours may know the address with another hardware address, of an
	// earlier container.
	if err := writeSysctls(map[string]string{"net/ipv4/conf/" + name + "/arp_notify": "1"}); err != nil {
		return err
	}
	return configureOnLink(inside, name, e.Address)
}

// freeInterface is the first of eth0, eth1… that is not there.
func freeInterface(inside *netlink.Handle) (string, error) {
	links, err := dump(inside.LinkList)
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	for i := 0; ; i++ {
		name := "eth" + strconv.Itoa(i)
		if !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name }) {
			return name, nil
		}
	}
}

// configureOnLink gives an interface an address whose whole subnet is its neighbours.
func configureOnLink(inside *netlink.Handle, name string, addr netip.Prefix) error {
	link, err := inside.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if err := inside.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, addr, err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

// outward is the endpoint that leads everywhere else; ok is false without one.
func outward(endpoints []Endpoint) (e Endpoint, ok bool) {
	leads := slices.DeleteFunc(slices.Clone(endpoints), func(e Endpoint) bool { return !e.Gateway.IsValid() })
	if len(leads) == 0 {
		return Endpoint{}, false
	}
	return slices.MinFunc(leads, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(b.GatewayPriority, a.GatewayPriority), cmp.Compare(a.NetworkName, b.NetworkName))
	}), true
}

// setDefaultRoute leads everything else through the endpoint that is for it.
// The calling thread's namespace has those endpoints.
func setDefaultRoute(inside *netlink.Handle, endpoints []Endpoint) error {
	e, ok := outward(endpoints)
	if !ok {
		routes, err := defaultRoutes(inside)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if err := inside.RouteDel(&r); err != nil {
				return fmt.Errorf("delete the default route: %w", err)
			}
		}
		return nil
	}
	link, err := inside.LinkByName(e.Interface)
	if err != nil {
		return fmt.Errorf("look up %s: %w", e.Interface, err)
	}
	if err := inside.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: e.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	return nil
}

// restoreDefaultRoute sets the default route where there is none. Another one
// is right, or the container's own.
func restoreDefaultRoute(inside *netlink.Handle, endpoints []Endpoint) error {
	routes, err := defaultRoutes(inside)
	if err != nil || len(routes) > 0 {
		return err
	}
	return setDefaultRoute(inside, endpoints)
}

func defaultRoutes(inside *netlink.Handle) ([]netlink.Route, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return inside.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool {
		p, ok := prefix(r.Dst)
		return ok && p.Bits() > 0
	}), nil
}

// inNetnsHandle runs f on a thread inside the namespace at path, with a netlink
// handle of it.
func inNetnsHandle(path string, f func(*netlink.Handle) error) error {
	return inNetns(path, func() error {
		inside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		defer inside.Close()
		return f(inside)
	})
}

// netnsPrefix starts the file of a namespace that is not of the node's own
// network; one that is has its address for a name.
const netnsPrefix = "ns-"

// ownNetns is a slot whose file nothing else has or had: that of an earlier
// attachment may still be about to be removed.
func (n *Network) ownNetns() slot {
	return slot{path: filepath.Join(n.o.NetnsDir, netnsPrefix+newID()[:16])}
}

// Connect puts an attachment, whose container runs, on one more network. Like
// Disconnect it must not be called for an id while Attach, Detach or another of
// the two is under way for it. On failure nothing has changed.
func (n *Network) Connect(_ context.Context, id string, spec EndpointSpec) (Attachment, error) {
	a, ok := n.find(id)
	if !ok {
		return Attachment{}, fault.New(fault.NotFound, "connect %s: it is not attached", id)
	}
	if slices.ContainsFunc(a.Endpoints, func(e Endpoint) bool { return e.Network == spec.Network }) {
		return Attachment{}, fault.New(fault.Conflict, "connect %s: it is on the network %s already", id, spec.Network)
	}
	s, e, joined, err := n.reserve(spec, a.slot.addr)
	if err != nil {
		return Attachment{}, fmt.Errorf("connect %s: %w", id, err)
	}
	defer joined()
	next := a.copy()
	err = inNetnsHandle(a.slot.path, func(inside *netlink.Handle) error {
		if err := n.join(inside, a.slot.path, s, &e); err != nil {
			return err
		}
		next.setEndpoints(append(next.Endpoints, e))
		return setDefaultRoute(inside, next.Endpoints)
	})
	if err == nil {
		err = n.change(a, next)
	}
	if err != nil {
		return Attachment{}, errors.Join(fmt.Errorf("connect %s: %w", id, err), n.leave(a, e, a.Endpoints))
	}
	return next.copy(), nil
}

// Disconnect takes an attachment off a network; not being on it is NotFound.
func (n *Network) Disconnect(_ context.Context, id, network string) (Attachment, error) {
	a, ok := n.find(id)
	if !ok {
		return Attachment{}, fault.New(fault.NotFound, "disconnect %s: it is not attached", id)
	}
	i := slices.IndexFunc(a.Endpoints, func(e Endpoint) bool { return e.Network == network })
	if i < 0 {
		return Attachment{}, fault.New(fault.NotFound, "disconnect %s: it is not on the network %s", id, network)
	}
	e, next := a.Endpoints[i], a.copy()
	next.setEndpoints(slices.Delete(slices.Clone(a.Endpoints), i, i+1))
	if err := n.change(a, next); err != nil {
		return Attachment{}, fmt.Errorf("disconnect %s: %w", id, err)
	}
	if err := n.leave(a, e, next.Endpoints); err != nil {
		return Attachment{}, fmt.Errorf("disconnect %s: %w", id, err)
	}
	return next.copy(), nil
}

// Rename gives an attachment another name in place of one, wherever it has it.
func (n *Network) Rename(id, from, to string) (Attachment, error) {
	a, ok := n.find(id)
	if !ok {
		return Attachment{}, fault.New(fault.NotFound, "rename %s: it is not attached", id)
	}
	next := a.copy()
	for i := range next.Endpoints {
		next.Endpoints[i].EndpointSpec = next.Endpoints[i].Renamed(from, to)
	}
	return next.copy(), n.change(a, next)
}

// Renamed is the same endpoint with another name in place of one.
func (s EndpointSpec) Renamed(from, to string) EndpointSpec {
	s.Names = slices.Clone(s.Names)
	for i, name := range s.Names {
		if name == from {
			s.Names[i] = to
		}
	}
	return s
}

// leave removes an endpoint's interfaces and address, and leads what went
// through them through one of the rest. Idempotent.
func (n *Network) leave(a *attached, e Endpoint, rest []Endpoint) error {
	if err := n.deleteLink(linkName(e.Address.Addr())); err != nil {
		return err // with its address taken: the next start looks for what is left
	}
	if e.Address.Addr() != a.slot.addr { // that one is the namespace's own
		n.release(e)
	}
	return inNetnsHandle(a.slot.path, func(inside *netlink.Handle) error { return setDefaultRoute(inside, rest) })
}

// change makes next what is known of an attachment: to names, host ports and
// the next process. On failure all is as before.
func (n *Network) change(a *attached, next Attachment) (err error) {
	before := a.Attachment
	undo := func(f func() error) {
		if err != nil {
			err = errors.Join(err, f())
		}
	}
	if next.portTarget() != before.portTarget() {
		if err := n.movePorts(before, next); err != nil {
			return err
		}
		defer undo(func() error { return n.movePorts(next, before) })
	}
	if err := n.leases.save(next); err != nil {
		return err
	}
	defer undo(func() error { return n.leases.save(before) })
	if next.named() && a.resolver == nil {
		if err := n.startResolver(a); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	a.Attachment = next
	return nil
}

// movePorts redirects the host ports of an attachment to where they lead next.
func (n *Network) movePorts(before, next Attachment) error {
	if err := n.firewall.withdraw(before); err != nil {
		return err
	}
	if err := n.firewall.publish(next); err != nil {
		return errors.Join(err, n.firewall.publish(before))
	}
	return n.forgetFlows(next.Ports)
}

func (n *Network) find(id string) (*attached, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.attached[id]
	return a, ok && a.slot.path != ""
}

// portTarget is the address that host ports lead to; the zero Addr while no
// network leads outside.
func (a Attachment) portTarget() netip.Addr {
	e, ok := outward(a.Endpoints)
	if !ok {
		return netip.Addr{}
	}
	return e.Address.Addr()
}

// named reports whether the attachment is on a network that has names.
func (a Attachment) named() bool {
	return slices.ContainsFunc(a.Endpoints, func(e Endpoint) bool { return e.Network != DefaultNetwork })
}

// setEndpoints replaces the endpoints, with what is told of the node's own network.
func (a *Attachment) setEndpoints(endpoints []Endpoint) {
	a.Endpoints = endpoints
	a.IP, a.Gateway, a.MAC = netip.Prefix{}, netip.Addr{}, ""
	for _, e := range endpoints {
		if e.Network == DefaultNetwork {
			a.IP, a.Gateway, a.MAC = e.Address, e.Gateway, e.HardwareAddr
		}
	}
}
