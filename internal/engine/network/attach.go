package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ferryos/ferry/internal/fault"
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
	a, err := n.attach(ctx, id, ports, o)
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

func (n *Network) attach(ctx context.Context, id string, ports []PortMapping, o AttachOptions) (a *attached, err error) {
	// First what fails most often and costs least.
	held, err := reserve(ports)
	if err != nil {
		return nil, err
	}
	s, err := n.takeSlot(ctx, o.Netns)
	if err != nil {
		held.close()
		return nil, err
	}
	a = &attached{slot: s, ports: held, Attachment: Attachment{
		ID:        id,
		NetnsPath: s.path,
		IP:        netip.PrefixFrom(s.addr, n.o.Subnet.Bits()),
		Gateway:   n.gateway,
		MAC:       hardwareAddr(s.addr).String(),
		Ports:     ports,
	}}
	if err := n.commit(a, o.Sysctls); err != nil {
		held.close()
		n.doom(s)
		return nil, errors.Join(err, n.leases.remove(id))
	}
	return a, nil
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
	if !ok || !a.slot.addr.IsValid() {
		n.mu.Unlock()
		return nil
	}
	n.attached[id] = &attached{} // keeps the id taken until its lease is gone
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
	n.doom(a.slot)
	return nil
}

// Attachment returns the attachment of id; ok is false if there is none.
func (n *Network) Attachment(id string) (_ Attachment, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.attached[id]
	if !ok || !a.slot.addr.IsValid() {
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
		if a := n.attached[id]; a.slot.addr.IsValid() {
			list = append(list, a.copy())
		}
	}
	return list
}

func (a *attached) copy() Attachment {
	c := a.Attachment
	c.Ports = slices.Clone(c.Ports)
	return c
}

// Reconcile detaches every id that is not live. The engine calls it once after
// Start, when it knows which containers have survived.
func (n *Network) Reconcile(ctx context.Context, live map[string]bool) error {
	errs := []error{n.acceptForwarding()}
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
	since time.Time
}

// doom hands a slot to the reaper, so that no caller waits for the kernel to
// let go of the interfaces. The namespace's file is gone already or goes now.
func (n *Network) doom(s slot) {
	if err := removeNetns(s.path); err != nil {
		n.o.Log.Warn("network namespace not removed", "path", s.path, "err", err) // the reaper tries again
	}
	n.doomed <- doomed{s, time.Now()}
}

// reap destroys slots until Stop, and then those that are left without delay.
func (n *Network) reap(ctx context.Context) {
	for d := range n.doomed {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(d.since.Add(reapDelay))):
		}
		if err := n.destroySlot(d.slot); err != nil {
			n.o.Log.Warn("network namespace not removed", "path", d.path, "err", err)
		}
	}
}
