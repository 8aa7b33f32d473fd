package cri

import (
	"context"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
)

// ContainerStats returns a container's usage.
func (s *Service) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	c, err := s.container(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.statsOf(ctx, c)
}

func (s *Service) statsOf(ctx context.Context, c engine.Container) (*runtimeapi.ContainerStats, error) {
	st, err := s.opt.Engine.Stats(ctx, c.ID)
	if err != nil {
		return nil, asStatus(err)
	}
	at := nanos(st.Time)
	value := func(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
	out := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: containerMetadata(c), Labels: c.Spec.Labels, Annotations: c.Spec.Annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(st.CPUNanos)},
		Memory: &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: value(st.MemoryWorkingSet), UsageBytes: value(st.MemoryUsage),
			RssBytes: value(st.MemoryRSS), PageFaults: value(st.PageFaults), MajorPageFaults: value(st.MajorPageFaults)},
		WritableLayer: &runtimeapi.FilesystemUsage{Timestamp: at, UsedBytes: value(st.RootfsBytes), InodesUsed: value(st.RootfsInodes),
			FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}},
	}
	if st.MemoryLimit > 0 {
		out.Memory.AvailableBytes = value(st.MemoryLimit - min(st.MemoryLimit, st.MemoryWorkingSet))
	}
	return out, nil
}

// ListContainerStats returns the usage of the running containers that a filter lets through.
func (s *Service) ListContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	var out []*runtimeapi.ContainerStats
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerCRI) {
		if c.State != engine.StateRunning && c.State != engine.StatePaused {
			continue
		}
		if f != nil && (!strings.HasPrefix(c.ID, f.Id) || !strings.HasPrefix(c.PodID, f.PodSandboxId) || !matches(c.Spec.Labels, f.LabelSelector)) {
			continue
		}
		// One that ends meanwhile has no usage to tell.
		if st, err := s.statsOf(ctx, c); err == nil {
			out = append(out, st)
		}
	}
	return out, nil
}

// PodSandboxStats returns a pod's usage: the sum of its containers'.
func (s *Service) PodSandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	p, err := s.pod(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.podStats(ctx, p)
}

func (s *Service) podStats(ctx context.Context, p engine.Pod) (*runtimeapi.PodSandboxStats, error) {
	list, err := s.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{PodSandboxId: p.ID})
	if err != nil {
		return nil, err
	}
	cpu := &runtimeapi.CpuUsage{UsageCoreNanoSeconds: &runtimeapi.UInt64Value{}}
	memory := &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{}, UsageBytes: &runtimeapi.UInt64Value{}, RssBytes: &runtimeapi.UInt64Value{}}
	for _, c := range list {
		cpu.Timestamp, memory.Timestamp = c.Cpu.Timestamp, c.Memory.Timestamp
		cpu.UsageCoreNanoSeconds.Value += c.Cpu.UsageCoreNanoSeconds.Value
		memory.WorkingSetBytes.Value += c.Memory.WorkingSetBytes.Value
		memory.UsageBytes.Value += c.Memory.UsageBytes.Value
		memory.RssBytes.Value += c.Memory.RssBytes.Value
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID, Metadata: podMetadata(p), Labels: p.Spec.Labels, Annotations: p.Spec.Annotations},
		Linux:      &runtimeapi.LinuxPodSandboxStats{Cpu: cpu, Memory: memory, Containers: list},
	}, nil
}

// ListPodSandboxStats returns the usage of the ready pods that a filter lets through.
func (s *Service) ListPodSandboxStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	var out []*runtimeapi.PodSandboxStats
	for _, p := range s.opt.Engine.Pods(ctx, engine.OwnerCRI) {
		if p.State != engine.PodReady || f != nil && (!strings.HasPrefix(p.ID, f.Id) || !matches(p.Spec.Labels, f.LabelSelector)) {
			continue
		}
		st, err := s.podStats(ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// ListMetricDescriptors returns none: metrics are read from the kubelet's cAdvisor.
func (s *Service) ListMetricDescriptors(context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	return nil, nil
}

// ListPodSandboxMetrics returns none, as ListMetricDescriptors says.
func (s *Service) ListPodSandboxMetrics(context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return nil, nil
}
