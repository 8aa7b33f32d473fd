package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (p Protocol) number() byte {
	switch p {
	case UDP:
		return unix.IPPROTO_UDP
	case SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

// Normal validates p, as Attach does, and gives every meaning one spelling: TCP
// written out, an unspecified host address as the zero Addr.
func (p PortMapping) Normal() (PortMapping, error) {
	switch p.Protocol {
	case "":
		p.Protocol = TCP
	case TCP, UDP, SCTP:
	default:
		return p, fault.New(fault.Invalid, "port protocol %q is none of tcp, udp, sctp", p.Protocol)
	}
	if p.ContainerPort == 0 {
		return p, fault.New(fault.Invalid, "a port mapping needs a container port")
	}
	if p.HostPortEnd != 0 && (p.HostPort == 0 || p.HostPortEnd < p.HostPort) {
		return p, fault.New(fault.Invalid, "host ports %d-%d are no range", p.HostPort, p.HostPortEnd)
	}
	p.HostIP = p.HostIP.Unmap()
	if p.HostIP.IsValid() && p.HostIP.IsUnspecified() {
		p.HostIP = netip.Addr{} // "::" too: Docker's clients write it for "every address"
	}
	if p.HostIP.IsValid() && !p.HostIP.Is4() {
		return p, fault.New(fault.Unsupported, "host port on %s: containers have IPv4 only", p.HostIP).
			Hint("map the port on an IPv4 address, or on every address by giving none")
	}
	return p, nil
}

// reservation holds host ports as a listening program would, so that the
// kernel arbitrates with every other program, and chooses a free port where
// none is asked. Traffic never reaches these sockets: it is redirected before.
type reservation []int

// reserve takes the ports, writing the chosen ones into ports. On failure it
// holds nothing.
func reserve(ports []PortMapping) (reservation, error) {
	var r reservation
	for i := range ports {
		fd, err := reserveFirst(&ports[i])
		if err != nil {
			r.close()
			return nil, err
		}
		if fd >= 0 {
			r = append(r, fd)
		}
	}
	return r, nil
}

func (r reservation) close() {
	for _, fd := range r {
		// Closing a socket that never carried data has no failure to report.
		_ = unix.Close(fd)
	}
}

// reserveFirst takes p's port, or the first of its range that is free.
func reserveFirst(p *PortMapping) (int, error) {
	first, end := p.HostPort, p.HostPortEnd
	p.HostPortEnd = 0
	for port := uint32(first); ; port++ {
		p.HostPort = uint16(port)
		fd, err := reservePort(p)
		if !fault.Is(err, fault.Conflict) || end == 0 {
			return fd, err
		}
		if port == uint32(end) {
			return -1, fault.New(fault.Conflict, "all host ports %d-%d/%s are in use", first, end, p.Protocol).
				Hint("choose other host ports, or see who has them with: ss -lntup")
		}
	}
}

// reservePort returns -1 for a protocol whose sockets this kernel lacks:
// forwarding it needs none.
func reservePort(p *PortMapping) (int, error) {
	kind := unix.SOCK_STREAM
	if p.Protocol == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(p.Protocol.number()))
	if p.Protocol == SCTP && errors.Is(err, unix.EPROTONOSUPPORT) && p.HostPort != 0 {
		return -1, nil
	}
	if err != nil {
		return -1, kernelError(err, "reserve host port %d/%s", p.HostPort, p.Protocol)
	}
	if err := bindPort(fd, p, kind == unix.SOCK_STREAM); err != nil {
		return -1, errors.Join(portError(err, *p), unix.Close(fd))
	}
	return fd, nil
}

func bindPort(fd int, p *PortMapping, listen bool) error {
	if listen {
		// As any server does: connections of an earlier one that are still
		// closing must not stand in the way. Listening then excludes others.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	addr := &unix.SockaddrInet4{Port: int(p.HostPort)}
	if p.HostIP.IsValid() {
		addr.Addr = p.HostIP.As4()
	}
	if err := unix.Bind(fd, addr); err != nil {
		return err
	}
	if listen {
		if err := unix.Listen(fd, 0); err != nil {
			return err
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	p.HostPort = uint16(name.(*unix.SockaddrInet4).Port)
	return nil
}

func portError(err error, p PortMapping) error {
	where := fmt.Sprintf("%d/%s", p.HostPort, p.Protocol)
	if p.HostIP.IsValid() {
		where = fmt.Sprintf("%s:%s", p.HostIP, where)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fault.New(fault.Conflict, "%w", PortTakenError{p}).
			Hint("choose another host port, or see who has it with: ss -lntup 'sport = :%d'", p.HostPort)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fault.New(fault.Invalid, "host port %s: the address is not one of this machine's", where).
			Hint("list the machine's addresses with: ip -4 address")
	default:
		return fmt.Errorf("reserve host port %s: %w", where, err)
	}
}

// PortTakenError is a host port that somebody else has; the words are Docker's,
// which its clients look for.
type PortTakenError struct{ Port PortMapping }

func (e PortTakenError) Error() string {
	ip := e.Port.HostIP
	if !ip.IsValid() {
		ip = netip.IPv4Unspecified()
	}
	return fmt.Sprintf("Bind for %s:%d failed: port is already allocated", ip, e.Port.HostPort)
}

// forgetFlows removes what connection tracking remembers about the UDP and
// SCTP host ports among ports: such a flow has no end of its own, so a peer
// that keeps sending would keep reaching where the port led before.
func (n *Network) forgetFlows(ports []PortMapping) error {
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		if p.Protocol != TCP {
			filters = append(filters, hostPortFlow(p))
		}
	}
	if len(filters) == 0 {
		return nil
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...); err != nil {
		return fmt.Errorf("forget tracked flows: %w", err)
	}
	return nil
}

// hostPortFlow matches the flows to a host port.
type hostPortFlow PortMapping

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (p hostPortFlow) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != p.Protocol.number() || f.Forward.DstPort != p.HostPort {
		return false
	}
	dst, ok := netip.AddrFromSlice(f.Forward.DstIP)
	return ok && (!p.HostIP.IsValid() || dst.Unmap() == p.HostIP)
}
