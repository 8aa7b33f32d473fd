package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tablePrefix starts the name of every Ferry's nftables table.
const tablePrefix = "ferry-"

// firewallTimeout bounds one exchange with the kernel, so that a lost answer
// is an error rather than a hang. The first one loads kernel modules, which
// takes an emulated machine longer than ten seconds.
const firewallTimeout = time.Minute

// firewall is the network's nftables table, of family ip:
//
//	raw          from the bridge to 127.0.0.0/8: drop (route_localnet would let it in);
//	             from outside to the containers' or the Services' range: drop. A machine
//	             beside this one could route both here. Host ports and replies come to
//	             an address of this machine, which becomes a container's only later
//	prerouting   host ports: dnat, by address and then for every local address
//	output       the same for connections from this machine
//	forward      from the bridge to a Service that no proxy rewrote: reject
//	local        the same for connections from this machine
//	postrouting  to outside: masquerade; from 127.0.0.0/8 or from a container to
//	             itself by its host port: masquerade, so that the answer comes back here
//
// Each network that people make has rules of the same kind in these chains; an
// internal one is cut off in forward instead of masqueraded.
//
// Host ports are elements of three maps, so adding one changes no rule.
type firewall struct {
	bridge           string
	subnet, services netip.Prefix

	mu                       sync.Mutex // one batch at a time; a leaf
	table                    *nftables.Table
	byAddr, anyAddr, hairpin *nftables.Set
}

func newFirewall(o Options) *firewall {
	f := &firewall{bridge: o.Bridge, subnet: o.Subnet, services: o.Services}
	f.table = &nftables.Table{Name: tablePrefix + o.Bridge, Family: nftables.TableFamilyIPv4}
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	f.byAddr = &nftables.Set{
		Table: f.table, Name: "hostports-by-address", IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
	}
	f.anyAddr = &nftables.Set{
		Table: f.table, Name: "hostports", IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
	f.hairpin = &nftables.Set{
		Table: f.table, Name: "published", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr),
	}
	return f
}

func openNftables() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(firewallTimeout))
	}))
}

// install replaces the table by one that holds the rules and the host ports of
// the attachments, in one step: packets see the old table or the new one.
func (f *firewall) install(attachments []Attachment, networks []Definition) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	c.AddTable(f.table) // so that deleting it cannot fail
	c.DelTable(f.table)
	c.AddTable(f.table)
	for _, s := range []*nftables.Set{f.byAddr, f.anyAddr, f.hairpin} {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("define nftables set %s: %w", s.Name, err)
		}
	}
	f.addChains(c)
	for _, d := range networks {
		f.addRules(c, d)
	}
	for _, a := range attachments {
		if err := f.elements(a, c.SetAddElements); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return kernelError(err, "install nftables table %s", f.table.Name)
	}
	return nil
}

func (f *firewall) addChains(c *nftables.Conn) {
	nat := nftables.ChainTypeNAT
	pre := f.chain(c, "prerouting", nat, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := f.chain(c, "output", nat, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, chain := range []*nftables.Chain{pre, out} {
		f.rule(c, chain, f.hostPort(f.byAddr))
		f.rule(c, chain, concat(localDestination(), f.hostPort(f.anyAddr)))
	}
	post := f.chain(c, "postrouting", nat, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	masquerade := []expr.Any{&expr.Masq{}}
	f.rule(c, post, concat(iface(expr.MetaKeyOIFNAME, f.bridge, false), inPrefix(saddrOffset, f.subnet, true),
		inPrefix(daddrOffset, f.subnet, false), masquerade))
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	f.rule(c, post, concat(iface(expr.MetaKeyOIFNAME, f.bridge, true), inPrefix(saddrOffset, loopback, true), masquerade))
	f.rule(c, post, concat(iface(expr.MetaKeyOIFNAME, f.bridge, true), f.toItself(), masquerade))

	filter := nftables.ChainTypeFilter
	raw := f.chain(c, "raw", filter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	f.rule(c, raw, concat(iface(expr.MetaKeyIIFNAME, f.bridge, true), inPrefix(daddrOffset, loopback, true), verdict(expr.VerdictDrop)))
	for _, r := range []netip.Prefix{f.subnet, f.services} {
		if r.IsValid() {
			f.rule(c, raw, concat(iface(expr.MetaKeyIIFNAME, f.bridge, false), iface(expr.MetaKeyIIFNAME, "lo", false),
				inPrefix(daddrOffset, r, true), verdict(expr.VerdictDrop)))
		}
	}
	for _, on := range []struct {
		name string
		hook *nftables.ChainHook
		dir  expr.MetaKey
	}{{"forward", nftables.ChainHookForward, expr.MetaKeyIIFNAME}, {"local", nftables.ChainHookOutput, expr.MetaKeyOIFNAME}} {
		chain := f.chain(c, on.name, filter, on.hook, nftables.ChainPriorityFilter)
		if !f.services.IsValid() {
			continue
		}
		f.rule(c, chain, concat(iface(on.dir, f.bridge, true), inPrefix(daddrOffset, f.services, true),
			[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: icmpPortUnreachable}}))
	}
}

func (f *firewall) chain(c *nftables.Conn, name string, t nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return c.AddChain(&nftables.Chain{Name: name, Table: f.table, Type: t, Hooknum: hook, Priority: prio})
}

func (f *firewall) rule(c *nftables.Conn, chain *nftables.Chain, exprs []expr.Any) {
	c.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: exprs})
}

// publish adds the host ports of a; it fails if one is already mapped.
func (f *firewall) publish(a Attachment) error {
	return f.change(a, (*nftables.Conn).SetAddElements)
}

// withdraw removes the host ports of a. Those already gone are no error.
func (f *firewall) withdraw(a Attachment) error {
	err := f.change(a, (*nftables.Conn).SetDeleteElements)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

type changeElements func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error

func (f *firewall) change(a Attachment, change changeElements) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	err = f.elements(a, func(s *nftables.Set, e []nftables.SetElement) error { return change(c, s, e) })
	if err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change the host ports of %s in nftables: %w", a.ID, err)
	}
	return nil
}

// elements calls change with what the ports of a are in each set.
func (f *firewall) elements(a Attachment, change func(*nftables.Set, []nftables.SetElement) error) error {
	if len(a.Ports) == 0 {
		return nil
	}
	ip := a.portTarget()
	if !ip.IsValid() {
		return nil
	}
	var byAddr, anyAddr []nftables.SetElement
	for _, p := range a.Ports {
		e := nftables.SetElement{Val: concat(word(ip.AsSlice()), port(p.ContainerPort))}
		if p.HostIP.IsValid() {
			e.Key = concat(word(p.HostIP.AsSlice()), word([]byte{p.Protocol.number()}), port(p.HostPort))
			byAddr = append(byAddr, e)
			continue
		}
		e.Key = concat(word([]byte{p.Protocol.number()}), port(p.HostPort))
		anyAddr = append(anyAddr, e)
	}
	self := []nftables.SetElement{{Key: concat(word(ip.AsSlice()), word(ip.AsSlice()))}}
	for _, s := range []struct {
		set *nftables.Set
		el  []nftables.SetElement
	}{{f.byAddr, byAddr}, {f.anyAddr, anyAddr}, {f.hairpin, self}} {
		if len(s.el) == 0 {
			continue
		}
		if err := change(s.set, s.el); err != nil {
			return fmt.Errorf("encode the host ports of %s: %w", a.ID, err)
		}
	}
	return nil
}

// remove deletes the table. Idempotent.
func (f *firewall) remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	c.AddTable(f.table)
	c.DelTable(f.table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", f.table.Name, err)
	}
	return nil
}

// Docker, where it had to turn forwarding on itself, drops everything else
// that is forwarded: an accept in our own table does not overrule that, so the
// exception has to be in its chain.
const (
	foreignTable = "filter"
	foreignChain = "FORWARD"
)

func (f *firewall) foreignMark(bridge string) []byte {
	mark := f.table.Name
	if bridge != f.bridge {
		mark += " " + bridge
	}
	return userdata.AppendString(nil, userdata.TypeComment, mark)
}

// acceptInForeign makes ip filter FORWARD accept what comes from and goes to
// one of our bridges, where that chain drops by policy and has no such rule yet. It
// reports whether our rules are there afterwards.
func (f *firewall) acceptInForeign(bridge string) (bool, error) {
	c, err := openNftables()
	if err != nil {
		return false, kernelError(err, "open nf_tables")
	}
	chain, err := findForeign(c)
	if err != nil || chain == nil {
		return false, err
	}
	rules, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return false, fmt.Errorf("list rules of %s %s: %w", foreignTable, foreignChain, err)
	}
	if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return bytes.Equal(r.UserData, f.foreignMark(bridge)) }) {
		return true, nil
	}
	if chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
		return false, nil
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		// The shape that iptables-nft itself writes, so that it can still list the chain.
		exprs := concat(iface(key, bridge, true), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictAccept))
		c.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs, UserData: f.foreignMark(bridge)})
	}
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("accept %s in %s %s: %w", bridge, foreignTable, foreignChain, err)
	}
	return true, nil
}

// removeFromForeign takes the rules of one of our bridges, or all of them, out
// of ip filter FORWARD. Idempotent.
func (f *firewall) removeFromForeign(bridge string) error {
	c, err := openNftables()
	if err != nil {
		return kernelError(err, "open nf_tables")
	}
	chain, err := findForeign(c)
	if err != nil || chain == nil {
		return err
	}
	rules, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("list rules of %s %s: %w", foreignTable, foreignChain, err)
	}
	for _, r := range rules {
		if bridge == "" && f.isOurs(r) || bridge != "" && bytes.Equal(r.UserData, f.foreignMark(bridge)) {
			if err := c.DelRule(r); err != nil {
				return fmt.Errorf("remove our rule from %s %s: %w", foreignTable, foreignChain, err)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove our rules from %s %s: %w", foreignTable, foreignChain, err)
	}
	return nil
}

func (f *firewall) isOurs(r *nftables.Rule) bool {
	mark, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && (mark == f.table.Name || strings.HasPrefix(mark, f.table.Name+" "))
}

func findForeign(c *nftables.Conn) (*nftables.Chain, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, kernelError(err, "list nftables chains")
	}
	for _, ch := range chains {
		if ch.Table.Name == foreignTable && ch.Name == foreignChain {
			return ch, nil
		}
	}
	return nil, nil
}

// forwardingUser names another program that needs this machine to forward
// packets, "" if none is known: another Ferry, or Docker.
func (f *firewall) forwardingUser() (string, error) {
	c, err := openNftables()
	if err != nil {
		return "", kernelError(err, "open nf_tables")
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return "", kernelError(err, "list nftables chains")
	}
	for _, ch := range chains {
		if strings.HasPrefix(ch.Table.Name, tablePrefix) && ch.Table.Name != f.table.Name {
			return "the Ferry of table " + ch.Table.Name, nil
		}
		if strings.HasPrefix(ch.Name, "DOCKER") {
			return "Docker", nil
		}
	}
	return "", nil
}

// word pads b to a multiple of the 4 bytes that nftables' registers have.
func word(b []byte) []byte {
	return append(slices.Clone(b), make([]byte, (4-len(b)%4)%4)...)
}

func port(p uint16) []byte { return word(binary.BigEndian.AppendUint16(nil, p)) }

func concat[T any](parts ...[]T) []T { return slices.Concat(parts...) }
