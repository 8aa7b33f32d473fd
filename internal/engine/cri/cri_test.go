package cri_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/cri"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/lifecycle"
)

func TestMain(m *testing.M) {
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}

// start starts a component until the end of the test.
func start(t *testing.T, c lifecycle.Component) {
	t.Helper()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stop %s: %v", c.Name(), err)
		}
	})
}

func newService(t *testing.T) (*enginetest.Machine, *cri.Service) {
	t.Helper()
	m := enginetest.New(t)
	service := cri.New(cri.Options{Engine: m.Engine, Version: "0.0.0-test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	start(t, service)
	return m, service
}

func sandbox(t *testing.T, name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		LogDirectory: t.TempDir(), Labels: map[string]string{"app": name}, Linux: &runtimeapi.LinuxPodSandboxConfig{}}
}

func shell(name, script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: enginetest.Busybox},
		Command: []string{"sh", "-c", script}, LogPath: name + ".log", Linux: &runtimeapi.LinuxContainerConfig{}}
}

// TestSameByCallAndSocket runs one story through the Go calls and through gRPC.
func TestSameByCallAndSocket(t *testing.T) {
	m, service := newService(t)
	path := filepath.Join(m.Dir(), "cri.sock")
	start(t, cri.NewSocket(service, path, slog.New(slog.NewTextHandler(t.Output(), nil))))
	remote, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + path).WithConnectionTimeout(10 * time.Second).Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("calls", func(t *testing.T) { story(t, service, "calls") })
	t.Run("socket", func(t *testing.T) { story(t, remote, "socket") })
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
}

func story(t *testing.T, rt internalapi.RuntimeService, name string) {
	ctx := t.Context()
	config := sandbox(t, name)
	podID, err := rt.RunPodSandbox(ctx, config, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.RunPodSandbox(ctx, config, ""); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same pod again: %v", err)
	}
	pod, err := rt.PodSandboxStatus(ctx, podID, true)
	if err != nil || pod.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || net.ParseIP(pod.Status.Network.Ip) == nil || pod.Info["info"] == "" {
		t.Fatalf("%v, %v", pod, err)
	}
	id, err := rt.CreateContainer(ctx, podID, shell("c", "echo hello; sleep 1000"), config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.CreateContainer(ctx, podID, shell("c", "true"), config); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same container again: %v", err)
	}
	if err := rt.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := rt.StartContainer(ctx, id); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a second start: %v", err)
	}
	running := runtimeapi.ContainerState_CONTAINER_RUNNING
	list, err := rt.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: podID, State: &runtimeapi.ContainerStateValue{State: running}})
	if err != nil || len(list) != 1 || list[0].Id != id {
		t.Errorf("list: %v, %v", list, err)
	}
	execs(t, rt, id)
	stats, err := rt.PodSandboxStats(ctx, podID)
	if err != nil || len(stats.Linux.Containers) != 1 || stats.Linux.Memory.UsageBytes.Value == 0 || stats.Linux.Process.ProcessCount.Value == 0 ||
		stats.Linux.Network.GetDefaultInterface().GetName() != "eth0" {
		t.Errorf("stats: %v, %v", stats, err)
	}
	if err := rt.StopContainer(ctx, id, 0); err != nil {
		t.Fatal(err)
	}
	got, err := rt.ContainerStatus(ctx, id, false)
	if err != nil || got.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED || got.Status.ExitCode != 137 ||
		got.Status.StopSignal != runtimeapi.Signal_SIGNAL_SIGTERM {
		t.Errorf("after its end: %v, %v", got, err)
	}
	if text, err := os.ReadFile(got.GetStatus().GetLogPath()); err != nil || !strings.HasSuffix(string(text), " stdout F hello\n") {
		t.Errorf("log: %q, %v", text, err)
	}
	gone(t, rt, podID, id)
}

// execs are processes beside the first, by their exit.
func execs(t *testing.T, rt internalapi.RuntimeService, id string) {
	ctx := t.Context()
	out, errOut, err := rt.ExecSync(ctx, id, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, 5*time.Second)
	var exit interface{ ExitStatus() int }
	if e, ok := err.(interface{ ExitStatus() int }); ok {
		exit = e
	}
	if string(out) != "out\n" || string(errOut) != "err\n" || exit == nil || exit.ExitStatus() != 3 {
		t.Errorf("exec: %q, %q, %v", out, errOut, err)
	}
	if _, _, err := rt.ExecSync(ctx, id, []string{"sleep", "100"}, time.Second); err == nil || !strings.Contains(err.Error(), criclient.ErrCommandTimedOut.Error()) {
		t.Errorf("an exec that takes too long: %v", err)
	}
}

// gone removes twice what removes once.
func gone(t *testing.T, rt internalapi.RuntimeService, podID, id string) {
	ctx := t.Context()
	for range 2 {
		for name, err := range map[string]error{"stop container": rt.StopContainer(ctx, id, 1), "remove container": rt.RemoveContainer(ctx, id),
			"stop pod": rt.StopPodSandbox(ctx, podID), "remove pod": rt.RemovePodSandbox(ctx, podID)} {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := rt.PodSandboxStatus(ctx, podID, false); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed pod: %v", err)
	}
}

// TestNoLog: the kubelet removes a container's log, and all files whose names
// begin like it. Where there is none that must not be any file.
func TestNoLog(t *testing.T) {
	_, rt := newService(t)
	ctx := t.Context()
	config := sandbox(t, "quiet")
	podID, err := rt.RunPodSandbox(ctx, config, "")
	if err != nil {
		t.Fatal(err)
	}
	container := shell("c", "echo hello")
	container.LogPath = ""
	id, err := rt.CreateContainer(ctx, podID, container, config)
	if err != nil {
		t.Fatal(err)
	}
	got, err := rt.ContainerStatus(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	path := got.Status.LogPath
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) > 0 || !filepath.IsAbs(path) {
		t.Errorf("the log of a container without one is %q, which is %v, %v", path, files, err)
	}
	gone(t, rt, podID, id)
}

// TestNotOurs: containers of others are neither seen nor touched.
func TestNotOurs(t *testing.T) {
	m, service := newService(t)
	ctx := t.Context()
	pod, c := m.Run(engine.ContainerSpec{Name: "docker", Command: []string{"sleep", "1000"}})
	if list, err := service.ListContainers(ctx, nil); err != nil || len(list) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := service.ContainerStatus(ctx, c.ID, false); status.Code(err) != codes.NotFound {
		t.Errorf("status: %v", err)
	}
	for name, err := range map[string]error{"stop": service.StopContainer(ctx, c.ID, 0), "remove": service.RemoveContainer(ctx, c.ID),
		"stop pod": service.StopPodSandbox(ctx, pod.ID), "remove pod": service.RemovePodSandbox(ctx, pod.ID)} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := m.Container(ctx, c.ID); err != nil || got.State != engine.StateRunning {
		t.Errorf("the container of another: %+v, %v", got, err)
	}
}

// TestStopAtOnce stops pods before anything has had time to settle: a runner
// that was told to end while the engine was still connecting stayed for ever.
func TestStopAtOnce(t *testing.T) {
	_, service := newService(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 50 {
		id, err := service.RunPodSandbox(ctx, sandbox(t, "p"), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := service.StopPodSandbox(ctx, id); err != nil {
			t.Fatal(err)
		}
		if err := service.RemovePodSandbox(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEvents: what the kubelet's evented PLEG hears of one container.
func TestEvents(t *testing.T) {
	_, service := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	events, ready, done := make(chan *runtimeapi.ContainerEventResponse), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- service.GetContainerEvents(ctx, events, func(runtimeapi.RuntimeService_GetContainerEventsClient) { close(ready) })
	}()
	<-ready
	config := sandbox(t, "p")
	podID, err := service.RunPodSandbox(ctx, config, "")
	if err != nil {
		t.Fatal(err)
	}
	id, err := service.CreateContainer(ctx, podID, shell("c", "exit 5"), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := service.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		id   string
		kind runtimeapi.ContainerEventType
	}{{podID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT}, {id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT},
		{id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT}, {id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT}} {
		select {
		case ev := <-events:
			if ev.ContainerId != want.id || ev.ContainerEventType != want.kind || ev.PodSandboxStatus.GetMetadata().GetName() != "p" {
				t.Errorf("event %v of %s, want %v of %s", ev.ContainerEventType, ev.ContainerId, want.kind, want.id)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no %v", want.kind)
		}
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The kubelet goes on after the runtime has stopped, until the process ends.
func TestNothingChangesAfterStop(t *testing.T) {
	m := enginetest.New(t)
	rt := cri.New(cri.Options{Engine: m.Engine, Version: "0.0.0-test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx := t.Context()
	if err := errors.Join(rt.Start(ctx), rt.Stop(ctx)); err != nil {
		t.Fatal(err)
	}
	_, runErr := rt.RunPodSandbox(ctx, &runtimeapi.PodSandboxConfig{}, "")
	for call, err := range map[string]error{"run pod": runErr, "start container": rt.StartContainer(ctx, "x"), "remove pod": rt.RemovePodSandbox(ctx, "x")} {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s after stop: %v, want Unavailable", call, err)
		}
	}
}
