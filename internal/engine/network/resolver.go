package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/ferryos/ferry/internal/engine/network/names"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ResolverAddr is where containers on a network that has names ask for them.
// It is on the loopback of each one's own namespace.
var ResolverAddr = netip.MustParseAddr("127.0.0.11")

const dnsPort = 53

// startResolver answers the attachment's questions for names from inside its
// namespace. The sockets have ports of the kernel's choice, to which port 53 of
// ResolverAddr leads there: the container may itself serve names on every
// address. Sockets end with this process; the next one makes others.
func (n *Network) startResolver(a *attached) error {
	var udp net.PacketConn
	var tcp net.Listener
	err := inNetns(a.slot.path, func() (err error) {
		if udp, err = net.ListenPacket("udp4", net.JoinHostPort(ResolverAddr.String(), "0")); err != nil {
			return err
		}
		if tcp, err = net.Listen("tcp4", net.JoinHostPort(ResolverAddr.String(), "0")); err != nil {
			return errors.Join(err, udp.Close())
		}
		err = leadNamesTo(uint16(udp.LocalAddr().(*net.UDPAddr).Port), uint16(tcp.Addr().(*net.TCPAddr).Port))
		if err != nil {
			return errors.Join(err, udp.Close(), tcp.Close())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("answer names in %s: %w", a.slot.path, err)
	}
	d := directory{n, a.ID}
	dial := new(net.Dialer).DialContext // the machine's servers may be on its loopback
	if len(a.Servers) > 0 {
		path := a.slot.path
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return n.DialPod(ctx, path, network, address)
		}
	}
	server := names.Serve(n.serving(), names.Options{UDP: udp, TCP: tcp, Directory: d, Servers: d.servers, Dial: dial, Log: n.o.Log})
	n.mu.Lock()
	defer n.mu.Unlock()
	a.resolver = server
	return nil
}

// leadNamesTo leads what the calling thread's namespace sends to port 53 of
// ResolverAddr to these ports of it.
func leadNamesTo(udp, tcp uint16) error {
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	table := &nftables.Table{Name: tablePrefix + "names", Family: nftables.TableFamilyIPv4}
	c.AddTable(table) // so that deleting it cannot fail
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{Name: "output", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	for protocol, port := range map[byte]uint16{unix.IPPROTO_UDP: udp, unix.IPPROTO_TCP: tcp} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: concat(
			inPrefix(daddrOffset, netip.PrefixFrom(ResolverAddr, 32), true),
			[]expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{protocol}},
				&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: dportOffset, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(dnsPort)},
				&expr.Immediate{Register: reg, Data: ResolverAddr.AsSlice()},
				&expr.Immediate{Register: reg + 1, Data: binaryutil.BigEndian.PutUint16(port)},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: reg + 1, Specified: true},
			})})
	}
	if err := c.Flush(); err != nil {
		return kernelError(err, "lead names to the resolver")
	}
	return nil
}

// directory is what one attachment can know of others.
type directory struct {
	n  *Network
	id string
}

// Addresses implements names.Directory. A container is found by each of its
// names on the networks that both are on, and by NAME.NETWORK.
func (d directory) Addresses(name string) ([]netip.Addr, bool) {
	var found []netip.Addr
	d.each(func(own, other Endpoint) {
		name := name
		if target, linked := own.Links[name]; linked {
			name = target
		}
		name, _ = strings.CutSuffix(name, "."+strings.ToLower(own.NetworkName))
		is := func(s string) bool { return strings.EqualFold(s, name) }
		if slices.ContainsFunc(other.Names, is) || slices.ContainsFunc(other.Aliases, is) {
			found = append(found, other.Address.Addr())
		}
	})
	// Who asks takes the first, mostly: of several that share a name each is it at times.
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return found, len(found) > 0
}

// Name implements names.Directory.
func (d directory) Name(addr netip.Addr) (name string, known bool) {
	d.each(func(own, other Endpoint) {
		if other.Address.Addr() == addr && len(other.Names) > 0 {
			name, known = other.Names[0]+"."+own.NetworkName, true
		}
	})
	return name, known
}

// each calls f for each endpoint on a network that has names and that the
// attachment is on too. mu is held meanwhile.
func (d directory) each(f func(own, other Endpoint)) {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	a := d.n.attached[d.id]
	if a == nil {
		return
	}
	for _, own := range a.Endpoints {
		if own.Network == DefaultNetwork {
			continue
		}
		for _, b := range d.n.attached {
			for _, other := range b.Endpoints {
				if other.Network == own.Network {
					f(own, other)
				}
			}
		}
	}
}

// servers are whom to ask for other names: nobody while no network leads
// outside, else those the attachment was given, else this machine's.
func (d directory) servers() []string {
	d.n.mu.Lock()
	a := d.n.attached[d.id]
	var given []string
	out := a != nil && a.portTarget().IsValid()
	if out {
		given = a.Servers
	}
	d.n.mu.Unlock()
	if !out {
		return nil
	}
	if len(given) == 0 {
		data, err := os.ReadFile(hostResolvConf)
		if err != nil && !os.IsNotExist(err) {
			d.n.o.Log.Warn("the host's resolver settings", "err", err)
		}
		given = nameServers(data)
	}
	var list []string
	for _, s := range given {
		list = append(list, net.JoinHostPort(s, "53"))
	}
	return list
}

// nameServers reads the addresses of resolv.conf(5), those of this machine too.
func nameServers(data []byte) []string {
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if addr, err := netip.ParseAddr(f[1]); err == nil {
				list = append(list, addr.String())
			}
		}
	}
	return list
}
