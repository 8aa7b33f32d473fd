package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is the largest message in either direction: ExecSync's two
// streams fit into it.
const maxMessage = 2*execLimit + 1<<20

// Socket serves a Service as gRPC on a unix socket, for crictl and critest. It
// is a lifecycle.Component, to be started after the Service.
type Socket struct {
	service *Service
	path    string
	log     *slog.Logger
	server  *grpc.Server
	served  chan struct{}
}

// NewSocket returns a Socket at path that does nothing before Start. Only root
// can connect to it.
func NewSocket(service *Service, path string, log *slog.Logger) *Socket {
	return &Socket{service: service, path: path, log: log}
}

// Name implements lifecycle.Component.
func (s *Socket) Name() string { return "runtime socket" }

// Start listens, in place of a socket that an ended process has left.
func (s *Socket) Start(context.Context) error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container runtime socket: %w", err)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return fmt.Errorf("container runtime socket: %w", err)
	}
	if err := os.Chmod(s.path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("container runtime socket: %w", err)
	}
	s.server = grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	runtimeapi.RegisterRuntimeServiceServer(s.server, runtimeServer{service: s.service})
	runtimeapi.RegisterImageServiceServer(s.server, imageServer{service: s.service})
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		if err := s.server.Serve(l); err != nil {
			s.log.Error("container runtime socket ended", "error", err)
		}
	}()
	return nil
}

// Stop breaks off the calls in progress and removes the socket.
func (s *Socket) Stop(context.Context) error {
	s.server.Stop()
	<-s.served
	return nil
}
