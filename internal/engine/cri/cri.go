// Package cri is the Kubernetes Container Runtime Interface (v1) over the
// engine: as Go interfaces for the kubelet in this process, and as a gRPC
// socket for crictl and critest.
//
// It translates and decides nothing: what a field means is the engine's
// business, what a pod is the kubelet's. It is imported by the composition
// root, which hands the Service to package kube.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// RuntimeName is what the node reports as its container runtime.
const RuntimeName = "ferry"

var (
	_ internalapi.RuntimeService      = (*Service)(nil)
	_ internalapi.ImageManagerService = (*Service)(nil)
)

// Options are what a Service is made from.
type Options struct {
	Engine  *engine.Engine
	Version string // of Ferry, semantic
	PodCIDR string // "" is unknown
	Log     *slog.Logger
}

// Service is the CRI. Its methods may be called concurrently. It is a
// lifecycle.Component: Start opens the server that streams exec, attach and
// port-forward on loopback, which the kubelet reaches by the URLs it is given.
type Service struct {
	opt     Options
	streams streaming.Server
	http    *http.Server
	served  chan struct{}
	making  names
	gate    gate
	users   func() bool // whether pods may have user namespaces, found out at the first call
}

// names are the names of the pods and containers that are being made, so that
// a caller who has lost patience and asks again does not get two.
type names struct {
	mu   sync.Mutex
	held map[string]bool
}

// hold takes a name until release is called; it is taken already or exists if
// taken says so, which is asked under the lock.
func (n *names) hold(name string, exists func() bool) (release func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held[name] || exists() {
		return nil, status.Errorf(codes.AlreadyExists, "%s exists already", name)
	}
	if n.held == nil {
		n.held = map[string]bool{}
	}
	n.held[name] = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.held, name)
	}, nil
}

// New returns a Service that does nothing before Start.
func New(opt Options) *Service {
	s := &Service{opt: opt}
	s.users = sync.OnceValue(func() bool {
		err := opt.Engine.CheckUsers()
		if err != nil {
			opt.Log.Warn("pods cannot have user namespaces", "error", err)
		}
		return err == nil
	})
	return s
}

// Name implements lifecycle.Component.
func (s *Service) Name() string { return "runtime interface" }

// Start starts the streaming server.
func (s *Service) Start(context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("streaming server: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	s.streams, err = streaming.NewServer(config, streamer{s.opt.Engine})
	if err != nil {
		l.Close()
		return fmt.Errorf("streaming server: %w", err)
	}
	s.served = make(chan struct{})
	s.http = &http.Server{Handler: s.streams, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.opt.Log.Error("streaming server ended", "error", err)
		}
	}()
	return nil
}

// stopTime is how long calls under way get to end.
const stopTime = time.Second

// Stop ends the streaming server and the streams, and refuses changes from then on.
func (s *Service) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	s.gate.close(ctx)
	err := s.http.Close()
	<-s.served
	return err
}

// Close implements the Go interfaces; the engine is not the kubelet's to close.
func (s *Service) Close(context.Context) error { return nil }

// Version names the runtime.
func (s *Service) Version(context.Context, string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: RuntimeName, RuntimeVersion: s.opt.Version, RuntimeApiVersion: "v1"}, nil
}

// Status reports the runtime and its network as ready: both are, once started.
func (s *Service) Status(_ context.Context, verbose bool) (*runtimeapi.StatusResponse, error) {
	r := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: true, UserNamespaces: s.users()}}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if verbose {
		info, err := json.Marshal(map[string]string{"version": s.opt.Version, "podCIDR": s.opt.PodCIDR, "cgroups": cgroups.Version()})
		if err != nil {
			return nil, asStatus(err)
		}
		r.Info = map[string]string{"config": string(info)}
	}
	return r, nil
}

// RuntimeConfig says how cgroups are named.
func (s *Service) RuntimeConfig(context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig takes the pod range, which the network has from the
// configuration already.
func (s *Service) UpdateRuntimeConfig(_ context.Context, c *runtimeapi.RuntimeConfig) error {
	if cidr := c.GetNetworkConfig().GetPodCidr(); cidr != "" && s.opt.PodCIDR != "" && cidr != s.opt.PodCIDR {
		s.opt.Log.Warn("the cluster's pod range is not the network's", "cluster", cidr, "network", s.opt.PodCIDR)
	}
	return nil
}

// asStatus gives an error the gRPC code of its kind, which is what CRI clients look at.
func asStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		code = codes.InvalidArgument
	case fault.NotFound:
		code = codes.NotFound
	case fault.Conflict:
		code = codes.FailedPrecondition
	case fault.Denied:
		code = codes.PermissionDenied
	case fault.Unavailable:
		code = codes.Unavailable
	case fault.Unsupported:
		code = codes.Unimplemented
	}
	text := err.Error()
	if hint := fault.HintOf(err); hint != "" {
		text += " (" + hint + ")"
	}
	return status.Error(code, text)
}

// pod returns a pod that is the kubelet's; any other is not found.
func (s *Service) pod(ctx context.Context, id string) (engine.Pod, error) {
	p, err := s.opt.Engine.Pod(ctx, id)
	if err == nil && p.Spec.Owner != engine.OwnerCRI {
		err = fault.New(fault.NotFound, "no such pod: %s", id)
	}
	return p, asStatus(err)
}

func (s *Service) container(ctx context.Context, id string) (engine.Container, error) {
	c, err := s.opt.Engine.Container(ctx, id)
	if err != nil {
		return c, asStatus(err)
	}
	_, err = s.pod(ctx, c.PodID)
	return c, err
}

// matches reports whether labels hold all of the selector's.
func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// ignoreNotFound is for calls that are fine with what is gone already.
func ignoreNotFound(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}
