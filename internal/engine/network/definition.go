package network

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ferryos/ferry/internal/fault"
)

// DefaultNetwork is the ID and the name of the node's own network, on which an
// attachment is that asks for no other.
const DefaultNetwork = "bridge"

// Definition is a network that its user made beside the node's: a bridge with a
// subnet of its own, whose containers know each other by name. It lasts until
// RemoveNetwork, across boots and Teardown.
type Definition struct {
	ID      string    `json:"id"` // as newID, chosen by CreateNetwork
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Subnet is the zero Prefix for one that CreateNetwork chooses, Gateway the
	// zero Addr for its first address.
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
	// Range is the part of Subnet from which addresses are handed out; the zero
	// Prefix is all of it. Reserved are addresses that never are.
	Range    netip.Prefix          `json:"range,omitzero"`
	Reserved map[string]netip.Addr `json:"reserved,omitempty"`
	// Internal cuts the network off from everything but this machine itself.
	Internal bool `json:"internal,omitempty"`
	// Isolated keeps its containers from reaching each other.
	Isolated bool `json:"isolated,omitempty"`
	MTU      int  `json:"mtu,omitempty"` // 0: as the node's own
	// Bridge is the name of the Linux bridge; "" for one that CreateNetwork chooses.
	Bridge string            `json:"bridge"`
	Labels map[string]string `json:"labels,omitempty"`
	Extra  []byte            `json:"extra,omitempty"` // opaque: what its owner must give back
}

// segment is a network as containers are attached to it: the node's own or a
// Definition's. Its fields are constant but for joining.
type segment struct {
	Definition
	addrs   *addresses
	routed  bool  // the node's own: see the package comment
	index   int   // of the bridge
	broken  error // why there is no bridge: it could not be made at the start
	joining int   // endpoints that are being made; guarded by Network.mu
}

var (
	validNetworkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	validBridgeName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)
)

// MTUs that IPv4 and the kernel's bridge allow.
const (
	minMTU = 68
	maxMTU = 65535
)

// CreateNetwork makes a network of d, of which ID and Created are not looked
// at, and returns it as it is: with all that was left to choose. A Conflict
// means that the name, the subnet or the bridge is in use.
func (n *Network) CreateNetwork(ctx context.Context, d Definition) (Definition, error) {
	n.defining.Lock()
	defer n.defining.Unlock()
	d, err := n.complete(d)
	if err != nil {
		return Definition{}, fmt.Errorf("create network %s: %w", d.Name, err)
	}
	if err := ctx.Err(); err != nil {
		return Definition{}, err
	}
	s := &segment{Definition: d, addrs: newAddressesOf(d)}
	// The definition comes first: a process killed in between makes the rest at
	// its next start.
	err = n.definitions.save(d)
	if err == nil {
		err = n.raise(s)
	}
	if err == nil {
		err = n.firewall.add(d)
	}
	if err == nil {
		err = n.acceptForwarding(d.Bridge)
	}
	if err != nil {
		return Definition{}, errors.Join(fmt.Errorf("create network %s: %w", d.Name, err), n.lower(d), n.definitions.remove(d.ID))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.segments[d.ID] = s
	return d, nil
}

// complete validates d and fills what it leaves open.
func (n *Network) complete(d Definition) (Definition, error) {
	if !validNetworkName.MatchString(d.Name) {
		return d, fault.New(fault.Invalid, "name %q must match %s", d.Name, validNetworkName)
	}
	have := n.Definitions()
	if d.Name == DefaultNetwork || slices.ContainsFunc(have, func(o Definition) bool { return o.Name == d.Name }) {
		return d, fault.New(fault.Conflict, "network with name %s already exists", d.Name)
	}
	d.ID, d.Created = newID(), time.Now().UTC()
	if d.MTU != 0 && (d.MTU < minMTU || d.MTU > maxMTU) {
		return d, fault.New(fault.Invalid, "MTU %d is not between %d and %d", d.MTU, minMTU, maxMTU)
	}
	if d.Bridge != "" && !validBridgeName.MatchString(d.Bridge) {
		return d, fault.New(fault.Invalid, "bridge name %q must match %s", d.Bridge, validBridgeName)
	}
	if d.Bridge == "" {
		d.Bridge = bridgeName(n.o.Bridge, d.ID)
	}
	if link, err := linkOf(n.nl, d.Bridge); err != nil {
		return d, err
	} else if link != nil {
		return d, fault.New(fault.Conflict, "interface %s exists already", d.Bridge)
	}
	if err := n.completeSubnet(&d, have); err != nil {
		return d, err
	}
	return d, checkAddresses(d)
}

// completeSubnet chooses a subnet, or refuses one that is not free.
func (n *Network) completeSubnet(d *Definition, have []Definition) error {
	used, err := n.usedRanges()
	if err != nil {
		return err
	}
	own := []usedRange{{what: "network.podCIDR", Prefix: n.o.Subnet}}
	if n.o.Services.IsValid() {
		own = append(own, usedRange{what: "network.serviceCIDR", Prefix: n.o.Services})
	}
	for _, o := range have {
		own = append(own, usedRange{what: "network " + o.Name, Prefix: o.Subnet})
	}
	if !d.Subnet.IsValid() {
		if d.Gateway.IsValid() || d.Range.IsValid() || len(d.Reserved) > 0 {
			return fault.New(fault.Invalid, "a gateway or a range of addresses needs a subnet").Hint("give one with --subnet")
		}
		d.Subnet, err = freeSubnet(n.o.Networks, append(own, used...))
		if err != nil {
			return err
		}
	} else {
		for _, u := range used {
			if u.what == "address" { // a wide route leads past a part of it that is given here
				own = append(own, usedRange{what: "the address range of " + n.linkLabel(u.index), Prefix: u.Prefix})
			}
		}
		for _, u := range own {
			if u.Overlaps(d.Subnet) {
				return fault.New(fault.Conflict, "Pool overlaps with other one on this address space: %s overlaps %s, %s", d.Subnet, u.what, u.Prefix)
			}
		}
	}
	if !d.Gateway.IsValid() {
		d.Gateway = gateway(d.Subnet)
		if d.Range.IsValid() && d.Range.Masked().Addr() != d.Subnet.Masked().Addr() {
			d.Gateway = d.Range.Masked().Addr() // as Docker does
		}
	}
	return nil
}

// maxSubnetBits is the longest prefix with room for a gateway and a container.
const maxSubnetBits = 30

// checkAddresses refuses addresses that do not fit together.
func checkAddresses(d Definition) error {
	if !d.Subnet.Addr().Is4() || d.Subnet.Bits() < 8 || d.Subnet.Bits() > maxSubnetBits {
		return fault.New(fault.Invalid, "subnet %s is no IPv4 range between /8 and /%d", d.Subnet, maxSubnetBits)
	}
	if d.Subnet != d.Subnet.Masked() {
		return fault.New(fault.Invalid, "invalid subnet %s: it should be %s", d.Subnet, d.Subnet.Masked())
	}
	if d.Range.IsValid() && (!d.Range.Addr().Is4() || d.Range != d.Range.Masked() || d.Range.Bits() < d.Subnet.Bits() || !d.Subnet.Contains(d.Range.Addr())) {
		return fault.New(fault.Invalid, "the range %s is no part of the subnet %s", d.Range, d.Subnet)
	}
	plain := newAddresses(d.Subnet)
	for _, addr := range append(slices.Collect(maps.Values(d.Reserved)), d.Gateway) {
		if err := plain.check(addr); err != nil {
			return err
		}
	}
	for name, addr := range d.Reserved {
		if addr == d.Gateway {
			return fault.New(fault.Invalid, "the auxiliary address %s=%s is the gateway", name, addr)
		}
	}
	return nil
}

// usedRanges are the ranges that this machine reaches, the default route aside.
func (n *Network) usedRanges() ([]usedRange, error) {
	var used []usedRange
	err := n.eachRange(func(what string, p netip.Prefix, index int) { used = append(used, usedRange{what, p, index}) })
	return used, err
}

// subnetsInPool is into how many networks' subnets the range for them is cut.
const subnetsInPool = 8 // bits

// freeSubnet returns the first part of pool that overlaps nothing.
func freeSubnet(pool netip.Prefix, used []usedRange) (netip.Prefix, error) {
	if !pool.IsValid() {
		return netip.Prefix{}, fault.New(fault.Unsupported, "there is no range to choose a subnet from").Hint("give one with --subnet")
	}
	bits := min(pool.Bits()+subnetsInPool, maxSubnetBits)
	whole := newAddresses(pool)
	for i := range uint32(1) << (bits - pool.Bits()) {
		p := netip.PrefixFrom(whole.at(i<<(32-bits)), bits)
		if !slices.ContainsFunc(used, func(u usedRange) bool { return u.Overlaps(p) }) {
			return p, nil
		}
	}
	return netip.Prefix{}, fault.New(fault.Unavailable, "all subnets of %s are in use", pool).
		Hint("remove networks, set network.userCIDR to another range, or give a subnet with --subnet")
}

// bridgeName is short enough for an interface, says whose bridge it is and
// differs between two Ferrys.
func bridgeName(main, id string) string {
	sum := sha256.Sum256([]byte(main + " " + id))
	return main[:min(len(main), 6)] + "-" + hex.EncodeToString(sum[:4])
}

// RemoveNetwork removes a network. It is a Conflict while something is on it.
func (n *Network) RemoveNetwork(_ context.Context, id string) error {
	n.defining.Lock()
	defer n.defining.Unlock()
	n.mu.Lock()
	s, ok := n.segments[id]
	if !ok || s.routed {
		n.mu.Unlock()
		return fault.New(fault.NotFound, "network %s not found", id)
	}
	if s.joining > 0 || n.hasMembers(id) {
		n.mu.Unlock()
		return fault.New(fault.Conflict, "network %s has active endpoints", s.Name).Hint("disconnect its containers, or stop them")
	}
	delete(n.segments, id) // from here on nothing joins
	n.mu.Unlock()
	err := n.lower(s.Definition)
	if err == nil {
		err = n.definitions.remove(id)
	}
	if err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.segments[id] = s
		return fmt.Errorf("remove network %s: %w", s.Name, err)
	}
	return nil
}

// hasMembers reports whether something is on a network; mu is held.
func (n *Network) hasMembers(id string) bool {
	for _, a := range n.attached {
		if slices.ContainsFunc(a.Endpoints, func(e Endpoint) bool { return e.Network == id }) {
			return true
		}
	}
	return false
}

// Definitions lists the networks that were made, oldest first.
func (n *Network) Definitions() []Definition {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []Definition
	for _, s := range n.segments {
		if !s.routed {
			list = append(list, s.Definition)
		}
	}
	slices.SortFunc(list, func(a, b Definition) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// raise makes the network's bridge, or takes over the one of an earlier run.
func (n *Network) raise(s *segment) (err error) {
	if err := n.changes.record(Change{Kind: ChangeInterface, Name: s.Bridge}); err != nil {
		return err
	}
	s.index, err = n.raiseBridge(s.Bridge, cmp.Or(s.MTU, n.mtu), netip.PrefixFrom(s.Gateway, s.Subnet.Bits()))
	if err != nil {
		return err
	}
	return setBridgeSysctls(s.Bridge)
}

// lower takes away what raise and the firewall made for a network. Idempotent.
func (n *Network) lower(d Definition) error {
	err := errors.Join(n.firewall.drop(d), n.firewall.removeFromForeign(d.Bridge), n.dropBridge(d.Bridge))
	if err != nil {
		return err
	}
	return n.changes.forget(ChangeInterface, d.Bridge)
}

// definitions keeps one file for each network. Unlike a lease it outlasts the
// boot, so it is on the disk before it counts.
type definitions struct {
	dir string
	log *slog.Logger
}

func (s definitions) path(id string) string { return filepath.Join(s.dir, id+leaseSuffix) }

func (s definitions) save(d Definition) error {
	if err := writeJSON(s.path(d.ID), d); err != nil {
		return fmt.Errorf("save network %s: %w", d.Name, err)
	}
	for _, path := range []string{s.path(d.ID), s.dir} {
		if err := syncPath(path); err != nil {
			return fmt.Errorf("save network %s: %w", d.Name, err)
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (s definitions) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network's file: %w", err)
	}
	return nil
}

// load reads every network. A file that cannot be read as one is left where it
// is, for whoever can mend it: the other networks are needed meanwhile.
func (s definitions) load() ([]Definition, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var all []Definition
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), leaseSuffix)
		if !ok {
			continue // the beginning of one that was not finished
		}
		var d Definition
		err := readJSON(s.path(id), &d)
		if err == nil && (d.ID != id || !validBridgeName.MatchString(d.Bridge)) {
			err = errors.New("the content does not fit the name")
		}
		if err = cmp.Or(err, checkAddresses(d)); err != nil {
			s.log.Error("network left aside, its file cannot be read", "path", s.path(id), "err", err)
			continue
		}
		all = append(all, d)
	}
	return all, nil
}
