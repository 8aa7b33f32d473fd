package engine_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// runnerOf returns the process id of a running container's runner.
func runnerOf(t *testing.T, c engine.Container) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var parent int
	rest := stat[bytes.LastIndexByte(stat, ')')+2:]
	if _, err := fmt.Sscanf(string(rest), "%s %d", &state, &parent); err != nil {
		t.Fatalf("%v: %s", err, stat)
	}
	return parent
}

// lives reports a process that has not ended. A zombie waits for the machine's
// init and is none of ours.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// TestLeftovers: what a killed daemon was in the middle of making is taken
// away at the next start, and nothing else.
func TestLeftovers(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	_, running := m.Run(engine.ContainerSpec{Name: "r", Command: []string{"sleep", "1000"}})
	_, exited := m.RunIn(engine.PodSpec{PID: engine.ModeContainer, StopWhenIdle: true}, engine.ContainerSpec{Name: "e", Command: []string{"true"}})
	if _, err := m.Wait(ctx, exited.ID); err != nil {
		t.Fatal(err)
	}
	unknown := strings.Repeat("0123456789abcdef", 4)
	image, err := m.Store.Image(ctx, enginetest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := m.Store.PrepareRootfs(ctx, unknown, enginetest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	volume, err := m.Store.ViewImage(ctx, unknown+"-volume-0", image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	of := func(path ...string) string { return filepath.Join(append([]string{m.Dir()}, path...)...) }
	rootfs, view := of("run/c", unknown[:12], "rootfs"), of("run/c", unknown[:12], "volume-0")
	shm, tmp, unpacking := of("run/p", unknown[:12], "shm"), of("store/tmp/artifact-1"), of("store/tmp/containerd-mount1")
	for _, dir := range []string{rootfs, view, shm, tmp, unpacking} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.UnmountAll(dir) })
	}
	err1, err2 := m.Store.MountAll(mounts, rootfs), m.Store.MountAll(volume, view)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for _, dir := range []string{shm, tmp, unpacking} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(of("run/p", unknown[:12], "hosts"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	m.Start()
	for _, path := range []string{filepath.Dir(rootfs), filepath.Dir(shm), tmp, unpacking} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if left, err := m.Store.Layers(ctx); err != nil || len(left) != 2 {
		t.Errorf("layers %v, %v, want those of two containers", left, err)
	}
	var out bytes.Buffer
	code, err := m.Exec(ctx, running.ID, engine.ExecSpec{Args: []string{"sh", "-c", "cat /etc/hosts && touch /dev/shm/x /x"}}, engine.Streams{Stdout: &out, Stderr: &out})
	if err != nil || code != 0 {
		t.Errorf("the running container: %d, %v, %s", code, err, out.String())
	}
	if err := m.StartContainer(ctx, exited.ID); err != nil {
		t.Errorf("the exited container: %v", err)
	}
}

// TestStrayRunnerOfStoppedPod: the daemon is killed while it starts a stopped
// pod again. The runner it launched must not be in the next start's way.
func TestStrayRunnerOfStoppedPod(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	pod, c := m.RunIn(engine.PodSpec{PID: engine.ModeContainer, StopWhenIdle: true}, engine.ContainerSpec{Name: "c", Command: []string{"sh", "-c", "echo again"}})
	if _, err := m.Wait(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := m.StopPod(ctx, pod.ID); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	shm := filepath.Join(m.Dir(), "run", "p", pod.ID[:12], "shm")
	if err := os.MkdirAll(shm, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", shm, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.UnmountAll(shm) })
	stray, err := runner.Launch(ctx, runner.LaunchOptions{Binary: runnertest.Build(t), Dir: filepath.Join(m.Dir(), "run", "r", pod.ID[:12])})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if lives(stray.PID()) {
			syscall.Kill(stray.PID(), syscall.SIGKILL)
		}
	})
	m.Start()
	if err := m.StartContainer(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if out := logOf(t, m, c); out != "again\nagain\n" {
		t.Errorf("output: %s", out)
	}
	eventually(t, "the stray runner to end", func() bool { return !lives(stray.PID()) })
}

// TestRunnerDoesNotAnswer: that the daemon gets no answer says nothing of the
// containers. They are left alone until there is one, or somebody ends them.
func TestRunnerDoesNotAnswer(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	_, kept := m.Run(engine.ContainerSpec{Name: "kept", Command: []string{"sleep", "1000"}})
	doomed, removed := m.Run(engine.ContainerSpec{Name: "removed", Command: []string{"sleep", "1000"}})
	runners := []int{runnerOf(t, kept), runnerOf(t, removed)}
	m.Stop()
	for _, pid := range runners {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the runner to stop", func() bool { // until then one thread of it or another goes on
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err == nil && bytes.Contains(stat, []byte(") T "))
		})
	}
	goOn := func() {
		for _, pid := range runners {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "ferry-runner\n" {
				syscall.Kill(pid, syscall.SIGCONT)
			}
		}
	}
	defer goOn()
	late := time.AfterFunc(time.Minute, goOn) // should the engine wait for them
	m.Start()
	if !late.Stop() {
		t.Error("the start waited for runners that did not answer")
	}
	for _, c := range []engine.Container{kept, removed} {
		if got, err := m.Container(ctx, c.ID); err != nil || got.State != engine.StateRunning || !lives(c.PID) {
			t.Errorf("%s: %+v, %v", c.Spec.Name, got, err)
		}
		if err := m.StopContainer(ctx, c.ID, 0); !fault.Is(err, fault.Unavailable) {
			t.Errorf("stop %s: %v", c.Spec.Name, err)
		}
		if err := m.RemoveContainer(ctx, c.ID, true); !fault.Is(err, fault.Unavailable) {
			t.Errorf("remove %s: %v", c.Spec.Name, err)
		}
	}
	if err := m.RemovePod(ctx, doomed.ID); err != nil {
		t.Error(err)
	}
	if lives(removed.PID) || lives(runners[1]) {
		t.Error("the removed pod lives on")
	}
	goOn()
	eventually(t, "the runner to be taken up", func() bool {
		code, err := m.Exec(ctx, kept.ID, engine.ExecSpec{Args: []string{"true"}}, engine.Streams{})
		return err == nil && code == 0
	})
	if got, err := m.Container(ctx, kept.ID); err != nil || got.State != engine.StateRunning || got.PID != kept.PID {
		t.Errorf("after all: %+v, %v", got, err)
	}
	if err := m.StopContainer(ctx, kept.ID, 0); err != nil {
		t.Error(err)
	}
}

// TestSinglePods: a pod of one container has that container's ID and comes up
// with it; one whose container was never made is forgotten.
func TestSinglePods(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	spec := engine.PodSpec{Owner: engine.OwnerDocker, Name: "one", PID: engine.ModeContainer, StopWhenIdle: true, Single: true, LogDir: m.Dir()}
	pod, err := m.CreatePod(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "one", Image: enginetest.Busybox, LogPath: "log", Command: []string{"hostname"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != pod.ID {
		t.Errorf("container %s of pod %s", c.ID, pod.ID)
	}
	if p, err := m.Pod(ctx, pod.ID); err != nil || p.State != engine.PodNotReady || len(p.IPs) > 0 {
		t.Errorf("before the start: %+v, %v", p, err)
	}
	empty, err := m.CreatePod(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	m.Stop()
	m.Start()
	if _, err := m.Pod(ctx, empty.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a pod without its container: %v", err)
	}
	if err := m.StartContainer(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(m.Dir(), "log"))
	if err != nil || !strings.Contains(string(log), c.ID[:12]) {
		t.Errorf("its host name is not its ID: %q, %v", log, err)
	}
}

// TestInterruptedNetworkChange: the daemon is killed after its network has taken
// a pod off a network and before the record says so. The next start agrees.
func TestInterruptedNetworkChange(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	d, err := m.Network.CreateNetwork(ctx, network.Definition{Name: "app"})
	if err != nil {
		t.Fatal(err)
	}
	pod, _ := m.Run(engine.ContainerSpec{Command: []string{"sleep", "1000"}})
	if err := m.Connect(ctx, pod.ID, network.EndpointSpec{Network: d.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Network.Disconnect(ctx, pod.ID, d.ID); err != nil {
		t.Fatal(err)
	}
	m.Stop()
	m.Start()
	p, err := m.Pod(ctx, pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := os.ReadFile(filepath.Join(m.Dir(), "run", "p", pod.ID[:12], "hosts"))
	if err != nil || strings.Count(string(hosts), "box") != 1 {
		t.Errorf("its hosts: %s, %v", hosts, err)
	}
	if on := p.Spec.OnNetworks(); len(on) != 1 || on[0].Network != network.DefaultNetwork {
		t.Errorf("the pod's record has the networks %+v", on)
	}
	if err := m.Connect(ctx, pod.ID, network.EndpointSpec{Network: d.ID}); err != nil {
		t.Errorf("connect again: %v", err)
	}
	if err := m.Disconnect(ctx, pod.ID, d.ID); err != nil {
		t.Errorf("disconnect again: %v", err)
	}
	if err := m.Network.RemoveNetwork(ctx, d.ID); err != nil {
		t.Error(err)
	}
}
