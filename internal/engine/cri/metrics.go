package cri

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
)

// A metric of a container: cAdvisor's name, so that what reads that reads this.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	value      func(engine.Container, *runtimeapi.ContainerStats) uint64
}

// Labels of the metrics: CRI sends the values in the order of the descriptors' keys.
var (
	containerLabels = []string{"id", "name", "image"}
	networkLabels   = []string{"interface"}
)

var containerMetrics = []metric{
	{"container_cpu_usage_seconds_total", "Processor time used, in whole seconds.", counter,
		func(_ engine.Container, s *runtimeapi.ContainerStats) uint64 {
			return s.Cpu.UsageCoreNanoSeconds.Value / uint64(time.Second)
		}},
	{"container_memory_usage_bytes", "Memory in use, page cache included.", gauge,
		func(_ engine.Container, s *runtimeapi.ContainerStats) uint64 { return s.Memory.UsageBytes.Value }},
	{"container_memory_working_set_bytes", "Memory in use that cannot be reclaimed at once.", gauge,
		func(_ engine.Container, s *runtimeapi.ContainerStats) uint64 { return s.Memory.WorkingSetBytes.Value }},
	{"container_memory_rss", "Anonymous memory.", gauge,
		func(_ engine.Container, s *runtimeapi.ContainerStats) uint64 { return s.Memory.RssBytes.Value }},
	{"container_memory_failures_total", "Page faults.", counter,
		func(_ engine.Container, s *runtimeapi.ContainerStats) uint64 { return s.Memory.PageFaults.Value }},
	{"container_fs_usage_bytes", "Size of the writable layer.", gauge,
		func(_ engine.Container, s *runtimeapi.ContainerStats) uint64 { return s.WritableLayer.UsedBytes.Value }},
	{"container_spec_memory_limit_bytes", "Memory limit; 0 is none.", gauge,
		func(c engine.Container, _ *runtimeapi.ContainerStats) uint64 {
			return uint64(max(c.Spec.Resources.Memory, 0))
		}},
	{"container_spec_cpu_period", "Period of the processor quota, in microseconds.", gauge,
		func(c engine.Container, _ *runtimeapi.ContainerStats) uint64 {
			return uint64(max(c.Spec.Resources.CPUPeriod, 0))
		}},
	{"container_spec_cpu_shares", "Processor shares; 0 is the kernel's default.", gauge,
		func(c engine.Container, _ *runtimeapi.ContainerStats) uint64 {
			return uint64(max(c.Spec.Resources.CPUShares, 0))
		}},
	{"container_start_time_seconds", "When the container was started, in seconds since 1970.", gauge,
		func(c engine.Container, _ *runtimeapi.ContainerStats) uint64 { return uint64(c.StartedAt.Unix()) }},
}

// networkMetric is a counter of a pod's interface.
type networkMetric struct {
	name, help string
	value      func(*runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value
}

var networkMetrics = []networkMetric{
	{"container_network_receive_bytes_total", "Bytes received.",
		func(u *runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value { return u.RxBytes }},
	{"container_network_receive_errors_total", "Errors while receiving.",
		func(u *runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value { return u.RxErrors }},
	{"container_network_transmit_bytes_total", "Bytes sent.",
		func(u *runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value { return u.TxBytes }},
	{"container_network_transmit_errors_total", "Errors while sending.",
		func(u *runtimeapi.NetworkInterfaceUsage) *runtimeapi.UInt64Value { return u.TxErrors }},
}

// processesMetric is the one metric of a pod that is neither's.
const processesMetric = "container_processes"

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// ListMetricDescriptors returns the metrics that ListPodSandboxMetrics has values of.
func (s *Service) ListMetricDescriptors(context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	var out []*runtimeapi.MetricDescriptor
	for _, m := range containerMetrics {
		out = append(out, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: containerLabels})
	}
	for _, m := range networkMetrics {
		out = append(out, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: networkLabels})
	}
	return append(out, &runtimeapi.MetricDescriptor{Name: processesMetric, Help: "Processes of the pod's containers."}), nil
}

// ListPodSandboxMetrics returns the metrics of the pods that run, as they are now.
func (s *Service) ListPodSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	pods, err := s.ListPodSandboxStats(ctx, nil)
	if err != nil {
		return nil, err
	}
	out := make([]*runtimeapi.PodSandboxMetrics, 0, len(pods))
	for _, p := range pods {
		metrics := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.Attributes.Id, Metrics: podMetrics(p.Linux)}
		for _, st := range p.Linux.Containers {
			// One that is removed meanwhile has nothing to tell.
			if c, err := s.opt.Engine.Container(ctx, st.Attributes.Id); err == nil {
				metrics.ContainerMetrics = append(metrics.ContainerMetrics, metricsOf(c, st))
			}
		}
		out = append(out, metrics)
	}
	return out, nil
}

func podMetrics(st *runtimeapi.LinuxPodSandboxStats) []*runtimeapi.Metric {
	out := []*runtimeapi.Metric{{Name: processesMetric, MetricType: gauge, Value: st.Process.ProcessCount}}
	for _, usage := range st.GetNetwork().GetInterfaces() {
		for _, m := range networkMetrics {
			out = append(out, &runtimeapi.Metric{Name: m.name, MetricType: counter, LabelValues: []string{usage.Name}, Value: m.value(usage)})
		}
	}
	return out
}

func metricsOf(c engine.Container, st *runtimeapi.ContainerStats) *runtimeapi.ContainerMetrics {
	out := &runtimeapi.ContainerMetrics{ContainerId: c.ID}
	for _, m := range containerMetrics {
		out.Metrics = append(out.Metrics, &runtimeapi.Metric{Name: m.name, MetricType: m.kind,
			LabelValues: []string{c.ID, c.Spec.Name, c.Spec.Image}, Value: &runtimeapi.UInt64Value{Value: m.value(c, st)}})
	}
	return out
}
