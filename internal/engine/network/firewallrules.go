package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The rules of networks that people make are told from each other by a comment.
func networkMark(d Definition) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, "network "+d.ID)
}

// add adds a network's rules to the installed table.
func (f *firewall) add(d Definition) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	f.addRules(c, d)
	if err := c.Flush(); err != nil {
		return kernelError(err, "add network %s to nftables table %s", d.Name, f.table.Name)
	}
	return nil
}

// addRules adds them to the chains of addChains.
func (f *firewall) addRules(c *nftables.Conn, d Definition) {
	in, out := expr.MetaKey(expr.MetaKeyIIFNAME), expr.MetaKey(expr.MetaKeyOIFNAME)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	masquerade := []expr.Any{&expr.Masq{}}
	drop := verdict(expr.VerdictDrop)
	rule := func(chain string, exprs ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: f.table, Chain: &nftables.Chain{Name: chain, Table: f.table}, Exprs: concat(exprs...), UserData: networkMark(d)})
	}
	rule("raw", iface(in, d.Bridge, true), inPrefix(daddrOffset, loopback, true), drop)
	rule("raw", iface(in, d.Bridge, false), iface(in, "lo", false), inPrefix(daddrOffset, d.Subnet, true), drop)
	// Neighbours talk past this machine, so the answer of one that was reached by
	// its host port comes back here only if the question seems to come from here.
	rule("postrouting", iface(out, d.Bridge, true), inPrefix(saddrOffset, d.Subnet, true), redirected(), masquerade)
	rule("postrouting", iface(out, d.Bridge, true), inPrefix(saddrOffset, loopback, true), masquerade)
	if d.Internal {
		rule("forward", iface(in, d.Bridge, true), iface(out, d.Bridge, false), drop)
		rule("forward", iface(in, d.Bridge, false), iface(out, d.Bridge, true), drop)
		return
	}
	rule("postrouting", iface(out, d.Bridge, false), inPrefix(saddrOffset, d.Subnet, true), inPrefix(daddrOffset, d.Subnet, false), masquerade)
}

// ipsDstNAT is the connection tracking status of what was sent elsewhere: IPS_DST_NAT.
const ipsDstNAT = 1 << 5

// redirected matches packets of connections to a host port.
func redirected() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// drop takes a network's rules out of the table. Idempotent.
func (f *firewall) drop(d Definition) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	for _, name := range []string{"raw", "postrouting", "forward"} {
		rules, err := c.GetRules(f.table, &nftables.Chain{Name: name, Table: f.table})
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list the rules of nftables chain %s: %w", name, err)
		}
		for _, r := range rules {
			if bytes.Equal(r.UserData, networkMark(d)) {
				if err := c.DelRule(r); err != nil {
					return fmt.Errorf("remove network %s from nftables: %w", d.Name, err)
				}
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove network %s from nftables: %w", d.Name, err)
	}
	return nil
}
