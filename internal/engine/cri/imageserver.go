package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imageServer is the Service in gRPC's form.
type imageServer struct {
	runtimeapi.UnimplementedImageServiceServer
	service *Service
}

func (s imageServer) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.service.ListImages(ctx, r.Filter)
	return &runtimeapi.ListImagesResponse{Images: list}, err
}

func (s imageServer) StreamImages(r *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	list, err := s.service.ListImages(out.Context(), r.Filter)
	return sendAll(out, list, err, func(part []*runtimeapi.Image) *runtimeapi.StreamImagesResponse {
		return &runtimeapi.StreamImagesResponse{Images: part}
	})
}

func (s imageServer) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return s.service.ImageStatus(ctx, r.Image, r.Verbose)
}

func (s imageServer) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref, err := s.service.PullImage(ctx, r.Image, r.Auth, r.SandboxConfig)
	return &runtimeapi.PullImageResponse{ImageRef: ref}, err
}

func (s imageServer) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return &runtimeapi.RemoveImageResponse{}, s.service.RemoveImage(ctx, r.Image)
}

func (s imageServer) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return s.service.ImageFsInfo(ctx)
}
