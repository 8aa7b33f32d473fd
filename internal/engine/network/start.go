package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// open takes the state directory for this process and opens netlink.
func (n *Network) open() error {
	for _, dir := range []string{n.o.StateDir, n.leases.dir, n.definitions.dir, n.o.NetnsDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make network directory: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(n.o.StateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open network lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fault.New(fault.Conflict, "another process runs the network of %s: %w", n.o.StateDir, err).
			Hint("stop it with: ferry down")
		return errors.Join(err, lock.Close())
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return errors.Join(kernelError(err, "open netlink"), lock.Close())
	}
	n.lock, n.nl = lock, nl
	if err := n.changes.load(); err != nil {
		n.close()
		return err
	}
	return nil
}

func (n *Network) close() {
	n.nl.Close()
	if err := n.lock.Close(); err != nil {
		n.o.Log.Warn("network lock not closed", "err", err)
	}
	n.nl, n.lock = nil, nil
}

// setUp brings the machine to where containers can be attached.
func (n *Network) setUp(ctx context.Context) (err error) {
	if n.mtu = n.o.MTU; n.mtu == 0 {
		if n.mtu, err = outwardMTU(n.nl); err != nil {
			return err
		}
	}
	living, err := n.livingLeases()
	if err != nil {
		return err
	}
	defined, err := n.definitions.load()
	if err != nil {
		return err
	}
	if err := n.changes.record(Change{Kind: ChangeInterface, Name: n.o.Bridge}); err != nil {
		return err
	}
	if n.bridge, err = n.ensureBridge(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.raiseAll(defined); err != nil {
		return err
	}
	if err := n.takeOver(living); err != nil {
		return err
	}
	if err := n.setMachineSysctls(); err != nil {
		return err
	}
	if err := n.changes.record(Change{Kind: ChangeNftables, Name: "table ip " + n.firewall.table.Name}); err != nil {
		return err
	}
	if err := n.firewall.install(living, n.Definitions()); err != nil {
		return err
	}
	return n.acceptAllForwarding()
}

// raiseAll makes the bridges of the networks, after a boot, or takes over those
// of an earlier run. One that cannot be made is in the way of its own containers alone.
func (n *Network) raiseAll(defined []Definition) error {
	n.mu.Lock()
	n.segments = map[string]*segment{DefaultNetwork: n.ownSegment(n.bridge)}
	n.mu.Unlock()
	for _, d := range defined {
		s := &segment{Definition: d, addrs: newAddressesOf(d)}
		if s.broken = n.raise(s); s.broken != nil {
			n.o.Log.Error("network is not usable", "network", d.Name, "err", s.broken)
		}
		n.mu.Lock()
		n.segments[d.ID] = s
		n.mu.Unlock()
	}
	return nil
}

// setMachineSysctls sets what forwarding for containers needs.
func (n *Network) setMachineSysctls() error {
	// A container's packet to a neighbour comes in and goes out by the bridge.
	// The kernel would tell the sender to go straight there, and each such
	// redirect uses up the sender's share of ICMP, so that a "port unreachable"
	// never arrives. The setting is off only where "all" and the interface's
	// own are; other interfaces keep their own.
	for _, s := range []struct{ name, value string }{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv4.conf.all.send_redirects", "0"},
	} {
		if err := n.setSysctl(s.name, s.value); err != nil {
			return err
		}
	}
	return setBridgeSysctls(n.o.Bridge)
}

// setBridgeSysctls sets what goes with the bridge and is in no list of changes.
// route_localnet lets 127.0.0.1 reach host ports; the table's raw chain keeps
// containers away from what listens on loopback.
func setBridgeSysctls(bridge string) error {
	conf := "net/ipv4/conf/" + bridge + "/"
	return writeSysctls(map[string]string{conf + "send_redirects": "0", conf + "route_localnet": "1"})
}

// acceptAllForwarding is acceptForwarding for every network.
func (n *Network) acceptAllForwarding() error {
	errs := []error{n.acceptForwarding(n.o.Bridge)}
	for _, d := range n.Definitions() {
		errs = append(errs, n.acceptForwarding(d.Bridge))
	}
	return errors.Join(errs...)
}

// acceptForwarding makes an exception in Docker's chain where it would drop
// the containers' traffic.
func (n *Network) acceptForwarding(bridge string) error {
	there, err := n.firewall.acceptInForeign(bridge)
	if err != nil || !there {
		return err
	}
	return n.changes.record(Change{Kind: ChangeNftables, Name: "chain ip " + foreignTable + " " + foreignChain})
}

// livingLeases loads the leases whose namespace still exists and drops the
// others: the machine has been rebooted since.
func (n *Network) livingLeases() ([]Attachment, error) {
	all, err := n.leases.load()
	if err != nil {
		return nil, err
	}
	var living []Attachment
	for _, a := range all {
		if !isNetns(a.NetnsPath) {
			n.o.Log.Info("lease of a vanished namespace dropped", "id", a.ID, "ip", a.IP.Addr())
			if err := n.leases.remove(a.ID); err != nil {
				return nil, err
			}
			continue
		}
		if a.IP.IsValid() && a.IP.Masked() != n.o.Subnet {
			return nil, fault.New(fault.Conflict, "container %s still has the address %s, outside %s", a.ID, a.IP.Addr(), n.o.Subnet).
				Hint("network.podCIDR was changed while containers run: run ferry down first, or change it back")
		}
		living = append(living, a)
	}
	return living, nil
}

// takeOver registers the living attachments and removes everything else of ours.
func (n *Network) takeOver(living []Attachment) error {
	n.addrs.startAt(loadCursor(n.cursorPath()))
	keep := map[string]bool{} // names of namespaces' files and of interfaces
	for _, a := range living {
		keep[filepath.Base(a.NetnsPath)] = true
		for _, e := range a.Endpoints {
			keep[linkName(e.Address.Addr())] = true
		}
	}
	cut, err := n.removeStrays(keep)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.attached)
	for _, a := range living {
		at := &attached{Attachment: a, slot: slotAt(a.NetnsPath)}
		if at.slot.addr.IsValid() {
			n.addrs.claim(at.slot.addr)
		}
		n.attached[a.ID] = at
		if err := n.rejoinAll(a); err != nil {
			return err
		}
		if cut || at.named() {
			n.rerouteLost(a)
		}
		// Someone may have taken a port while no process of ours held it; the
		// redirection is still there and wins.
		ports, err := reserve(slices.Clone(a.Ports))
		if err != nil {
			n.o.Log.Warn("host ports not reserved", "id", a.ID, "err", err)
		}
		at.ports = ports
	}
	return nil
}

// rejoinAll puts an attachment's interfaces back where they belong; mu is held.
func (n *Network) rejoinAll(a Attachment) error {
	for _, e := range a.Endpoints {
		s, ok := n.segments[e.Network]
		if !ok {
			n.o.Log.Warn("container is on a network that is not there", "id", a.ID, "network", e.NetworkName)
			continue
		}
		s.addrs.claim(e.Address.Addr())
		there, err := n.rejoin(e.Address.Addr(), s)
		if err != nil {
			return err
		}
		if !there {
			n.o.Log.Warn("container has lost its interface", "id", a.ID, "ip", e.Address.Addr())
		}
	}
	return nil
}

// rerouteLost gives a container its default route again whose way out went: an
// earlier run ended between a change of its networks and that of the route.
func (n *Network) rerouteLost(a Attachment) {
	err := inNetnsHandle(a.NetnsPath, func(inside *netlink.Handle) error { return restoreDefaultRoute(inside, a.Endpoints) })
	if err != nil { // as with an interface that is lost
		n.o.Log.Warn("container has no default route", "id", a.ID, "err", err)
	}
}

// startResolvers answers names again for the containers of an earlier run.
func (n *Network) startResolvers() {
	n.mu.Lock()
	var list []*attached
	for _, a := range n.attached {
		if a.named() {
			list = append(list, a)
		}
	}
	n.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, a := range list {
		g.Go(func() error {
			if err := n.startResolver(a); err != nil {
				n.o.Log.Error("container has no names", "id", a.ID, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // each has said what is wrong with it
}

// Stop ends the background work and removes the unused pool. Attached
// containers keep their network.
func (n *Network) Stop(ctx context.Context) error {
	n.stop()
	close(n.doomed)
	done := make(chan struct{})
	go func() { n.tasks.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("stop network: %w", ctx.Err())
	}
	close(n.pool)
	var errs []error
	for s := range n.pool {
		errs = append(errs, n.destroySlot(s))
	}
	n.letGo()
	n.close()
	return errors.Join(errs...)
}

// letGo closes what this process holds for the attachments.
func (n *Network) letGo() {
	n.mu.Lock()
	list := slices.Collect(maps.Values(n.attached))
	clear(n.attached)
	n.mu.Unlock()
	for _, a := range list {
		a.ports.close()
		if a.resolver != nil {
			a.resolver.Close()
		}
	}
}
