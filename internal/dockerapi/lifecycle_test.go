package dockerapi_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

func seconds(n int) *int { return &n }

// TestRun is docker run: the exit code, and both streams apart.
func TestRun(t *testing.T) {
	a := newAPI(t)
	r := a.run(shell("echo out; echo err >&2; exit 7"))
	if r.code != 7 || r.out != "out\n" || r.err != "err\n" {
		t.Errorf("%+v", r)
	}
	c := a.inspect(r.id)
	if c.State.Status != container.StateExited || c.State.Running || c.State.ExitCode != 7 || c.State.Pid != 0 || c.State.FinishedAt <= c.State.StartedAt {
		t.Errorf("state: %+v", c.State)
	}
	if code := a.wait(r.id, container.WaitConditionNotRunning)(); code != 7 {
		t.Errorf("a later wait: %d", code)
	}
	// A second run of the same container goes to the same log.
	a.startContainer(r.id)
	a.wait(r.id, container.WaitConditionNotRunning)()
	if log := a.logsOf(r.id, client.ContainerLogsOptions{}); strings.Count(log, "out\n") != 2 || strings.Count(log, "err\n") != 2 {
		t.Errorf("log: %q", log)
	}
}

// TestWaitMissesEvents: who waits for an exit and has not heard of it, for too
// much happened at once, learns of it also when the container runs again.
func TestWaitMissesEvents(t *testing.T) {
	a := newAPI(t)
	id := a.up(shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done"))
	a.awaitOutput(id, "ready")
	seen, err := a.machine.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{false, true} {
		if again {
			a.startContainer(id)
		} else if _, err := a.ContainerStop(t.Context(), id, client.ContainerStopOptions{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if code, err := a.server.AwaitFrom(ctx, seen); err != nil || code != 3 {
			t.Errorf("started again %t: %d, %v", again, code, err)
		}
	}
}

// TestExitCodes: what clients derive 125, 126, 127 and 137 from.
func TestExitCodes(t *testing.T) {
	a := newAPI(t)
	for _, tt := range []struct {
		name string
		cmd  []string
		code int
		says string // of the failed start
	}{
		{"the program's", []string{"sh", "-c", "exit 42"}, 42, ""},
		{"of a child that was killed", []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, ""},
		{"no such program", []string{"no-such-program"}, 127, "executable file not found"},
		{"no such path", []string{"/bin/nothing"}, 127, "no such file or directory"},
		{"a directory", []string{"/etc"}, 126, "is a directory"},
		{"not executable", []string{"/etc/passwd"}, 126, "permission denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := a.create(spec{config: container.Config{Image: enginetest.Busybox, Cmd: tt.cmd}})
			exit := a.wait(id, container.WaitConditionNextExit)
			_, err := a.ContainerStart(t.Context(), id, client.ContainerStartOptions{})
			switch {
			case tt.says == "" && err != nil:
				t.Fatal(err)
			case tt.says != "" && (err == nil || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("start: %v", err)
			}
			if code := exit(); code != tt.code {
				t.Errorf("waited for %d, want %d", code, tt.code)
			}
			if s := a.inspect(id).State; s.ExitCode != tt.code || s.Status != container.StateExited || (tt.says != "") != (s.Error != "") {
				t.Errorf("state: %+v", s)
			}
		})
	}
}

// TestStatusCodes walks a container through its states, doing in each what it allows and what it does not.
func TestStatusCodes(t *testing.T) {
	a := newAPI(t)
	id := a.create(sleeper("web"))
	ready := func() { a.awaitOutput(id, "ready") }
	step := func(method, path string, want int, says string) {
		t.Helper()
		if got := a.do(method, "/v1.51/containers/"+path, ""); got.status != want || !strings.Contains(got.message, says) {
			t.Errorf("%s %s: %d %q, want %d %q", method, path, got.status, got.message, want, says)
		}
	}
	for _, verb := range []string{"start", "stop", "restart", "kill", "pause", "unpause", "wait", "attach", "resize?h=1&w=1", "exec"} {
		step("POST", "nothing/"+verb, 404, "No such container: nothing")
	}
	step("DELETE", "nothing", 404, "No such container: nothing")
	step("GET", "nothing/json", 404, "No such container: nothing")
	step("GET", "nothing/logs?stdout=1", 404, "No such container: nothing")
	step("GET", "nothing/top", 404, "No such container: nothing")

	step("POST", "web/stop", 304, "")
	step("POST", "web/kill", 409, "is not running")
	step("POST", "web/pause", 409, "is not running")
	step("POST", "web/resize?h=1&w=1", 409, "is not running")
	step("GET", "web/top", 409, "is not running")
	step("POST", "web/start?checkpoint=c", 501, "checkpoint")

	step("POST", "web/start", 204, "")
	step("POST", "web/start", 304, "")
	ready()
	step("DELETE", "web", 409, "cannot remove container \"/web\": container is running")
	step("DELETE", "web?link=1", 501, "link")
	step("POST", "web/unpause", 409, "")
	step("POST", "web/kill?signal=NOTHING", 400, "invalid signal: NOTHING")
	step("POST", "web/kill?signal=0", 400, "invalid signal")
	step("POST", "web/stop?t=soon", 400, "t=\"soon\"")
	step("POST", "web/stop?signal=NOTHING", 400, "invalid signal")
	step("POST", "web/wait?condition=never", 400, "invalid condition")
	step("POST", "web/resize?h=x&w=1", 400, "resize")

	step("POST", "web/pause", 204, "")
	step("POST", "web/pause", 409, "")
	step("POST", "web/start", 409, "unpause")
	step("POST", "web/exec", 400, "No exec command")
	step("POST", "web/attach?stream=1", 409, "paused")
	if s := a.inspect(id).State; !s.Paused || !s.Running || s.Status != container.StatePaused {
		t.Errorf("paused: %+v", s)
	}
	step("POST", "web/unpause", 204, "")
	step("POST", "web/stop?t=5", 204, "")
	step("POST", "web/stop", 304, "")
	if s := a.inspect(id).State; s.ExitCode != 0 {
		t.Errorf("stopped by SIGTERM: %+v", s)
	}
	step("DELETE", id[:8], 204, "")
	step("DELETE", id[:8], 404, "No such container")
}

func TestStopAndKill(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	deaf := "trap '' TERM; trap 'exit 3' HUP; trap 'exit 4' USR1; echo ready; while :; do sleep 0.02; done"
	for _, tt := range []struct {
		name string
		spec func(*spec)
		stop func(id string) error
		code int
	}{
		{"a program that does not listen is killed", nil, func(id string) error {
			_, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: seconds(0)})
			return err
		}, 137},
		{"with the container's time", func(s *spec) { s.config.StopTimeout = seconds(0) }, func(id string) error {
			_, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{})
			return err
		}, 137},
		{"by its own signal", func(s *spec) { s.config.StopSignal = "SIGHUP" }, func(id string) error {
			_, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: seconds(-1)})
			return err
		}, 3},
		{"by another signal", nil, func(id string) error {
			_, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{Signal: "USR1"})
			return err
		}, 4},
		{"killed", nil, func(id string) error {
			_, err := a.ContainerKill(ctx, id, client.ContainerKillOptions{})
			return err
		}, 137},
		{"killed by number", nil, func(id string) error {
			_, err := a.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "1"})
			return err
		}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := shell(deaf)
			if tt.spec != nil {
				tt.spec(&s)
			}
			id := a.up(s)
			a.awaitOutput(id, "ready")
			if err := tt.stop(id); err != nil {
				t.Fatal(err)
			}
			if code := a.wait(id, container.WaitConditionNotRunning)(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
		})
	}
}

// TestKillDuringStop: who does not want to wait for a stop kills, and does not wait.
func TestKillDuringStop(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	for name, end := range map[string]func(id string) error{
		"kill": func(id string) error {
			_, err := a.ContainerKill(ctx, id, client.ContainerKillOptions{})
			return err
		},
		"rm -f": func(id string) error {
			_, err := a.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := a.up(shell("trap 'echo asked' TERM; echo ready; while :; do sleep 0.02; done"))
			a.awaitOutput(id, "ready")
			stopped := make(chan error, 1)
			go func() {
				_, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: seconds(600)})
				stopped <- err
			}()
			a.awaitOutput(id, "asked")
			done := make(chan error, 1)
			go func() { done <- end(id) }()
			for what, c := range map[string]chan error{name: done, "stop": stopped} {
				select {
				case err := <-c:
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
				case <-time.After(limit):
					t.Fatalf("%s waits", what)
				}
			}
		})
	}
}

// TestRestart restarts often: a pod that goes idle must not take the next start down.
func TestRestart(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("again"))
	a.awaitOutput(id, "ready")
	first := a.inspect(id)
	for i := range 12 {
		if _, err := a.ContainerRestart(t.Context(), id, client.ContainerRestartOptions{Timeout: seconds(0)}); err != nil {
			t.Fatalf("restart %d: %v", i, err)
		}
		if s := a.inspect(id).State; !s.Running || s.ExitCode != 0 {
			t.Fatalf("restart %d: %+v", i, s)
		}
	}
	last := a.inspect(id)
	if last.State.Pid == first.State.Pid || last.State.StartedAt <= first.State.StartedAt {
		t.Errorf("%+v after %+v", last.State, first.State)
	}
	if _, err := a.ContainerKill(t.Context(), id, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ContainerRestart(t.Context(), id, client.ContainerRestartOptions{}); err != nil {
		t.Fatalf("restart of an exited one: %v", err)
	}
	if s := a.inspect(id).State; !s.Running {
		t.Errorf("%+v", s)
	}
}

// TestStartAtExit starts a container the moment it has exited.
func TestStartAtExit(t *testing.T) {
	a := newAPI(t)
	id := a.create(shell("exit 0"))
	for i := range 12 {
		exit := a.wait(id, container.WaitConditionNextExit)
		a.startContainer(id)
		if code := exit(); code != 0 {
			t.Fatalf("start %d: exit code %d", i, code)
		}
	}
}

func TestAutoRemove(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	s := sleeper("gone")
	s.host.AutoRemove = true
	id := a.up(s)
	a.awaitOutput(id, "ready")
	if got := a.do("POST", "/containers/gone/restart", ""); got.status != http.StatusConflict {
		t.Errorf("restart: %+v", got)
	}
	removed := a.wait(id, container.WaitConditionRemoved)
	if _, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	if code := removed(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := a.ContainerInspect(ctx, id, client.ContainerInspectOptions{}); !errdefs.IsNotFound(err) {
		t.Errorf("after its end: %v", err)
	}
	// One that cannot start goes too, and its name is free again at once.
	for range 2 {
		s := spec{name: "gone", config: container.Config{Image: enginetest.Busybox, Cmd: []string{"no-such-program"}}}
		s.host.AutoRemove = true
		id := a.create(s)
		removed := a.wait(id, container.WaitConditionRemoved)
		if _, err := a.ContainerStart(ctx, id, client.ContainerStartOptions{}); err == nil {
			t.Error("started")
		}
		if code := removed(); code != 127 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestRemoveAndPrune(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	up := a.up(sleeper("up"))
	s := shell("echo x > /x")
	s.config.Labels = map[string]string{"keep": ""}
	kept := a.run(s).id
	done, created := a.run(shell("dd if=/dev/zero of=/big bs=1024 count=100")).id, a.create(shell("true"))
	if _, err := a.ContainerPrune(ctx, client.ContainerPruneOptions{Filters: client.Filters{}.Add("label", "none")}); err != nil {
		t.Fatal(err)
	}
	for filter, status := range map[string]int{`{"until":["1h"]}`: 200, `{"until":["x"]}`: 400, `{"name":["x"]}`: 400} {
		if got := a.do("POST", `/containers/prune?filters=`+filter, ""); got.status != status || strings.Contains(got.body, done) {
			t.Errorf("%s: %+v", filter, got)
		}
	}
	if _, err := a.ContainerRemove(ctx, kept, client.ContainerRemoveOptions{}); err != nil {
		t.Error(err)
	}
	res, err := a.ContainerPrune(ctx, client.ContainerPruneOptions{})
	slices.Sort(res.Report.ContainersDeleted)
	want := []string{created, done}
	slices.Sort(want)
	if err != nil || !slices.Equal(res.Report.ContainersDeleted, want) || res.Report.SpaceReclaimed < 100<<10 {
		t.Errorf("pruned %+v, %v; want %v", res.Report, err, want)
	}
	if _, err := a.ContainerRemove(ctx, up, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
		t.Error(err)
	}
	if list, err := a.ContainerList(ctx, client.ContainerListOptions{All: true}); err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list.Items, err)
	}
}

// TestWait: every condition, and who waits first.
func TestWait(t *testing.T) {
	a := newAPI(t)
	id := a.create(shell("exit 5"))
	if code := a.wait(id, "")(); code != 0 {
		t.Errorf("one that never ran: %d", code)
	}
	next, removed := a.wait(id, container.WaitConditionNextExit), a.wait(id, container.WaitConditionRemoved)
	a.startContainer(id)
	if code := next(); code != 5 {
		t.Errorf("next exit: %d", code)
	}
	if _, err := a.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if code := removed(); code != 5 {
		t.Errorf("removed: %d", code)
	}
}
