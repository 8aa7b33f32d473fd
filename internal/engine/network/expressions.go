package network

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers of nftables' machine. The first 16-byte register and the first
// 4-byte one are the same memory; a concatenation fills 4-byte ones in a row.
const (
	reg   = unix.NFT_REG_1
	reg32 = unix.NFT_REG32_00
)

// Offsets in the IPv4 header, and of the destination port in TCP's, UDP's and SCTP's.
const (
	saddrOffset = 12
	daddrOffset = 16
	dportOffset = 2
)

// icmpPortUnreachable is the code that makes a connecting program see "connection refused".
const icmpPortUnreachable = 3

func address(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: net.IPv4len}
}

// iface matches (or, with is false, excludes) the name of an interface.
func iface(key expr.MetaKey, name string, is bool) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg},
		&expr.Cmp{Op: cmpOp(is), Register: reg, Data: data},
	}
}

// inPrefix matches (or excludes) an address of the IPv4 header.
func inPrefix(offset uint32, p netip.Prefix, is bool) []expr.Any {
	return []expr.Any{
		address(offset, reg),
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: net.IPv4len,
			Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, net.IPv4len),
		},
		&expr.Cmp{Op: cmpOp(is), Register: reg, Data: p.Masked().Addr().AsSlice()},
	}
}

func cmpOp(is bool) expr.CmpOp {
	if is {
		return expr.CmpOpEq
	}
	return expr.CmpOpNeq
}

// localDestination matches packets to an address of this machine.
func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// hostPort looks the destination up in one of the host port maps and
// redirects it to the container found; without one the rule does not match.
func (f *firewall) hostPort(m *nftables.Set) []expr.Any {
	var key []expr.Any
	next := uint32(reg32)
	if m == f.byAddr {
		key = append(key, address(daddrOffset, next))
		next++
	}
	return append(key,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: dportOffset, Len: 2},
		&expr.Lookup{SourceRegister: reg32, DestRegister: reg32, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32, RegProtoMin: reg32 + 1, Specified: true},
	)
}

// toItself matches what a container with host ports sends to its own address:
// the packet has come through one of those ports.
func (f *firewall) toItself() []expr.Any {
	return []expr.Any{
		address(saddrOffset, reg32),
		address(daddrOffset, reg32+1),
		&expr.Lookup{SourceRegister: reg32, SetName: f.hairpin.Name, SetID: f.hairpin.ID},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
