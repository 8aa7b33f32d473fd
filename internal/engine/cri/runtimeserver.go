package cri

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

// runtimeServer is the Service in gRPC's form. What a later version of the
// interface adds is answered with Unimplemented until it is written here.
type runtimeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	service *Service
}

// streamPart is how many items a streamed list sends at a time.
const streamPart = 100

// sendAll streams a list, made into messages by wrap.
func sendAll[T, M any](out grpc.ServerStreamingServer[M], list []T, err error, wrap func([]T) *M) error {
	if err != nil {
		return err
	}
	for part := range slices.Chunk(list, streamPart) {
		if err := out.Send(wrap(part)); err != nil {
			return err
		}
	}
	return nil
}

func (s runtimeServer) Version(ctx context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return s.service.Version(ctx, r.Version)
}

func (s runtimeServer) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return s.service.Status(ctx, r.Verbose)
}

func (s runtimeServer) RuntimeConfig(ctx context.Context, _ *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return s.service.RuntimeConfig(ctx)
}

func (s runtimeServer) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, s.service.UpdateRuntimeConfig(ctx, r.RuntimeConfig)
}

func (s runtimeServer) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.service.RunPodSandbox(ctx, r.Config, r.RuntimeHandler)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, err
}

func (s runtimeServer) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.service.StopPodSandbox(ctx, r.PodSandboxId)
}

func (s runtimeServer) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, s.service.RemovePodSandbox(ctx, r.PodSandboxId)
}

func (s runtimeServer) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return s.service.PodSandboxStatus(ctx, r.PodSandboxId, r.Verbose)
}

func (s runtimeServer) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	list, err := s.service.ListPodSandbox(ctx, r.Filter)
	return &runtimeapi.ListPodSandboxResponse{Items: list}, err
}

func (s runtimeServer) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	list, err := s.service.ListPodSandbox(out.Context(), r.Filter)
	return sendAll(out, list, err, func(part []*runtimeapi.PodSandbox) *runtimeapi.StreamPodSandboxesResponse {
		return &runtimeapi.StreamPodSandboxesResponse{PodSandboxes: part}
	})
}

func (s runtimeServer) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return s.service.UpdatePodSandboxResources(ctx, r)
}

func (s runtimeServer) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	id, err := s.service.CreateContainer(ctx, r.PodSandboxId, r.Config, r.SandboxConfig)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, err
}

func (s runtimeServer) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return &runtimeapi.StartContainerResponse{}, s.service.StartContainer(ctx, r.ContainerId)
}

func (s runtimeServer) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return &runtimeapi.StopContainerResponse{}, s.service.StopContainer(ctx, r.ContainerId, r.Timeout)
}

func (s runtimeServer) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return &runtimeapi.RemoveContainerResponse{}, s.service.RemoveContainer(ctx, r.ContainerId)
}

func (s runtimeServer) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	list, err := s.service.ListContainers(ctx, r.Filter)
	return &runtimeapi.ListContainersResponse{Containers: list}, err
}

func (s runtimeServer) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	list, err := s.service.ListContainers(out.Context(), r.Filter)
	return sendAll(out, list, err, func(part []*runtimeapi.Container) *runtimeapi.StreamContainersResponse {
		return &runtimeapi.StreamContainersResponse{Containers: part}
	})
}

func (s runtimeServer) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return s.service.ContainerStatus(ctx, r.ContainerId, r.Verbose)
}

func (s runtimeServer) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return &runtimeapi.UpdateContainerResourcesResponse{},
		s.service.UpdateContainerResources(ctx, r.ContainerId, &runtimeapi.ContainerResources{Linux: r.Linux})
}

func (s runtimeServer) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return &runtimeapi.ReopenContainerLogResponse{}, s.service.ReopenContainerLog(ctx, r.ContainerId)
}

// ExecSync answers a command's failure with its code, not with an error.
func (s runtimeServer) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	out, errOut, err := s.service.ExecSync(ctx, r.ContainerId, r.Cmd, time.Duration(r.Timeout)*time.Second)
	resp := &runtimeapi.ExecSyncResponse{Stdout: out, Stderr: errOut}
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		resp.ExitCode = int32(exit.Code)
		return resp, nil
	}
	return resp, err
}

func (s runtimeServer) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return s.service.Exec(ctx, r)
}

func (s runtimeServer) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return s.service.Attach(ctx, r)
}

func (s runtimeServer) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return s.service.PortForward(ctx, r)
}

func (s runtimeServer) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	stats, err := s.service.ContainerStats(ctx, r.ContainerId)
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, err
}

func (s runtimeServer) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	list, err := s.service.ListContainerStats(ctx, r.Filter)
	return &runtimeapi.ListContainerStatsResponse{Stats: list}, err
}

func (s runtimeServer) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	list, err := s.service.ListContainerStats(out.Context(), r.Filter)
	return sendAll(out, list, err, func(part []*runtimeapi.ContainerStats) *runtimeapi.StreamContainerStatsResponse {
		return &runtimeapi.StreamContainerStatsResponse{ContainerStats: part}
	})
}

func (s runtimeServer) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	stats, err := s.service.PodSandboxStats(ctx, r.PodSandboxId)
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, err
}

func (s runtimeServer) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	list, err := s.service.ListPodSandboxStats(ctx, r.Filter)
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: list}, err
}

func (s runtimeServer) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	list, err := s.service.ListPodSandboxStats(out.Context(), r.Filter)
	return sendAll(out, list, err, func(part []*runtimeapi.PodSandboxStats) *runtimeapi.StreamPodSandboxStatsResponse {
		return &runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: part}
	})
}

func (s runtimeServer) ListMetricDescriptors(ctx context.Context, _ *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	list, err := s.service.ListMetricDescriptors(ctx)
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: list}, err
}

func (s runtimeServer) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	list, err := s.service.ListPodSandboxMetrics(ctx)
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: list}, err
}

func (s runtimeServer) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	list, err := s.service.ListPodSandboxMetrics(out.Context())
	return sendAll(out, list, err, func(part []*runtimeapi.PodSandboxMetrics) *runtimeapi.StreamPodSandboxMetricsResponse {
		return &runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part}
	})
}

func (s runtimeServer) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	events := s.service.opt.Engine.Subscribe(out.Context())
	// The header tells the caller that no event from now on is missed.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	return s.service.sendEvents(out.Context(), events, out.Send)
}

func (s runtimeServer) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return &runtimeapi.CheckpointContainerResponse{}, s.service.CheckpointContainer(ctx, r)
}

func (s runtimeServer) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return &runtimeapi.CheckpointPodResponse{}, s.service.CheckpointPod(ctx, r)
}

func (s runtimeServer) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return s.service.RestorePod(ctx, r)
}
