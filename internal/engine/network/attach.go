package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
)

// validID are the ids that can name a lease's file.
var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Attach gives id a namespace with an address, from the pool when one is
// ready. A Conflict means that id is attached already or that a host port is
// in use. On failure nothing is kept; after success the attachment lasts until
// Detach, whatever becomes of this process.
func (n *Network) Attach(ctx context.Context, id string, o AttachOptions) (Attachment, error) {
	ports, err := checkAttach(id, o)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s: %w", id, err)
	}
	if !n.claim(id) {
		return Attachment{}, fault.New(fault.Conflict, "attach %s: it is attached already", id)
	}
	a := &attached{Attachment: Attachment{ID: id, Ports: ports, Servers: o.Servers}}
	defer func() { // once it is stored, or is not to be
		for _, joined := range a.joined {
			joined()
		}
		a.joined = nil
	}()
	err = n.attach(ctx, a, o)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		delete(n.attached, id)
		return Attachment{}, fmt.Errorf("attach %s: %w", id, err)
	}
	n.attached[id] = a
	return a.copy(), nil
}

// claim takes the id for an attachment that is being made.
func (n *Network) claim(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, taken := n.attached[id]; taken {
		return false
	}
	n.attached[id] = &attached{}
	return true
}

func checkAttach(id string, o AttachOptions) ([]PortMapping, error) {
	if !validID.MatchString(id) {
		return nil, fault.New(fault.Invalid, "the id must match %s", validID)
	}
	for name := range o.Sysctls {
		path := sysctlPath(name)
		if !strings.HasPrefix(path, "/proc/sys/net/") || path != filepath.Clean(path) || strings.Contains(name, "..") {
			return nil, fault.New(fault.Invalid, "sysctl %q is not one of a network namespace", name)
		}
	}
	var ports []PortMapping
	for _, p := range o.Ports {
		p, err := p.Normal()
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func (n *Network) attach(ctx context.Context, a *attached, o AttachOptions) (err error) {
	// First what fails most often and costs least.
	if a.ports, err = reserve(a.Ports); err != nil {
		return err
	}
	if err = n.place(ctx, a, o); err == nil {
		err = n.commit(a, o.Sysctls)
	}
	if err != nil {
		a.ports.close()
		if a.resolver != nil {
			a.resolver.Close()
		}
		if a.slot.path != "" {
			n.doom(a)
		}
		return errors.Join(err, n.leases.remove(a.ID))
	}
	return nil
}

// place gives an attachment its namespace and its endpoints. On failure a has
// what was made of them.
func (n *Network) place(ctx context.Context, a *attached, o AttachOptions) (err error) {
	networks := o.Networks
	if networks == nil {
		networks = []EndpointSpec{{Network: DefaultNetwork}}
	}
	own := -1
	seen := map[string]bool{}
	for i, spec := range networks {
		if seen[spec.Network] {
			return fault.New(fault.Invalid, "the network %s is named twice", spec.Network)
		}
		seen[spec.Network] = true
		if spec.Network == DefaultNetwork {
			own = i
		}
	}
	if own >= 0 {
		if err := n.CheckEndpoint(networks[own]); err != nil {
			return err
		}
		if a.slot, err = n.takeSlot(ctx, o.Netns); err != nil {
			return err
		}
		e := n.ownSegment(n.bridge).endpoint(networks[own], a.slot.addr)
		e.Interface = "eth0"
		a.setEndpoints([]Endpoint{e})
	}
	if own >= 0 && len(networks) == 1 && networks[own].MAC == "" {
		a.NetnsPath = a.slot.path
		return nil
	}
	connect := func(inside *netlink.Handle) error { return n.connectAll(inside, a, networks) }
	if own >= 0 {
		err = inNetnsHandle(a.slot.path, connect)
	} else {
		a.slot = n.ownNetns()
		err = n.buildNetns(a.slot, o.Netns, connect)
	}
	a.NetnsPath = a.slot.path
	return err
}

// connectAll makes the endpoints of an attachment whose namespace has at most
// that of the node's own network. The calling thread is inside.
func (n *Network) connectAll(inside *netlink.Handle, a *attached, networks []EndpointSpec) error {
	for _, spec := range networks {
		if spec.Network == DefaultNetwork {
			if err := setHardwareAddr(inside, spec.MAC); err != nil {
				return err
			}
			continue
		}
		s, e, joined, err := n.reserve(spec, netip.Addr{})
		if err != nil {
			return err
		}
		err = n.join(inside, a.slot.path, s, &e)
		// Known to a even after a failure, for what was made must be taken away.
		a.setEndpoints(slices.Concat(a.Endpoints, []Endpoint{e}))
		a.joined = append(a.joined, joined)
		if err != nil {
			return err
		}
	}
	return setDefaultRoute(inside, a.Endpoints)
}

// setHardwareAddr gives eth0 of a namespace from the pool another one.
func setHardwareAddr(inside *netlink.Handle, mac string) error {
	if mac == "" {
		return nil
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return fault.New(fault.Invalid, "hardware address: %w", err)
	}
	link, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("look up eth0: %w", err)
	}
	if err := inside.LinkSetHardwareAddr(link, hw); err != nil {
		return fmt.Errorf("give eth0 the hardware address %s: %w", mac, err)
	}
	return nil
}

// commit makes the attachment last: settings, lease, host ports. The lease
// comes before the ports, so that a process killed in between finds both or
// neither at its next start.
func (n *Network) commit(a *attached, sysctls map[string]string) error {
	if len(sysctls) > 0 {
		if err := inNetns(a.slot.path, func() error { return writeSysctls(sysctls) }); err != nil {
			return err
		}
	}
	if err := n.leases.save(a.Attachment); err != nil {
		return err
	}
	if a.named() {
		if err := n.startResolver(a); err != nil {
			return err
		}
	}
	if len(a.Ports) == 0 {
		return nil
	}
	if err := n.firewall.publish(a.Attachment); err != nil {
		return err
	}
	if err := n.forgetFlows(a.Ports); err != nil {
		return errors.Join(err, n.firewall.withdraw(a.Attachment))
	}
	return nil
}

// Detach ends the attachment of id: its host ports, its lease and its
// namespace, which lives on without a network while a process is inside.
// Idempotent: an id that is not attached is no error. After an error the
// attachment is still there and Detach can be repeated.
func (n *Network) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	a, ok := n.attached[id]
	if !ok || a.slot.path == "" {
		n.mu.Unlock()
		return nil
	}
	// Keeps the id taken until its lease is gone, and its networks until its
	// addresses are free.
	n.attached[id] = &attached{Attachment: Attachment{Endpoints: unnamed(a.Endpoints)}}
	n.mu.Unlock()
	err := n.detach(a)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.attached[id] = a
		return fmt.Errorf("detach %s: %w", id, err)
	}
	delete(n.attached, id)
	return nil
}

// unnamed are endpoints that nobody finds by a name any more.
func unnamed(endpoints []Endpoint) []Endpoint {
	out := slices.Clone(endpoints)
	for i := range out {
		out[i].Names, out[i].Aliases = nil, nil
	}
	return out
}

func (n *Network) detach(a *attached) error {
	if len(a.Ports) > 0 {
		if err := n.firewall.withdraw(a.Attachment); err != nil {
			return err
		}
		if err := n.forgetFlows(a.Ports); err != nil {
			return err
		}
		a.ports.close()
		a.ports = nil
	}
	if err := removeNetns(a.slot.path); err != nil {
		return err
	}
	if err := n.leases.remove(a.ID); err != nil {
		return err
	}
	if a.resolver != nil {
		a.resolver.Close()
		a.resolver = nil
	}
	n.doom(a)
	return nil
}

// Attachment returns the attachment of id; ok is false if there is none.
func (n *Network) Attachment(id string) (_ Attachment, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.attached[id]
	if !ok || a.slot.path == "" {
		return Attachment{}, false
	}
	return a.copy(), true
}

// Attachments lists the attachments, ordered by id.
func (n *Network) Attachments() []Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []Attachment
	for _, id := range slices.Sorted(maps.Keys(n.attached)) {
		if a := n.attached[id]; a.slot.path != "" {
			list = append(list, a.copy())
		}
	}
	return list
}

func (a Attachment) copy() Attachment {
	c := a
	c.Ports, c.Endpoints = slices.Clone(c.Ports), slices.Clone(c.Endpoints)
	return c
}

// Reconcile detaches every id that is not live. The engine calls it once after
// Start, when it knows which containers have survived.
func (n *Network) Reconcile(ctx context.Context, live map[string]bool) error {
	errs := []error{n.acceptAllForwarding()}
	for _, a := range n.Attachments() {
		if !live[a.ID] {
			errs = append(errs, n.Detach(ctx, a.ID))
		}
	}
	return errors.Join(errs...)
}

// takeSlot returns a slot from the pool, or makes one when the pool is empty,
// or of an existing namespace.
func (n *Network) takeSlot(ctx context.Context, netns string) (slot, error) {
	if netns != "" {
		return n.makeSlot(ctx, netns)
	}
	select {
	case s := <-n.pool:
		return s, nil
	default:
		return n.makeSlot(ctx, "")
	}
}

// refillPause is how long the pool waits after a failure to make a slot.
const refillPause = time.Second

// fill keeps the pool full until ctx is done.
func (n *Network) fill(ctx context.Context) {
	for ctx.Err() == nil {
		s, err := n.makeSlot(ctx, "")
		if err != nil {
			if ctx.Err() == nil {
				n.o.Log.Warn("network namespace not made ahead", "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(refillPause):
			}
			continue
		}
		select {
		case n.pool <- s:
		case <-ctx.Done():
			if err := n.destroySlot(s); err != nil {
				n.o.Log.Warn("network namespace not removed", "path", s.path, "err", err)
			}
		}
	}
}

// reapDelay is how long a slot's interfaces are left to the kernel, which
// removes them with the namespace once the last process has left it, many at
// once. Deleting them as well would hold up everyone else who changes
// interfaces for another grace period each.
const reapDelay = 250 * time.Millisecond

// doomed is a slot to be destroyed.
type doomed struct {
	slot
	links []link
	since time.Time
}

// link is an interface beside the slot's own, and whose address it has. The
// index tells it from a later one of the same name.
type link struct {
	Endpoint
	index int
}

// doom hands a slot to the reaper, so that no caller waits for the kernel to
// let go of the interfaces. The namespace's file is gone already or goes now.
func (n *Network) doom(a *attached) {
	d := doomed{slot: a.slot}
	for _, e := range a.Endpoints {
		if e.Address.Addr() == a.slot.addr {
			continue
		}
		l, err := linkOf(n.nl, linkName(e.Address.Addr()))
		if err != nil || l == nil { // it goes with the namespace
			n.release(e)
			continue
		}
		if !e.IP.IsValid() {
			d.links = append(d.links, link{e, l.Attrs().Index})
			continue
		}
		// An address of its own is asked for again by the container's next start.
		if err := n.destroyLink(link{e, l.Attrs().Index}); err != nil {
			n.o.Log.Warn("interface not removed", "interface", l.Attrs().Name, "err", err)
		}
	}
	if err := removeNetns(a.slot.path); err != nil {
		n.o.Log.Warn("network namespace not removed", "path", a.slot.path, "err", err) // the reaper tries again
	}
	d.since = time.Now()
	n.doomed <- d
}

// reap destroys slots until Stop, and then those that are left without delay.
func (n *Network) reap(ctx context.Context) {
	for d := range n.doomed {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(d.since.Add(reapDelay))):
		}
		errs := []error{n.destroySlot(d.slot)}
		for _, l := range d.links {
			errs = append(errs, n.destroyLink(l))
		}
		if err := errors.Join(errs...); err != nil {
			n.o.Log.Warn("network namespace not removed", "path", d.path, "err", err)
		}
	}
}

// destroyLink removes an interface and gives its address back.
func (n *Network) destroyLink(l link) error {
	there, err := linkOf(n.nl, linkName(l.Address.Addr()))
	if err != nil {
		return err
	}
	if there != nil && there.Attrs().Index == l.index {
		if err := n.deleteLink(there.Attrs().Name); err != nil {
			return err
		}
	}
	n.release(l.Endpoint)
	return nil
}
