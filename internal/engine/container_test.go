package engine_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// TestSignalsAreDefault: what the runner does with signals is not inherited by
// programs, whose shells could not trap an ignored one.
func TestSignalsAreDefault(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "p", Command: []string{"cat", "/proc/1/status"}})
	if out := logOf(t, m, c); !strings.Contains(out, "SigIgn:\t0000000000000000\n") {
		t.Errorf("signals are ignored:\n%s", out)
	}
	_, c = m.Run(engine.ContainerSpec{Name: "s", Command: []string{"sh", "-c",
		`for s in HUP INT TERM PIPE; do trap "echo trapped $s" $s; kill -$s $$; done`}})
	if out, want := logOf(t, m, c), "trapped HUP\ntrapped INT\ntrapped TERM\ntrapped PIPE\n"; out != want {
		t.Errorf("output:\n%swant:\n%s", out, want)
	}
}

// TestOOMScore: the adjustment of this process is not its containers', for the
// kubelet changes the daemon's.
func TestOOMScore(t *testing.T) {
	m := enginetest.New(t)
	const own = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != "0\n" {
		t.Skipf("this process's own adjustment is %s", before)
	}
	if err := os.WriteFile(own, []byte("321"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(own, before, 0)
	_, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"cat", own}})
	if out := logOf(t, m, c); out != "0\n" {
		t.Errorf("a container's is %swant 0", out)
	}
	var out bytes.Buffer
	step := &specs.Spec{Version: specs.Version, Root: &specs.Root{Path: runnertest.Rootfs(t)},
		Process: &specs.Process{Args: []string{"cat", own}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}}}
	code, err := m.RunBundle(t.Context(), engine.Bundle{ID: "step-of-a-build", Spec: step, Network: engine.ModeNone}, engine.Streams{Stdout: &out})
	if err != nil || code != 0 || out.String() != "0\n" {
		t.Errorf("a bundle's is %s(%d, %v), want 0", out.String(), code, err)
	}
}

// TestDirectoriesArePrivate: users of the machine have no way to containers'
// roots and to images, and users inside read what is mounted from there.
func TestDirectoriesArePrivate(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "c", Security: engine.Security{User: "user"},
		Command: []string{"sh", "-c", "cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null && touch /dev/shm/x && echo fine"}})
	if out := logOf(t, m, c); out != "fine\n" {
		t.Errorf("a user in a container: %s", out)
	}
	m.Stop()
	dirs := []string{"run/c/" + c.ID[:12], "run/p", "run/r", "store"}
	for _, dir := range dirs { // as an earlier version left them
		if err := os.Chmod(filepath.Join(m.Dir(), dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.Start()
	for _, dir := range dirs {
		if st, err := os.Stat(filepath.Join(m.Dir(), dir)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, st, err)
		}
	}
}

// TestUserFilesThatAreNone: a container may put anything in the place of its
// list of users; the engine must not wait for a writer of a pipe.
func TestUserFilesThatAreNone(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"sh", "-c", "rm /etc/passwd; busybox mkfifo /etc/passwd; echo ready; sleep 1000"}})
	logged(t, c, "ready")
	exec := func(user string, args ...string) (string, error) {
		t.Helper()
		var out bytes.Buffer
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err = m.Exec(t.Context(), c.ID, engine.ExecSpec{Args: args, User: user}, engine.Streams{Stdout: &out, Stderr: &out})
		}()
		select {
		case <-done:
			return out.String(), err
		case <-time.After(time.Minute):
			t.Fatal("the engine waits for the container's pipe")
			return "", nil
		}
	}
	status := []string{"cat", "/proc/self/status"} // id itself would read the pipe
	if out, err := exec("1000", status...); err != nil || !strings.Contains(out, "\nUid:\t1000\t") {
		t.Errorf("by number: %q, %v", out, err)
	}
	if _, err := exec("user", status...); !fault.Is(err, fault.Invalid) {
		t.Errorf("by a name that nothing defines: %v", err)
	}
	// A link is followed as the container follows it, not to the host's file.
	if out, err := exec("0", "sh", "-c", "rm /etc/passwd; echo inside:x:77:77:::/ > /etc/mine; ln -s /etc/mine /etc/passwd"); err != nil {
		t.Fatal(out, err)
	}
	if out, err := exec("inside", status...); err != nil || !strings.Contains(out, "\nUid:\t77\t") {
		t.Errorf("by a link: %q, %v", out, err)
	}
}

// logged waits until a running container has logged a line.
func logged(t *testing.T, c engine.Container, line string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s to log %q", c.Spec.Name, line), func() bool {
		data, err := os.ReadFile(c.LogPath)
		return err == nil && strings.Contains(string(data), " "+line+"\n")
	})
}

// TestImpatience: who kills or removes does not wait for who stops with patience.
func TestImpatience(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	const patience = 30 * time.Second
	for name, end := range map[string]func(engine.Container) error{
		"kill":   func(c engine.Container) error { return m.StopContainer(ctx, c.ID, 0) },
		"stop":   func(c engine.Container) error { return m.StopContainer(ctx, c.ID, 10*time.Millisecond) },
		"remove": func(c engine.Container) error { return m.RemoveContainer(ctx, c.ID, true) },
		"pod":    func(c engine.Container) error { return m.RemovePod(ctx, c.PodID) },
	} {
		_, c := m.Run(engine.ContainerSpec{Name: name, Command: []string{"sh", "-c", "trap 'echo asked' TERM; echo ready; while true; do sleep 0.1; done"}})
		logged(t, c, "ready")
		patient := make(chan error, 1)
		go func() { patient <- m.StopContainer(ctx, c.ID, patience) }()
		logged(t, c, "asked")
		begin := time.Now()
		if err := end(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-patient; err != nil {
			t.Errorf("%s: the first stop: %v", name, err)
		}
		if took := time.Since(begin); took > patience/2 {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// TestStopAll: each container may end by itself within its own grace.
func TestStopAll(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	short, forever := 50*time.Millisecond, -time.Second
	const script = "; echo ready; while true; do sleep 0.05; done"
	type container struct {
		trap  string
		grace *time.Duration
		code  int
	}
	for most, containers := range map[time.Duration][]container{
		time.Minute: {{"trap 'sleep 0.3; exit 5' TERM", nil, 5}, {"trap 'exit 6' TERM", &forever, 6}, {"trap '' TERM", &short, 137}},
		short:       {{"trap '' TERM", &forever, 137}},
	} {
		want := map[string]int{}
		for _, c := range containers {
			_, ctr := m.Run(engine.ContainerSpec{Name: c.trap, Command: []string{"sh", "-c", c.trap + script}, StopGrace: c.grace})
			logged(t, ctr, "ready")
			want[ctr.ID] = c.code
		}
		if err := m.StopAll(ctx, most); err != nil {
			t.Fatal(err)
		}
		for id, code := range want {
			if c, err := m.Container(ctx, id); err != nil || c.State != engine.StateExited || c.ExitCode != code {
				t.Errorf("%s is %s with code %d, %v; want code %d", c.Spec.Name, c.State, c.ExitCode, err, code)
			}
		}
	}
	for _, p := range m.Pods(ctx, "") {
		if p.State != engine.PodNotReady {
			t.Errorf("pod of %s is %s", p.ID, p.State)
		}
	}
}

// TestRestart starts containers again the moment they have ended, when their
// pods are about to stop for being idle.
func TestRestart(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	var all sync.WaitGroup
	for i := range 4 {
		pod, err := m.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: fmt.Sprint("p", i), PID: engine.ModeContainer, StopWhenIdle: true})
		if err != nil {
			t.Fatal(err)
		}
		program := []string{"true"}
		if i%2 == 1 { // one that is stopped
			program = []string{"sleep", "1000"}
		}
		c, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "c", Image: enginetest.Busybox, Command: program})
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for n := range 20 {
				if err := m.StartContainer(ctx, c.ID); err != nil {
					t.Errorf("%v, start %d: %v", program, n, err)
					return
				}
				if i%2 == 1 {
					if err := m.StopContainer(ctx, c.ID, 0); err != nil {
						t.Errorf("%v, stop %d: %v", program, n, err)
						return
					}
				}
				if _, err := m.Wait(ctx, c.ID); err != nil {
					t.Errorf("%v, end %d: %v", program, n, err)
					return
				}
			}
		})
	}
	all.Wait()
	pod, err := m.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: "none", PID: engine.ModeContainer, StopWhenIdle: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "none", Image: enginetest.Busybox, Command: []string{"no-such-program"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := m.StartContainer(ctx, c.ID); err == nil || !strings.Contains(err.Error(), "executable file not found") {
			t.Errorf("a program that does not exist: %v", err)
		}
	}
	eventually(t, "all pods to be idle", func() bool {
		return !slices.ContainsFunc(m.Pods(ctx, ""), func(p engine.Pod) bool { return p.State == engine.PodReady })
	})
}
