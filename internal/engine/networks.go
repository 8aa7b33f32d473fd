package engine

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

// Network returns the node's network: the networks that people make are made
// and removed with it. Pods come to them by PodSpec.Networks and Connect.
func (e *Engine) Network() *network.Network { return e.opt.Network }

// OnNetworks lists the networks of a pod of ModePod, also while it is not ready.
func (s PodSpec) OnNetworks() []network.EndpointSpec {
	if s.Network != ModePod {
		return nil
	}
	if s.Networks == nil {
		return []network.EndpointSpec{{Network: network.DefaultNetwork}}
	}
	return s.Networks
}

// named reports whether a pod is on a network that has names.
func named(p Pod) bool {
	return slices.ContainsFunc(p.Spec.OnNetworks(), func(s network.EndpointSpec) bool { return s.Network != network.DefaultNetwork })
}

func attachOptions(p Pod, netns string) network.AttachOptions {
	o := network.AttachOptions{Ports: p.Spec.Ports, Netns: netns, Networks: slices.Clone(p.Spec.Networks)}
	for i := range o.Networks {
		o.Networks[i] = withID(p, o.Networks[i])
	}
	if p.Spec.DNS != nil {
		o.Servers = p.Spec.DNS.Servers
	}
	return o
}

// withID adds the name that a Docker container has everywhere: the beginning of its ID.
func withID(p Pod, s network.EndpointSpec) network.EndpointSpec {
	if p.Spec.Single && s.Network != network.DefaultNetwork {
		s.Names = slices.Concat(s.Names, []string{p.ID[:12]})
	}
	return s
}

// take notes what the network gave the pod.
func (p *Pod) take(a network.Attachment) {
	p.NetnsPath, p.Ports, p.Endpoints, p.IPs = a.NetnsPath, a.Ports, a.Endpoints, nil
	for _, e := range a.Endpoints {
		p.IPs = append(p.IPs, e.Address.Addr())
	}
}

// Connect puts a pod on one more network, at once if it is ready. It is a
// Conflict for a pod that has no network of its own, or is on that one already.
func (e *Engine) Connect(ctx context.Context, podID string, spec network.EndpointSpec) error {
	return e.changeNetworks(podID, func(p Pod) (Pod, error) {
		if err := e.opt.Network.CheckEndpoint(spec); err != nil {
			return p, err
		}
		if slices.ContainsFunc(p.Spec.OnNetworks(), func(s network.EndpointSpec) bool { return s.Network == spec.Network }) {
			return p, fault.New(fault.Conflict, "pod %s is on the network %s already", p.ID, spec.Network)
		}
		ready := p.State == PodReady
		p.Spec.Networks = slices.Concat(p.Spec.OnNetworks(), []network.EndpointSpec{spec})
		if !ready {
			return p, nil
		}
		a, err := e.opt.Network.Connect(ctx, p.ID, withID(p, spec))
		if err == nil {
			p.take(a)
		}
		return p, err
	})
}

// Disconnect takes a pod off a network, at once if it is ready; NotFound if it
// is not on it.
func (e *Engine) Disconnect(ctx context.Context, podID, networkID string) error {
	return e.changeNetworks(podID, func(p Pod) (Pod, error) {
		list := p.Spec.OnNetworks()
		i := slices.IndexFunc(list, func(s network.EndpointSpec) bool { return s.Network == networkID })
		if i < 0 {
			return p, fault.New(fault.NotFound, "pod %s is not on the network %s", p.ID, networkID)
		}
		p.Spec.Networks = slices.Delete(slices.Clone(list), i, i+1)
		if p.State != PodReady {
			return p, nil
		}
		a, err := e.opt.Network.Disconnect(ctx, p.ID, networkID)
		if err == nil {
			p.take(a)
		}
		return p, err
	})
}

// Rename gives a pod another name on its networks in place of one, at once if
// it is ready.
func (e *Engine) Rename(_ context.Context, podID, from, to string) error {
	pod, err := e.findPod(podID)
	if err != nil || pod.snapshot().Spec.Network != ModePod {
		return err // nobody finds it by a name
	}
	return e.changeNetworks(podID, func(p Pod) (Pod, error) {
		p.Spec.Networks = slices.Clone(p.Spec.Networks)
		for i := range p.Spec.Networks {
			p.Spec.Networks[i] = p.Spec.Networks[i].Renamed(from, to)
		}
		if p.State != PodReady {
			return p, nil
		}
		a, err := e.opt.Network.Rename(p.ID, from, to)
		if err == nil {
			p.take(a)
		}
		return p, err
	})
}

// changeNetworks records what change makes of a pod.
func (e *Engine) changeNetworks(podID string, change func(Pod) (Pod, error)) error {
	p, err := e.findPod(podID)
	if err != nil {
		return err
	}
	p.op.Lock()
	defer p.op.Unlock()
	before := p.snapshot()
	if p.removed {
		return errPodRemoved(p)
	}
	if before.Spec.Network != ModePod {
		return fault.New(fault.Conflict, "pod %s has no network of its own: its network is %q", before.ID, before.Spec.Network)
	}
	if p.unreachable() {
		return p.errNoAnswer()
	}
	after, err := change(before)
	if err != nil {
		return err
	}
	if err := e.setPod(p, func(r *podRecord) { r.Pod = after }); err != nil {
		return err
	}
	if after.State != PodReady {
		return nil
	}
	return e.changePodFiles(before, after)
}

// networkOf returns the running container whose network a pod shares; nil for
// a pod that shares none.
func (e *Engine) networkOf(spec PodSpec) (*container, error) {
	if spec.Network != ModeContainer {
		return nil, nil
	}
	c, err := e.findContainer(spec.NetworkOf)
	if err != nil {
		return nil, err
	}
	if !c.snapshot().State.alive() {
		return nil, fault.New(fault.Conflict, "cannot join network of a non running container: %s", spec.NetworkOf)
	}
	return c, nil
}

// netnsOf is the path of a process' network namespace.
func netnsOf(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid), "ns/net") }

// linkEntries are the lines of /etc/hosts for a pod's links. The containers
// must run: their addresses are known only then.
func (e *Engine) linkEntries(p Pod) ([]network.HostEntry, error) {
	var out []network.HostEntry
	for _, l := range p.Spec.Links {
		c, err := e.findContainer(l.Container)
		if err != nil {
			return nil, err
		}
		s := c.snapshot()
		if !s.State.alive() {
			return nil, fault.New(fault.Conflict, "Cannot link to a non running container: /%s AS %s", s.Spec.Name, l.Names[0])
		}
		ip := defaultAddress(c.pod.snapshot())
		if !ip.IsValid() {
			return nil, fault.New(fault.Conflict, "Cannot link to /%s, as it does not belong to the default network", s.Spec.Name).
				Hint("put both on one network that was made with `ferry network create`: there they find each other by name")
		}
		out = append(out, network.HostEntry{IP: ip, Names: l.Names})
	}
	return out, nil
}

// defaultAddress is a pod's address on the node's own network.
func defaultAddress(p Pod) netip.Addr {
	for _, e := range p.Endpoints {
		if e.Network == network.DefaultNetwork {
			return e.Address.Addr()
		}
	}
	return netip.Addr{}
}
