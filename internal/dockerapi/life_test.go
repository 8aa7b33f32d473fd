package dockerapi_test

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// restarted makes a container with a restart policy.
func (a *api) restarted(name, policy string, script string) string {
	a.t.Helper()
	s := shell(script)
	s.name = name
	mode, _, limited := strings.Cut(policy, ":")
	s.host.RestartPolicy.Name = container.RestartPolicyMode(mode)
	if limited {
		s.host.RestartPolicy.MaximumRetryCount = 2
	}
	return a.up(s)
}

// runs is how often the container has said "run".
func (a *api) runs(id string) int {
	return strings.Count(a.logsOf(id, client.ContainerLogsOptions{}), "run")
}

func TestRestartPolicies(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	few := a.restarted("few", "on-failure:2", "echo run; exit 3")
	fine := a.restarted("fine", "on-failure", "echo run")
	always := a.restarted("always", "always", "echo run; sleep 0.05")
	eventually(t, "it was started three times and given up", func() bool {
		c := a.inspect(few)
		return a.runs(few) == 3 && c.State.Status == container.StateExited && c.RestartCount == 2 && c.State.ExitCode == 3
	})
	if c := a.inspect(fine); c.RestartCount != 0 || a.runs(fine) != 1 {
		t.Errorf("what did not fail: %d restarts", c.RestartCount)
	}
	eventually(t, "between two runs it is restarting", func() bool {
		c := a.inspect(always)
		list, err := a.ContainerList(ctx, client.ContainerListOptions{Filters: client.Filters{}.Add("status", "restarting")})
		return c.State.Restarting && c.State.Running && c.State.Status == container.StateRestarting && c.RestartCount > 1 &&
			err == nil && len(list.Items) == 1 && strings.HasPrefix(list.Items[0].Status, "Restarting (0) ")
	})
	if got := a.do("DELETE", "/containers/always", ""); got.status != 409 || !strings.Contains(got.message, "restarting") {
		t.Errorf("remove one that is restarting: %+v", got)
	}
	if got := a.do("POST", "/containers/always/start", ""); got.status != 304 {
		t.Errorf("start one that is restarting: %+v", got)
	}
	if _, err := a.ContainerStop(ctx, always, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	before := a.runs(always)
	if c := a.inspect(always); c.State.Status != container.StateExited || c.State.Restarting {
		t.Errorf("stopped: %+v", c.State)
	}
	// Stopped by hand it stays, while the daemon lives; another daemon starts it.
	a.stop()
	a.start()
	eventually(t, "another daemon has started it", func() bool { return a.runs(always) > before })
}

// TestRestartAfterKill: a program that is killed is started again, unless it was killed by hand.
func TestRestartAfterKill(t *testing.T) {
	a := newAPI(t)
	id := a.restarted("web", "unless-stopped", "trap '' HUP; echo run; exec sleep 1000")
	eventually(t, "it runs", func() bool { return a.runs(id) == 1 })
	pid := a.inspect(id).State.Pid
	if _, err := a.ContainerKill(t.Context(), id, client.ContainerKillOptions{Signal: "HUP"}); err != nil { // not to end it
		t.Fatal(err)
	}
	for _, query := range []string{"t=soon", "signal=NOTHING"} { // refused, which changes nothing
		if got := a.do("POST", "/containers/web/stop?"+query, ""); got.status != 400 {
			t.Errorf("%s: %+v", query, got)
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs again", func() bool { c := a.inspect(id); return a.runs(id) == 2 && c.State.Pid != 0 && c.State.Pid != pid })
	if _, err := a.ContainerKill(t.Context(), id, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	a.wait(id, container.WaitConditionNotRunning)()
	a.stop()
	a.start()
	if c := a.inspect(id); c.State.Status != container.StateExited || a.runs(id) != 2 {
		t.Errorf("killed by hand: %+v", c.State)
	}
}

// TestRestartByAnotherDaemon: what ended while no daemon was there, by itself or
// with the machine, is started by the next.
func TestRestartByAnotherDaemon(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	ids := map[string]string{}
	for _, name := range []string{"always", "unless-stopped", "no"} {
		ids[name] = a.restarted(name, name, "echo run; exec sleep 1000")
	}
	stopped := a.restarted("stopped", "unless-stopped", "echo run; exec sleep 1000")
	eventually(t, "it runs", func() bool { return a.runs(stopped) == 1 })
	if _, err := a.ContainerStop(ctx, stopped, client.ContainerStopOptions{Timeout: seconds(0)}); err != nil {
		t.Fatal(err)
	}
	for name, id := range ids {
		eventually(t, name+" runs", func() bool { return a.runs(id) == 1 })
	}
	a.stop()
	if err := a.machine.StopAll(ctx, 0); err != nil { // as `ferry down` does
		t.Fatal(err)
	}
	a.machine.Stop()
	a.machine.Start()
	a.start()
	for name, want := range map[string]int{"always": 2, "unless-stopped": 2} {
		eventually(t, name+" runs again", func() bool { return a.runs(ids[name]) == want && a.inspect(ids[name]).State.Running })
	}
	for name, id := range map[string]string{"no": ids["no"], "stopped": stopped} {
		if c := a.inspect(id); c.State.Running || a.runs(id) != 1 {
			t.Errorf("%s: %+v", name, c.State)
		}
	}
}

func TestHealth(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	s := sleeper("web")
	s.config.Healthcheck = &container.HealthConfig{Test: []string{"CMD-SHELL", "echo looked; test -e /well"},
		Interval: 20 * time.Millisecond, Timeout: limit, Retries: 2}
	id := a.up(s)
	is := func(want container.HealthStatus) func() bool {
		return func() bool {
			h := a.inspect(id).State.Health
			list, err := a.ContainerList(ctx, client.ContainerListOptions{Filters: client.Filters{}.Add("health", string(want))})
			return h != nil && h.Status == want && err == nil && len(list.Items) == 1 && strings.Contains(list.Items[0].Status, string(want))
		}
	}
	eventually(t, "it is unhealthy", is(container.Unhealthy))
	if h := a.inspect(id).State.Health; h.FailingStreak < 2 || len(h.Log) < 2 || h.Log[0].Output != "looked\n" || h.Log[0].ExitCode != 1 || h.Log[0].End.Before(h.Log[0].Start) {
		t.Errorf("%+v", h)
	}
	if _, _, code := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"touch", "/well"}}, ""); code != 0 {
		t.Fatal(code)
	}
	eventually(t, "it is healthy", is(container.Healthy))
	// Another daemon does not begin with starting.
	a.stop()
	a.start()
	if h := a.inspect(id).State.Health; h == nil || h.Status != container.Healthy {
		t.Errorf("for another daemon: %+v", h)
	}
	if _, _, code := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"rm", "/well"}}, ""); code != 0 {
		t.Fatal(code)
	}
	eventually(t, "it is unhealthy again", is(container.Unhealthy))
	if got := a.past(`filters={"event":["health_status"]}`); !slices.Equal(got, []string{"health_status: unhealthy", "health_status: healthy", "health_status: unhealthy"}) {
		t.Errorf("told of by both daemons: %v", got)
	}
	if list, err := a.ContainerList(ctx, client.ContainerListOptions{Filters: client.Filters{}.Add("health", "none")}); err != nil || len(list.Items) != 0 {
		t.Errorf("without a health check: %v, %v", list.Items, err)
	}
}

// TestHealthTimeout: a check that hangs is killed and counts as failed.
func TestHealthTimeout(t *testing.T) {
	a := newAPI(t)
	s := sleeper("web")
	s.config.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "sh", "-c", "echo begun; sleep 1000"}, Interval: time.Millisecond, Timeout: 300 * time.Millisecond, Retries: 1}
	id := a.up(s)
	eventually(t, "it is unhealthy", func() bool {
		h := a.inspect(id).State.Health
		return h != nil && h.Status == container.Unhealthy && strings.HasPrefix(h.Log[0].Output, "Health check exceeded timeout (300ms): ") && h.Log[0].ExitCode == -1
	})
}

// TestImageHealthcheck: what the image says holds unless it is said otherwise.
func TestImageHealthcheck(t *testing.T) {
	a := newAPI(t)
	layer := enginetest.Tar(t, []enginetest.File{{Name: "file", Data: []byte("x")}})
	config := dockerspec.DockerOCIImage{Image: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}}}
	config.Config.Cmd, config.Config.Shell, config.Config.OnBuild = []string{"/file"}, []string{"/bin/sh", "-ec"}, []string{"RUN x"}
	config.Config.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "true"}, Retries: 7}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	a.load(enginetest.ArtifactArchive(t, "ferry.test/checked:v1", ocispec.MediaTypeImageConfig, data, ocispec.MediaTypeImageLayer, layer))
	for _, tt := range []struct {
		name string
		own  *container.HealthConfig
		want []string
	}{
		{"the image's", nil, []string{"CMD", "true"}},
		{"another interval", &container.HealthConfig{Interval: time.Hour}, []string{"CMD", "true"}},
		{"another test", &container.HealthConfig{Test: []string{"CMD", "false"}}, []string{"CMD", "false"}},
		{"none", &container.HealthConfig{Test: []string{"NONE"}}, []string{"NONE"}},
	} {
		c := a.inspect(a.create(spec{config: container.Config{Image: "ferry.test/checked:v1", Healthcheck: tt.own}}))
		h := c.Config.Healthcheck
		if h == nil || !slices.Equal(h.Test, tt.want) || h.Retries != 7 || (tt.own != nil && tt.own.Interval != 0) != (h.Interval == time.Hour) {
			t.Errorf("%s: %+v", tt.name, h)
		}
		if !slices.Equal(c.Config.Shell, []string{"/bin/sh", "-ec"}) || !slices.Equal(c.Config.OnBuild, []string{"RUN x"}) {
			t.Errorf("%s: %+v", tt.name, c.Config)
		}
	}
}
