package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/test/machine"
)

// sandboxRuns is how many pods each runtime makes, in turns.
const sandboxRuns = 40

// cri measures the engine alone, over its CRI socket: RunPodSandbox,
// CreateContainer and StartContainer, beside containerd with runc.
func (b *bench) cri(ctx context.Context, m *machine.Machine) (err error) {
	registry := fmt.Sprintf("localhost:%d/", m.Registry)
	image, pause := registry+"box:latest", registry+"pause:latest"
	dir := filepath.Join(m.Dir, "pause")
	if err := errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM box\nCMD [\"/bin/sleep\", \"100000\"]\n"), 0o644)); err != nil {
		return err
	}
	for _, args := range [][]string{{"build", "-q", "-t", pause, dir}, {"tag", "box", image}, {"push", image}, {"push", pause}} {
		if _, err := m.Run("ferry", args...); err != nil {
			return err
		}
	}
	peer, err := startContainerd(ctx, m.Dir, pause)
	if err != nil {
		return fmt.Errorf("containerd, the peer: %w", err)
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	ours, err := dialCRI(filepath.Join(m.RunDir, "cri.sock"), image)
	if err != nil {
		return err
	}
	defer ours.close()
	theirs, err := dialCRI(peer.socket, image)
	if err != nil {
		return err
	}
	defer theirs.close()
	if _, err := theirs.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		return fmt.Errorf("containerd: pull: %w", err)
	}
	var mine, peers steps
	for i := range sandboxRuns + 1 {
		one, err := ours.pod(ctx, "", i)
		for again := 0; err != nil && again < 10; again++ {
			// Ferry's kubelet looks every two seconds for pods that the cluster does not know, and ends them.
			one, err = ours.pod(ctx, "", i)
		}
		if err != nil {
			return fmt.Errorf("ferry: %w", err)
		}
		other, err := theirs.pod(ctx, peer.cgroup(), i)
		if err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		if i > 0 { // the first of each warms up
			mine.add(one)
			peers.add(other)
		}
	}
	b.add("the engine alone, over CRI: RunPodSandbox, CreateContainer, StartContainer", "p50 ≤ 12 ms, ≤ 0.1 × containerd", mine.sum.String(),
		fmt.Sprintf("%s with runc: %s, ratio %.2f", peer.version, peers.sum, mine.sum.median().Seconds()/peers.sum.median().Seconds()))
	b.details = append(b.details, fmt.Sprintf("Over CRI, step by step, p50: ferry %s; containerd %s.", mine, peers))
	return nil
}

// steps are the calls that bring up a pod of one container.
type steps struct{ sandbox, create, start, sum durations }

func (s *steps) add(took [3]time.Duration) {
	s.sandbox, s.create, s.start = append(s.sandbox, took[0]), append(s.create, took[1]), append(s.start, took[2])
	s.sum = append(s.sum, took[0]+took[1]+took[2])
}

func (s steps) String() string {
	ms := func(d durations) string { return fmt.Sprintf("%.1f ms", d.median().Seconds()*1000) }
	return fmt.Sprintf("RunPodSandbox %s, CreateContainer %s, StartContainer %s, together %s", ms(s.sandbox), ms(s.create), ms(s.start), ms(s.sum))
}

// criClient is a client of a runtime's socket.
type criClient struct {
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
	image   string
}

func dialCRI(socket, image string) (*criClient, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &criClient{conn: conn, runtime: runtimeapi.NewRuntimeServiceClient(conn), images: runtimeapi.NewImageServiceClient(conn), image: image}, nil
}

func (c *criClient) close() { _ = c.conn.Close() }

// pod brings up a pod of one container and removes it; what counts is the way up.
func (c *criClient) pod(ctx context.Context, cgroup string, i int) (took [3]time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	name := fmt.Sprintf("cri-%d", i)
	// As the kubelet asks for it where a pod does not say shareProcessNamespace.
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: cgroup, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}}}
	var sandbox *runtimeapi.RunPodSandboxResponse
	if took[0], err = timed(func() (err error) {
		sandbox, err = c.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		return err
	}); err != nil {
		return took, err
	}
	defer func() { // whatever happened; removal of what runs kills it
		_, stopErr := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		_, removeErr := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		err = errors.Join(err, stopErr, removeErr)
	}()
	var container *runtimeapi.CreateContainerResponse
	if took[1], err = timed(func() (err error) {
		container, err = c.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, SandboxConfig: config,
			Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: c.image},
				Command: []string{"sleep", "1000"}, Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces,
					Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}}}}})
		return err
	}); err != nil {
		return took, err
	}
	took[2], err = timed(func() error {
		_, err := c.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: container.ContainerId})
		return err
	})
	return took, err
}
