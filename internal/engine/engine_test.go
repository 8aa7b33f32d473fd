package engine_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

func TestMain(m *testing.M) {
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}

// logOf waits for the container's end and returns what it logged, without the
// entries' heads.
func logOf(t *testing.T, m *enginetest.Machine, c engine.Container) string {
	t.Helper()
	if _, err := m.Wait(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(line, " ", 4)
		out.WriteString(fields[3])
	}
	return out.String()
}

func TestContainerDefaults(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "d", Command: []string{"sh", "-c", `
hostname; id; echo FROM=$FROM; cat /proc/self/status | while read k v; do case $k in CapEff:|Seccomp:|NoNewPrivs:|SigIgn:) echo $k $v;; esac; done
touch /proc/sys/kernel/x 2>&1; ls /proc/kcore >/dev/null; wc -l < /proc/timer_list; ls /sys/class/net; cat /etc/hosts; touch /written && echo wrote`}})
	out := logOf(t, m, c)
	// Docker's fourteen capabilities are 0xa80425fb.
	for _, want := range []string{"box\n", "uid=0", "FROM=image", "CapEff: 00000000a80425fb", "Seccomp: 2", "SigIgn: 0000000000000000", "eth0", "box", "wrote\n", "\n0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if c.Path != "sh" || c.PID == 0 && c.State != engine.StateExited { // it may have ended before it was looked at
		t.Errorf("container = %+v", c)
	}
	got, err := m.Container(t.Context(), c.ID[:12])
	if err != nil || got.State != engine.StateExited || got.ExitCode != 0 || got.Reason != "Completed" {
		t.Errorf("after its end: %+v, %v", got, err)
	}
}

func TestUserAndReadOnlyRoot(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "u", Args: []string{"sh", "-c", "id; touch /x; echo touch $?; echo to-stdout > /dev/stdout"},
		Security: engine.Security{User: "user", ReadonlyRootfs: true, NoNewPrivileges: true}})
	out := logOf(t, m, c)
	for _, want := range []string{"uid=1000(user) gid=1000(user) groups=1000(user),1001(extra)", "touch 1", "to-stdout"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestStartFailure(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	pod, err := m.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerCRI, Name: "p", LogDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for program, code := range map[string]int{"no-such-program": 127, "/etc": 126} {
		c, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "c", Image: enginetest.Busybox, Command: []string{program}})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.StartContainer(ctx, c.ID); err == nil {
			t.Errorf("%s started", program)
		}
		got, err := m.Wait(ctx, c.ID)
		if err != nil || got.ExitCode != code || got.Reason != "StartError" || got.Message == "" {
			t.Errorf("%s: %+v, %v; want code %d", program, got, err, code)
		}
	}
	if _, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "c", Image: "no-such-image"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing image: %v", err)
	}
}

// TestDaemonAway is decision 6 of the architecture: containers outlive the daemon.
func TestDaemonAway(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	pod, long := m.Run(engine.ContainerSpec{Name: "long", Command: []string{"sh", "-c", "while true; do echo tick; sleep 0.1; done"}})
	_, short := m.Run(engine.ContainerSpec{Name: "short", Command: []string{"sh", "-c", "sleep 0.5; exit 9"}})
	m.Stop()
	time.Sleep(time.Second)
	m.Start()
	got, err := m.Container(ctx, long.ID)
	if err != nil || got.State != engine.StateRunning || got.PID != long.PID {
		t.Errorf("long: %+v, %v", got, err)
	}
	got, err = m.Wait(ctx, short.ID)
	if err != nil || got.ExitCode != 9 {
		t.Errorf("short: %+v, %v; want its exit of 9", got, err)
	}
	again, err := m.Pod(ctx, pod.ID)
	if err != nil || again.State != engine.PodReady || len(again.IPs) != 1 || again.IPs[0] != pod.IPs[0] {
		t.Errorf("pod: %+v, %v", again, err)
	}
	var out bytes.Buffer
	code, err := m.Exec(ctx, long.ID, engine.ExecSpec{Args: []string{"sh", "-c", "cat; exit 4"}}, engine.Streams{Stdin: strings.NewReader("in"), Stdout: &out})
	if err != nil || code != 4 || out.String() != "in" {
		t.Errorf("exec: %d, %v, %q", code, err, out.String())
	}
	begin := time.Now()
	if err := m.StopContainer(ctx, long.ID, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got, _ := m.Container(ctx, long.ID); got.State != engine.StateExited || got.ExitCode != 137 {
		t.Errorf("after stop (%v): %+v", time.Since(begin), got)
	}
}

// TestRunnerKilled: a runner that dies takes its pod down, and nothing of it is left running.
func TestRunnerKilled(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	pod, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"sleep", "1000"}})
	if err := syscall.Kill(runnerOf(t, c), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	got, err := m.Wait(ctx, c.ID)
	if err != nil || got.ExitCode != 137 {
		t.Errorf("container: %+v, %v", got, err)
	}
	eventually(t, "the pod to be down", func() bool {
		p, err := m.Pod(ctx, pod.ID)
		return err == nil && p.State == engine.PodNotReady
	})
	if lives(c.PID) {
		t.Error("its process lives on")
	}
}

func TestArtifactVolume(t *testing.T) {
	m := enginetest.New(t)
	const model = "localhost:5000/models/digits:v1"
	layer := enginetest.Tar(t, []enginetest.File{{Name: "model.safetensors", Data: []byte("weights")}, {Name: "meta/", Mode: 0o755}, {Name: "meta/info", Data: []byte("info")}})
	archive := enginetest.ArtifactArchive(t, model, "application/vnd.cncf.model.config.v1+json", []byte(`{}`), "application/vnd.cncf.model.weight.v1.tar", layer)
	if _, err := m.Store.Load(t.Context(), bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	_, c := m.Run(engine.ContainerSpec{Name: "v", Command: []string{"sh", "-c", "cat /model/model.safetensors; echo; cat /meta/info; touch /model/x; echo touch $?"},
		Mounts: []engine.Mount{{Kind: engine.MountImage, Source: model, Destination: "/model"},
			{Kind: engine.MountImage, Source: model, Destination: "/meta", SubPath: "meta"}}})
	if out := logOf(t, m, c); !strings.Contains(out, "weights\n") || !strings.Contains(out, "info") || !strings.Contains(out, "touch 1") {
		t.Errorf("output:\n%s", out)
	}
	if err := m.Store.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.RemoveContainer(t.Context(), c.ID, false); err != nil {
		t.Fatal(err)
	}
}

// TestUnmount takes the mounts of an exited container away, as ferry down does:
// its files are kept, and it can be started again.
func TestUnmount(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	_, running := m.Run(engine.ContainerSpec{Name: "r", Command: []string{"sleep", "1000"}})
	pod, c := m.RunIn(engine.PodSpec{PID: engine.ModeContainer, StopWhenIdle: true}, engine.ContainerSpec{Name: "c", Command: []string{"sh", "-c", "cat /kept; echo yes > /kept"}})
	if _, err := m.Wait(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := m.StopPod(ctx, pod.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := m.Unmount(ctx); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := func(id string) string { return filepath.Join(m.Dir(), "run", "c", id[:12], "rootfs") }
	if bytes.Contains(mounts, []byte(root(c.ID))) || !bytes.Contains(mounts, []byte(root(running.ID))) {
		t.Errorf("mounted are:\n%s", mounts)
	}
	if err := m.StartContainer(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if out := logOf(t, m, c); !strings.HasSuffix(out, "yes\n") {
		t.Errorf("the second run printed:\n%s", out)
	}
}

// TestNothingLeft removes what it made and looks at the disk.
func TestNothingLeft(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	count := func() int {
		if err := m.Store.GC(ctx); err != nil {
			t.Fatal(err)
		}
		shared, err1 := os.ReadDir(filepath.Join(m.Dir(), "store", "snapshots", "snapshots"))
		own, err2 := os.ReadDir(filepath.Join(m.Dir(), "store", "containers"))
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return len(shared) + len(own)
	}
	// What the start has looked into is still going away where everything is slow.
	before := count()
	for same := 0; same < 5; same++ {
		time.Sleep(50 * time.Millisecond)
		if n := count(); n != before {
			before, same = n, 0
		}
	}
	pod, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"sh", "-c", "echo x > /x; sleep 100"}})
	if n := count(); n != before+2 { // and a pin on the image's layers
		t.Errorf("%d layers while it runs, %d before", n, before)
	}
	if err := m.RemovePod(ctx, pod.ID); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != before+1 {
		t.Errorf("%d layers after, %d before", n, before)
	}
	if _, err := m.Container(ctx, c.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("container: %v", err)
	}
	if _, deleted, err := m.Store.Remove(ctx, enginetest.Busybox, false); err != nil || len(deleted) != 1 {
		t.Errorf("remove image: %v, %v", deleted, err)
	}
	if n := count(); n != 0 {
		t.Errorf("%d snapshots of no image", n)
	}
	for _, dir := range []string{"run/r", "run/c", "run/p"} {
		entries, _ := os.ReadDir(filepath.Join(m.Dir(), dir))
		entries = slices.DeleteFunc(entries, func(d os.DirEntry) bool { return strings.HasPrefix(d.Name(), "spare-") }) // runners that wait
		if len(entries) != 0 {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	m := enginetest.New(b)
	for b.Loop() {
		pod, c := m.Run(engine.ContainerSpec{Name: "b", Command: []string{"true"}})
		if _, err := m.Wait(b.Context(), c.ID); err != nil {
			b.Fatal(err)
		}
		if err := m.RemovePod(b.Context(), pod.ID); err != nil {
			b.Fatal(err)
		}
	}
}
