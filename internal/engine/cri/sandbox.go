package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

// RunPodSandbox makes a pod.
func (s *Service) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	spec, err := podSpec(config, handler)
	if err != nil {
		return "", asStatus(err)
	}
	release, err := s.making.hold(fmt.Sprintf("pod %s/%s (uid %s, attempt %d)", spec.Namespace, spec.Name, spec.UID, spec.Attempt), func() bool {
		return slices.ContainsFunc(s.opt.Engine.Pods(ctx, engine.OwnerCRI), func(p engine.Pod) bool {
			o := p.Spec
			return o.UID == spec.UID && o.Name == spec.Name && o.Namespace == spec.Namespace && o.Attempt == spec.Attempt
		})
	})
	if err != nil {
		return "", err
	}
	defer release()
	p, err := s.opt.Engine.RunPod(ctx, spec)
	return p.ID, asStatus(err)
}

// podSpec translates a sandbox's configuration.
func podSpec(c *runtimeapi.PodSandboxConfig, handler string) (engine.PodSpec, error) {
	m := c.GetMetadata()
	linux := c.GetLinux()
	sec := linux.GetSecurityContext()
	if m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return engine.PodSpec{}, fault.New(fault.Invalid, "a pod sandbox needs a name, a namespace and a uid")
	}
	spec := engine.PodSpec{
		Owner: engine.OwnerCRI, Name: m.Name, Namespace: m.Namespace, UID: m.Uid, Attempt: m.Attempt,
		Hostname: c.Hostname, Labels: c.Labels, Annotations: c.Annotations, LogDir: c.LogDirectory,
		CgroupParent: linux.GetCgroupParent(), Sysctls: linux.GetSysctls(), RuntimeHandler: handler,
	}
	var err error
	if spec.Network, spec.PID, spec.IPC, err = namespaceModes(sec.GetNamespaceOptions()); err != nil {
		return spec, err
	}
	if spec.Users, err = users(sec.GetNamespaceOptions().GetUsernsOptions()); err != nil {
		return spec, err
	}
	if d := c.DnsConfig; len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) > 0 {
		spec.DNS = &network.DNSConfig{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	spec.Ports, err = portMappings(c.PortMappings)
	return spec, err
}

// portMappings translates the ports that have a host port.
func portMappings(in []*runtimeapi.PortMapping) ([]network.PortMapping, error) {
	var out []network.PortMapping
	for _, p := range in {
		if p.HostPort <= 0 {
			continue
		}
		m := network.PortMapping{HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort),
			Protocol: network.Protocol(strings.ToLower(p.Protocol.String()))}
		if p.HostIp != "" {
			ip, err := netip.ParseAddr(p.HostIp)
			if err != nil {
				return nil, fault.New(fault.Invalid, "host address of port %d: %w", p.HostPort, err)
			}
			if !ip.IsUnspecified() {
				m.HostIP = ip
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// StopPodSandbox ends what runs in a pod. Idempotent.
func (s *Service) StopPodSandbox(ctx context.Context, id string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	p, err := s.pod(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return asStatus(s.opt.Engine.StopPod(ctx, p.ID))
}

// RemovePodSandbox removes a pod. Idempotent.
func (s *Service) RemovePodSandbox(ctx context.Context, id string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	p, err := s.pod(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return asStatus(s.opt.Engine.RemovePod(ctx, p.ID))
}

// PodSandboxStatus returns a pod's state.
func (s *Service) PodSandboxStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := s.pod(ctx, id)
	if err != nil {
		return nil, err
	}
	r := &runtimeapi.PodSandboxStatusResponse{Status: podStatus(p)}
	if verbose {
		info, err := json.Marshal(p)
		if err != nil {
			return nil, asStatus(err)
		}
		r.Info = map[string]string{"info": string(info)}
	}
	return r, nil
}

func podStatus(p engine.Pod) *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: p.ID, Metadata: podMetadata(p), State: podState(p), CreatedAt: nanos(p.CreatedAt), Labels: p.Spec.Labels,
		Annotations: p.Spec.Annotations, RuntimeHandler: p.Spec.RuntimeHandler, Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: namespaceOptions(p.Spec)}},
	}
	for i, ip := range p.IPs {
		if i == 0 {
			st.Network.Ip = ip.String()
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return st
}

func podMetadata(p engine.Pod) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: p.Spec.Name, Namespace: p.Spec.Namespace, Uid: p.Spec.UID, Attempt: p.Spec.Attempt}
}

func podState(p engine.Pod) runtimeapi.PodSandboxState {
	if p.State == engine.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// ListPodSandbox returns the pods that a filter lets through.
func (s *Service) ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	var out []*runtimeapi.PodSandbox
	for _, p := range s.opt.Engine.Pods(ctx, engine.OwnerCRI) {
		if f != nil && (!strings.HasPrefix(p.ID, f.Id) || f.State != nil && f.State.State != podState(p) || !matches(p.Spec.Labels, f.LabelSelector)) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{Id: p.ID, Metadata: podMetadata(p), State: podState(p), CreatedAt: nanos(p.CreatedAt),
			Labels: p.Spec.Labels, Annotations: p.Spec.Annotations, RuntimeHandler: p.Spec.RuntimeHandler})
	}
	return out, nil
}

// UpdatePodSandboxResources accepts a pod's new limits: containers have theirs
// by UpdateContainerResources, the pod's own cgroup is the kubelet's.
func (s *Service) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if _, err := s.pod(ctx, r.PodSandboxId); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

var errNoCheckpoint = fault.New(fault.Unsupported, "checkpoints are not supported: the runner is built without CRIU")

// CheckpointPod is not supported.
func (s *Service) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) error {
	return asStatus(errNoCheckpoint)
}

// RestorePod is not supported.
func (s *Service) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, asStatus(errNoCheckpoint)
}
