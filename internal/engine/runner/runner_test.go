package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

func TestMain(m *testing.M) {
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}

// harness is one runner and a root for its containers.
type harness struct {
	*runner.Client
	dir, root, cgroup string
	ns                runner.Namespaces
}

func newHarness(tb testing.TB, setup runner.SetupRequest) *harness {
	tb.Helper()
	runnertest.NeedRoot(tb)
	base, err := os.MkdirTemp("", "runner")
	if err != nil {
		tb.Fatal(err)
	}
	h := &harness{dir: filepath.Join(base, "r", "pod"), root: runnertest.Rootfs(tb), cgroup: "/ferrytest-" + filepath.Base(base)}
	h.Client, err = runner.Launch(tb.Context(), runner.LaunchOptions{Binary: runnertest.Build(tb), Dir: h.dir})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 20*time.Second)
		defer cancel()
		if err := h.Shutdown(ctx); err != nil && !fault.Is(err, fault.Unavailable) {
			tb.Errorf("shutdown: %v", err)
		}
		if log, _ := os.ReadFile(filepath.Join(h.dir, "log")); len(log) > 0 {
			tb.Logf("runner's log:\n%s", log)
		}
		if err := runner.KillOrphans(h.cgroup); err != nil {
			tb.Error(err)
		}
		if err := os.RemoveAll(base); err != nil {
			tb.Error(err)
		}
	})
	if h.ns, err = h.Setup(tb.Context(), setup); err != nil {
		tb.Fatal(err)
	}
	return h
}

// spec is a container like the engine's, with Docker's default seccomp profile.
func (h *harness) spec(tb testing.TB, id string, args ...string) *specs.Spec {
	tb.Helper()
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_CHROOT"}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: h.root, Readonly: true},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
		},
		Linux: &specs.Linux{CgroupsPath: h.cgroup + "/" + id, Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
			{Type: specs.PIDNamespace, Path: h.ns.PID}, {Type: specs.IPCNamespace, Path: h.ns.IPC}, {Type: specs.UTSNamespace, Path: h.ns.UTS},
		}},
	}
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		tb.Fatal(err)
	}
	s.Linux.Seccomp = profile
	return s
}

// run runs a container to its end and returns its exit and output.
func (h *harness) run(tb testing.TB, r runner.CreateRequest) (runner.Exit, string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	if _, err := h.Create(ctx, r); err != nil {
		tb.Fatalf("create: %v", err)
	}
	var out bytes.Buffer
	attached, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- h.Attach(ctx, r.ID, runner.Streams{Stdout: &out, Stderr: &out, Started: func() { close(attached) }})
	}()
	<-attached
	if err := h.Start(ctx, r.ID); err != nil {
		tb.Fatalf("start: %v", err)
	}
	x, err := h.Wait(ctx, r.ID)
	if err != nil {
		tb.Fatalf("wait: %v", err)
	}
	if err := <-done; err != nil {
		tb.Errorf("attach: %v", err)
	}
	if err := h.Delete(ctx, r.ID, false); err != nil {
		tb.Errorf("delete: %v", err)
	}
	return x, out.String()
}

func TestRunAndLog(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{Hostname: "pod-1"})
	log := filepath.Join(t.TempDir(), "c.log")
	x, out := h.run(t, runner.CreateRequest{ID: "one", LogPath: log,
		Spec: h.spec(t, "one", "sh", "-c", "hostname; echo err >&2; printf tail; exit 7")})
	if x.Code != 7 || x.OOMKilled || x.StartedAt.IsZero() || x.FinishedAt.Before(x.StartedAt) {
		t.Errorf("exit = %+v, want code 7", x)
	}
	if !strings.Contains(out, "pod-1\n") || !strings.Contains(out, "err\n") || !strings.Contains(out, "tail") {
		t.Errorf("output = %q", out)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" stdout F pod-1\n", " stderr F err\n", " stdout P tail\n"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("log has no %q:\n%s", want, data)
		}
	}
}

func TestProgramsThatCannotStart(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	for i, tt := range []struct{ program, want string }{
		{"nothing-of-that-name", "executable file not found"},
		{"/bin/nothing", "no such file or directory"},
		{"/etc", "is a directory"},
	} {
		id := fmt.Sprintf("bad%d", i)
		if _, err := h.Create(t.Context(), runner.CreateRequest{ID: id, Spec: h.spec(t, id, tt.program)}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q in it", tt.program, err, tt.want)
		}
	}
	if list, err := h.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

func TestExecAndTerminal(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	ctx := t.Context()
	pid, err := h.Create(ctx, runner.CreateRequest{ID: "c", Spec: h.spec(t, "c", "sleep", "1000")})
	if err != nil || pid <= 0 {
		t.Fatalf("create: %d, %v", pid, err)
	}
	if err := h.Start(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	p := h.spec(t, "c").Process
	p.Args = []string{"sh", "-c", "cat; echo to-err >&2; exit 3"}
	var out, errOut bytes.Buffer
	code, err := h.Exec(ctx, runner.ExecRequest{ContainerID: "c", ExecID: "e", Process: p, Stdin: true},
		runner.Streams{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut})
	if err != nil || code != 3 || out.String() != "hello" || errOut.String() != "to-err\n" {
		t.Errorf("exec = %d, %v, %q, %q", code, err, out.String(), errOut.String())
	}
	p.Args, p.Terminal = []string{"stty", "size"}, true
	p.ConsoleSize = &specs.Box{Width: 91, Height: 33}
	out.Reset()
	code, err = h.Exec(ctx, runner.ExecRequest{ContainerID: "c", ExecID: "t", Process: p, TTY: true}, runner.Streams{Stdout: &out})
	if err != nil || code != 0 || out.String() != "33 91\r\n" {
		t.Errorf("terminal exec = %d, %v, %q", code, err, out.String())
	}
	// A caller that goes away takes its process with it.
	p.Args, p.Terminal, p.ConsoleSize = []string{"sleep", "777"}, false, nil
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := h.Exec(short, runner.ExecRequest{ContainerID: "c", ExecID: "k", Process: p}, runner.Streams{}); err == nil {
		t.Error("the cancelled exec returned no error")
	}
	eventually(t, "the cancelled exec to end", func() bool {
		pids, err := h.Processes(ctx, "c")
		return err == nil && len(pids) == 1
	})
	if err := h.Signal(ctx, "c", syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x, err := h.Wait(ctx, "c"); err != nil || x.Code != 137 {
		t.Errorf("exit = %+v, %v", x, err)
	}
	if x, err := runner.ReadExit(h.dir, "c"); err != nil || x.Code != 137 {
		t.Errorf("exit on disk = %+v, %v", x, err)
	}
}

// TestExecLeavesProcess: what an exec leaves running, quiet or not, holds its
// output open; the caller gets the exit code nevertheless.
func TestExecLeavesProcess(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := h.Create(ctx, runner.CreateRequest{ID: "c", Spec: h.spec(t, "c", "sleep", "1000")}); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	for i, left := range []string{"sleep 1000", "yes"} {
		both.Go(func() {
			p := h.spec(t, "c").Process
			p.Args = []string{"sh", "-c", left + " & exit 3"}
			code, err := h.Exec(ctx, runner.ExecRequest{ContainerID: "c", ExecID: fmt.Sprint(i), Process: p}, runner.Streams{Stdout: io.Discard})
			if err != nil || code != 3 {
				t.Errorf("%s: code %d, %v", left, code, err)
			}
		})
	}
	both.Wait()
}

func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	tb.Fatalf("waited in vain for %s", what)
}

func TestStdinOnceAndTTY(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	for _, tty := range []bool{false, true} {
		id := fmt.Sprintf("in-%v", tty)
		s := h.spec(t, id, "cat")
		s.Process.Terminal = tty
		if _, err := h.Create(t.Context(), runner.CreateRequest{ID: id, Spec: s, TTY: tty, Stdin: true, StdinOnce: true}); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		done := make(chan error, 1)
		go func() {
			done <- h.Attach(t.Context(), id, runner.Streams{Stdin: strings.NewReader("line\n"), Stdout: &out})
		}()
		if err := h.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if x, err := h.Wait(t.Context(), id); err != nil || x.Code != 0 || !strings.Contains(out.String(), "line") {
			t.Errorf("tty %v: exit %+v, %v, output %q", tty, x, err, out.String())
		}
	}
}

func TestSharedPIDNamespaceAndPause(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{SharePID: true})
	ctx := t.Context()
	for _, id := range []string{"a", "b"} {
		if _, err := h.Create(ctx, runner.CreateRequest{ID: id, Spec: h.spec(t, id, "sh", "-c", "sleep 500 & wait")}); err != nil {
			t.Fatal(err)
		}
		if err := h.Start(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	p := h.spec(t, "a").Process
	p.Args = []string{"ps"}
	var out bytes.Buffer
	if _, err := h.Exec(ctx, runner.ExecRequest{ContainerID: "a", ExecID: "ps", Process: p}, runner.Streams{Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "sleep 500") < 2 {
		t.Errorf("a does not see b's processes:\n%s", out.String())
	}
	if err := h.Pause(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	list, err := h.List(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("list = %v, %v", list, err)
	}
	for _, st := range list {
		if want := map[string]runner.Status{"a": runner.StatusPaused, "b": runner.StatusRunning}[st.ID]; st.Status != want {
			t.Errorf("%s is %s, want %s", st.ID, st.Status, want)
		}
	}
	if err := h.Resume(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	// The main process ends; what it left in the shared namespace must go with it.
	if err := h.Signal(ctx, "a", syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := h.Delete(ctx, "a", false); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestOOM(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	s := h.spec(t, "oom", "dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1")
	limit := int64(32 << 20)
	s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	if x, _ := h.run(t, runner.CreateRequest{ID: "oom", Spec: s}); !x.OOMKilled || x.Code != 137 {
		t.Errorf("exit = %+v, want an out-of-memory kill", x)
	}
}

// TestRunnerOutlivesClient is what lets the daemon be killed.
func TestRunnerOutlivesClient(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	ctx := t.Context()
	for _, id := range []string{"short", "long"} {
		arg := map[string]string{"short": "0", "long": "300"}[id]
		if _, err := h.Create(ctx, runner.CreateRequest{ID: id, Spec: h.spec(t, id, "sleep", arg)}); err != nil {
			t.Fatal(err)
		}
		if err := h.Start(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	h.Close()
	other, err := runner.Dial(ctx, h.dir)
	if err != nil {
		t.Fatal(err)
	}
	h.Client = other
	if x, err := other.Wait(ctx, "short"); err != nil || x.Code != 0 {
		t.Errorf("short: %+v, %v", x, err)
	}
	seen := make(chan runner.Event, 8)
	go func() {
		defer close(seen)
		_ = other.Events(ctx, func(ev runner.Event) { seen <- ev }) // until the runner has ended
	}()
	if ev := <-seen; ev.ID != "short" || ev.Type != runner.EventExit {
		t.Errorf("first event = %+v, want the past exit", ev)
	}
	if err := other.Delete(ctx, "long", true); err != nil {
		t.Fatal(err)
	}
	for ev := range seen {
		if ev.ID == "long" && ev.Type == runner.EventExit {
			return
		}
	}
	t.Error("no event tells the end of the other container")
}

// TestRunnerDiesBeforeStart: a container that waits for its start does not run
// when nobody can start it any more.
func TestRunnerDiesBeforeStart(t *testing.T) {
	for name, setup := range map[string]runner.SetupRequest{"own PID namespace": {}, "shared": {SharePID: true}} {
		h := newHarness(t, setup)
		mark := t.TempDir()
		spec := h.spec(t, "c", "touch", "/tmp/ran")
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "bind", Source: mark, Options: []string{"rbind"}})
		pid, err := h.Create(t.Context(), runner.CreateRequest{ID: "c", Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		if err := runner.Kill(t.Context(), h.dir); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the process that waits to end", func() bool { return syscall.Kill(pid, 0) != nil })
		if files, err := os.ReadDir(mark); err != nil || len(files) > 0 {
			t.Errorf("%s: it ran: %v, %v", name, files, err)
		}
	}
}

func TestLogRotation(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	log := filepath.Join(t.TempDir(), "r.log")
	h.run(t, runner.CreateRequest{ID: "r", LogPath: log, LogMaxBytes: 100_000, LogMaxFiles: 3,
		Spec: h.spec(t, "r", "sh", "-c", "yes 0123456789012345678901234567890123456789 | head -n 8000")})
	for name, want := range map[string]bool{log: true, log + ".1": true, log + ".2": true, log + ".3": false} {
		st, err := os.Stat(name)
		if (err == nil) != want || err == nil && st.Size() > 100_000 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

// TestPausedReader: a caller that does not read its output keeps neither the
// container from being killed nor the runner from ending, and finds all that
// the container wrote when it reads on.
func TestPausedReader(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log := filepath.Join(t.TempDir(), "log")
	if _, err := h.Create(ctx, runner.CreateRequest{ID: "c", Spec: h.spec(t, "c", "yes"), LogPath: log}); err != nil {
		t.Fatal(err)
	}
	out := &pausedWriter{paused: make(chan struct{}), goOn: make(chan struct{})}
	attached, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- h.Attach(context.WithoutCancel(ctx), "c", runner.Streams{Stdout: out, Started: func() { close(attached) }})
	}()
	<-attached
	if err := h.Start(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	<-out.paused
	size := func() int64 {
		st, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	for before := int64(-1); before != size(); time.Sleep(50 * time.Millisecond) { // until it is held back
		before = size()
	}
	if err := h.Signal(ctx, "c", syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x, err := h.Wait(ctx, "c"); err != nil || x.Code != 137 {
		t.Errorf("exit = %+v, %v", x, err)
	}
	if err := h.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	close(out.goOn)
	if err := <-done; err != nil {
		t.Errorf("attach: %v", err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Count(string(data), " F y\n"); out.lines != want || want == 0 {
		t.Errorf("%d lines came, %d are in the log", out.lines, want)
	}
}

// pausedWriter counts lines, once goOn is closed.
type pausedWriter struct {
	paused, goOn chan struct{}
	once         sync.Once
	lines        int
}

func (w *pausedWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.paused) })
	<-w.goOn
	w.lines += bytes.Count(p, []byte("\n"))
	return len(p), nil
}

func BenchmarkRunTrue(b *testing.B) {
	h := newHarness(b, runner.SetupRequest{})
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprintf("b%d", i)
		h.run(b, runner.CreateRequest{ID: id, Spec: h.spec(b, id, "true")})
	}
}

// BenchmarkFirst is the first container of a runner that has waited for it.
func BenchmarkFirst(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		h := newHarness(b, runner.SetupRequest{})
		time.Sleep(50 * time.Millisecond) // it warms up
		spec := h.spec(b, "c", "true")
		spec.Linux.Seccomp = nil // no other runner has compiled it
		b.StartTimer()
		if _, err := h.Create(b.Context(), runner.CreateRequest{ID: "c", Spec: spec}); err != nil {
			b.Fatal(err)
		}
		if err := h.Start(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLaunch(b *testing.B) {
	runnertest.NeedRoot(b)
	binary := runnertest.Build(b)
	base := b.TempDir()
	for i := 0; b.Loop(); i++ {
		c, err := runner.Launch(b.Context(), runner.LaunchOptions{Binary: binary, Dir: filepath.Join(base, fmt.Sprint("r", i))})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Setup(b.Context(), runner.SetupRequest{Hostname: "x"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Shutdown(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
