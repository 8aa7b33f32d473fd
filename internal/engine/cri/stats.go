package cri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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
	linux := &runtimeapi.LinuxPodSandboxStats{Cpu: cpu, Memory: memory, Containers: list}
	if err := s.podExtras(ctx, p, linux); err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID, Metadata: podMetadata(p), Labels: p.Spec.Labels, Annotations: p.Spec.Annotations},
		Linux:      linux,
	}, nil
}

// podExtras adds what a pod has beyond its containers' sum: the count of
// processes, and its network's counters, read through any of them.
func (s *Service) podExtras(ctx context.Context, p engine.Pod, out *runtimeapi.LinuxPodSandboxStats) error {
	now := time.Now().UnixNano()
	processes := &runtimeapi.UInt64Value{}
	out.Process = &runtimeapi.ProcessUsage{Timestamp: now, ProcessCount: processes}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerCRI) {
		if c.PodID != p.ID || c.PID == 0 {
			continue
		}
		// One that ends meanwhile has nothing to add.
		if pids, err := s.opt.Engine.Processes(ctx, c.ID); err == nil {
			processes.Value += uint64(len(pids))
		}
		if out.Network != nil || p.Spec.Network == engine.ModeHost {
			continue
		}
		table, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.PID), "net/dev"))
		if err != nil {
			continue
		}
		if out.Network, err = networkUsage(string(table)); err != nil {
			return asStatus(err)
		}
		out.Network.Timestamp = now
	}
	return nil
}

// networkUsage reads /proc/PID/net/dev; loopback is nobody's traffic.
func networkUsage(table string) (*runtimeapi.NetworkUsage, error) {
	// Name: bytes packets errs drop fifo frame compressed multicast, then the same as sent.
	const received, receiveErrors, sent, sendErrors = 0, 2, 8, 10
	out := &runtimeapi.NetworkUsage{}
	for line := range strings.Lines(table) {
		name, counters, found := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		fields := strings.Fields(counters)
		if !found || name == "lo" || len(fields) <= sendErrors {
			continue
		}
		usage := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: &runtimeapi.UInt64Value{}, RxErrors: &runtimeapi.UInt64Value{},
			TxBytes: &runtimeapi.UInt64Value{}, TxErrors: &runtimeapi.UInt64Value{}}
		for i, to := range map[int]*runtimeapi.UInt64Value{received: usage.RxBytes, receiveErrors: usage.RxErrors, sent: usage.TxBytes, sendErrors: usage.TxErrors} {
			var err error
			if to.Value, err = strconv.ParseUint(fields[i], 10, 64); err != nil {
				return nil, fmt.Errorf("counters of %s: %w", name, err)
			}
		}
		out.Interfaces = append(out.Interfaces, usage)
		if name == "eth0" {
			out.DefaultInterface = usage
		}
	}
	return out, nil
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
