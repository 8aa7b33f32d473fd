package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/ferryos/ferry/internal/fault"
)

// addresses hands out the container addresses of a subnet in turn, so that an
// address just given back is the last to be used again: caches of it
// elsewhere (ARP, connection tracking, clients) have gone stale by then.
type addresses struct {
	subnet      netip.Prefix
	first, last uint32 // offsets in the subnet of the first address handed out and of the one after the last
	reserved    map[netip.Addr]bool
	remedy      string // when all are in use

	mu   sync.Mutex // a leaf: nothing is called while it is held
	next uint32     // offset in the subnet of the first address to try
	used map[netip.Addr]bool
}

// The offsets in the node's subnet that are never handed out, from its start:
// the network address and the gateway. The broadcast address is the last.
const reservedOffsets = 2

// newAddresses hands out the node's own addresses.
func newAddresses(subnet netip.Prefix) *addresses {
	a := &addresses{subnet: subnet.Masked(), next: reservedOffsets, first: reservedOffsets, used: map[netip.Addr]bool{},
		remedy: "remove containers, or set network.podCIDR to a larger range"}
	a.last = a.size() - 1
	return a
}

// newAddressesOf hands out those of a network of its user's.
func newAddressesOf(d Definition) *addresses {
	a := &addresses{subnet: d.Subnet, first: 1, used: map[netip.Addr]bool{}, reserved: map[netip.Addr]bool{d.Gateway: true},
		remedy: "remove containers, or make a network with a larger subnet"}
	a.last = a.size() - 1
	for _, addr := range d.Reserved {
		a.reserved[addr] = true
	}
	if d.Range.IsValid() {
		a.first = max(a.first, a.offset(d.Range.Addr()))
		a.last = min(a.last, a.offset(d.Range.Addr())+1<<(32-d.Range.Bits()))
	}
	a.next = a.first
	return a
}

// gateway is the first address of the subnet.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

func (a *addresses) size() uint32 { return 1 << (32 - a.subnet.Bits()) }

func (a *addresses) at(offset uint32) netip.Addr {
	base := a.subnet.Addr().As4()
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+offset)
	return netip.AddrFrom4(b)
}

func (a *addresses) offset(addr netip.Addr) uint32 {
	base, b := a.subnet.Addr().As4(), addr.As4()
	return binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:])
}

// startAt makes offset the first to be tried; an offset outside the subnet
// starts from its beginning.
func (a *addresses) startAt(offset uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if offset < a.first || offset >= a.last {
		offset = a.first
	}
	a.next = offset
}

// take returns a free address and the offset to start at after a restart.
func (a *addresses) take() (addr netip.Addr, next uint32, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range a.last - a.first {
		if a.next >= a.last {
			a.next = a.first
		}
		addr = a.at(a.next)
		a.next++
		if !a.used[addr] && !a.reserved[addr] {
			a.used[addr] = true
			return addr, a.next, nil
		}
	}
	return netip.Addr{}, 0, fault.New(fault.Unavailable, "no free address is left in %s", a.subnet).Hint("%s", a.remedy)
}

// takeThis takes an address that somebody asks for by name.
func (a *addresses) takeThis(addr netip.Addr) error {
	if err := a.check(addr); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used[addr] {
		return fault.New(fault.Conflict, "address %s is already in use", addr).Hint("choose another address of %s", a.subnet)
	}
	a.used[addr] = true
	return nil
}

// check refuses an address that no container of the subnet can have.
func (a *addresses) check(addr netip.Addr) error {
	switch {
	case !a.subnet.Contains(addr):
		return fault.New(fault.Invalid, "address %s is not in the network's subnet %s", addr, a.subnet)
	case a.offset(addr) == 0 || a.offset(addr) == a.size()-1:
		return fault.New(fault.Invalid, "address %s is the network's own or its broadcast address", addr)
	case a.reserved[addr]:
		return fault.New(fault.Invalid, "address %s is reserved: the gateway's, or an auxiliary one", addr)
	}
	return nil
}

// claim marks an address of an existing lease as used.
func (a *addresses) claim(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used[addr] = true
}

// release gives an address back; one that is not taken is ignored.
func (a *addresses) release(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.used, addr)
}

// The names and the hardware address of an address' interfaces follow from it:
// the pair exists before the container that gets it is known, addresses are
// unique on the machine, and neighbour caches stay right when one is reused.

// linkPrefix starts the name of the host's end of every pair.
const linkPrefix = "fv"

func linkName(addr netip.Addr) string {
	b := addr.As4()
	return fmt.Sprintf("%s%02x%02x%02x%02x", linkPrefix, b[0], b[1], b[2], b[3])
}

// hardwareAddr is locally administered and unicast.
func hardwareAddr(addr netip.Addr) net.HardwareAddr {
	b := addr.As4()
	return net.HardwareAddr{0x02, 0xfe, b[0], b[1], b[2], b[3]}
}
