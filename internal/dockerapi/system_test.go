package dockerapi_test

import (
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/dockerapi"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/fault"
)

func TestPingVersionInfo(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	up, done := a.up(sleeper("up")), a.run(shell("true")).id
	ping, err := a.Ping(ctx, client.PingOptions{})
	if err != nil || ping.APIVersion != "1.51" || ping.OSType != "linux" || ping.Experimental {
		t.Errorf("%+v, %v", ping, err)
	}
	if got := a.do("GET", "/_ping", ""); got.body != "OK" || got.header.Get("Api-Version") != "1.51" || got.header.Get("Swarm") != "inactive" ||
		got.header.Get("Builder-Version") != "" || !strings.HasPrefix(got.header.Get("Server"), "Ferry/0.0.0-test") {
		t.Errorf("%+v", got)
	}
	if got := a.do("HEAD", "/v1.45/_ping", ""); got.status != 200 || got.body != "" {
		t.Errorf("%+v", got)
	}
	v, err := a.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil || v.Version != "0.0.0-test" || v.APIVersion != "1.51" || v.MinAPIVersion != "1.40" || v.Os != "linux" || v.Arch != runtime.GOARCH ||
		len(v.Components) != 1 || v.Components[0].Details["KernelVersion"] == "" {
		t.Errorf("%+v, %v", v, err)
	}
	info, err := a.Info(ctx, client.InfoOptions{})
	i := info.Info
	if err != nil || i.Containers != 2 || i.ContainersRunning != 1 || i.ContainersStopped != 1 || i.Images != 1 || i.MemTotal == 0 ||
		i.NCPU != runtime.NumCPU() || i.OSType != "linux" || i.DockerRootDir != a.machine.Dir() || i.ServerVersion != "0.0.0-test" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := a.ContainerPause(ctx, up, client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	if info, err := a.Info(ctx, client.InfoOptions{}); err != nil || info.Info.ContainersPaused != 1 || info.Info.ContainersRunning != 0 {
		t.Errorf("%+v, %v", info.Info, err)
	}
	_ = done
}

// TestRoutes: what is not served is refused by name, as JSON.
func TestRoutes(t *testing.T) {
	a := newAPI(t)
	for _, tt := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"GET", "/nothing", 404, "does not serve GET /nothing"},
		{"POST", "/v1.51/swarm/init", 501, "Swarm is not supported"},
		{"GET", "/v1.51/services", 501, "Swarm is not supported"},
		{"GET", "/v1.51/plugins", 501, "plugins are not supported"},
		{"POST", "/v1.51/containers/x/checkpoints", 501, "checkpoints are not supported"},
		{"PUT", "/v1.51/containers/json", 404, "does not serve PUT"},
		{"GET", "/v1.51/images/search?term=x", 501, "searching"},
		{"GET", "/v1.51/system/df?type=odd", 400, "unknown object type: odd"},
		{"GET", "/v1.39/_ping", 400, "client version 1.39 is too old. Minimum supported API version is 1.40"},
		{"GET", "/v1.52/_ping", 400, "client version 1.52 is too new. Maximum supported API version is 1.51"},
		{"GET", "/v2.0/_ping", 400, "too new"},
		{"GET", "/v99999999999999999999.1/_ping", 400, "too new"},
		{"DELETE", "/containers/%2F?force=1", 404, "does not serve"},
		{"POST", "/grpc", 501, "without a builder"},
		{"POST", "/session", 501, "without a builder"},
	} {
		got := a.do(tt.method, tt.path, "")
		if got.status != tt.status || !strings.Contains(got.message, tt.says) || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %q %v", tt.method, tt.path, got.status, got.body, got.header)
		}
	}
}

func TestEvents(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	stream := a.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "container").Add("label", "seen=yes")})
	byName := a.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("container", "web").Add("event", "die", "destroy")})
	a.run(shell("true"))
	s := shell("exit 3")
	s.name, s.config.Labels = "web", map[string]string{"seen": "yes"}
	id := a.run(s).id
	if _, err := a.ContainerRemove(ctx, id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	next := func(s client.EventsResult) events.Message {
		t.Helper()
		select {
		case m := <-s.Messages:
			return m
		case err := <-s.Err:
			t.Fatal(err)
		case <-time.After(limit):
			t.Fatal("no event")
		}
		return events.Message{}
	}
	for _, want := range []events.Action{"create", "attach", "start", "die", "destroy"} {
		m := next(stream)
		if m.Action != want || m.Actor.ID != id || m.Actor.Attributes["name"] != "web" || m.Actor.Attributes["image"] != enginetest.Busybox ||
			m.Actor.Attributes["seen"] != "yes" || m.Scope != "local" || m.TimeNano == 0 || (want == "die") != (m.Actor.Attributes["exitCode"] == "3") {
			t.Errorf("%s: %+v", want, m)
		}
	}
	if m := next(byName); m.Action != "die" {
		t.Errorf("%+v", m)
	}
	if m := next(byName); m.Action != "destroy" {
		t.Errorf("%+v", m)
	}
	for query, want := range map[string]int{"since=1&until=2": 200, "since=x": 400, "until=x": 400, `filters={"colour":["red"]}`: 400, "filters=x": 400, "until=1": 200} {
		if got := a.do("GET", "/events?"+query, ""); got.status != want {
			t.Errorf("%s: %+v", query, got)
		}
	}
}

// TestServerAgain: another server over the same engine, and another engine over
// the same disk, find the same containers. Containers outlive the daemon.
func TestServerAgain(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	up := a.up(sleeper("up"))
	a.awaitOutput(up, "ready")
	done := shell("echo words; exit 4")
	done.name, done.config.Labels, done.config.Env = "done", map[string]string{"a": "b"}, []string{"X=y"}
	a.run(done)
	created := a.create(sleeper("created"))
	brief := shell("sleep 0.3; exit 6")
	brief.name, brief.host.AutoRemove = "brief", true
	a.up(brief)
	long := shell("sleep 0.3; exit 7")
	long.name = "long"
	a.up(long)
	a.run(shell("echo to be removed"))
	settled := func(id string) container.InspectResponse {
		c := a.inspect(id)
		c.ExecIDs = nil
		return c
	}
	before := map[string]container.InspectResponse{up: settled(up), "done": settled("done"), created: settled(created)}
	same := func() {
		t.Helper()
		for id, want := range before {
			if diff := cmp.Diff(want, settled(id), cmp.Comparer(func(a, b container.NetworkSettings) bool { return true })); diff != "" {
				t.Errorf("%s: %s", id, diff)
			}
		}
	}
	a.stop()
	a.start()
	same()
	a.stop()
	gone := a.machine.Containers(ctx, engine.OwnerDocker)
	if err := a.machine.RemovePod(ctx, gone[len(gone)-1].PodID); err != nil { // the one of nobody's, with its log
		t.Fatal(err)
	}
	a.machine.Stop()
	time.Sleep(500 * time.Millisecond) // what ends meanwhile ends without a daemon
	a.machine.Start()
	a.start()
	same()
	if log := a.logsOf("done", client.ContainerLogsOptions{}); log != "words\n" {
		t.Errorf("log: %q", log)
	}
	if code := a.wait("long", container.WaitConditionNotRunning)(); code != 7 {
		t.Errorf("one that ended meanwhile: %d", code)
	}
	eventually(t, "one of --rm that ended meanwhile is removed", func() bool { return a.do("GET", "/containers/brief/json", "").status == http.StatusNotFound })
	if got := a.do("POST", "/containers/create?name=up", `{"Image":"`+enginetest.Busybox+`"}`); got.status != http.StatusConflict {
		t.Errorf("its name: %+v", got)
	}
	a.startContainer(created)
	if _, err := a.ContainerStop(ctx, up, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := a.inspect(up).State; s.ExitCode != 0 || s.Running {
		t.Errorf("%+v", s)
	}
}

func TestSocket(t *testing.T) {
	a := newAPI(t)
	if info, err := os.Stat(a.socket); err != nil || info.Mode().Perm() != 0o660 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v", info, err)
	}
	second := dockerapi.New(dockerapi.Options{Engine: a.machine.Engine, Socket: a.socket, LogDir: a.logs, Root: t.TempDir()})
	if err := second.Start(t.Context()); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), a.socket) {
		t.Errorf("a second server: %v", err)
	}
	if _, err := a.Ping(t.Context(), client.PingOptions{}); err != nil {
		t.Errorf("after it: %v", err)
	}
	a.stop()
	// One that a killed daemon left does not stand in the way.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	a.start()
}

// TestNotOurs: containers of the cluster are neither shown nor touched.
func TestNotOurs(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	pod, err := a.machine.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerCRI, Name: "p", LogDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.machine.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "kube", Image: enginetest.Busybox, Command: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.machine.StartContainer(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	list, err := a.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("%v, %v", list.Items, err)
	}
	for _, key := range []string{"kube", c.ID, c.ID[:12]} {
		if got := a.do("DELETE", "/containers/"+key+"?force=1", ""); got.status != http.StatusNotFound {
			t.Errorf("%s: %+v", key, got)
		}
	}
	if got := a.do("DELETE", "/images/"+enginetest.Busybox+"?force=1", ""); got.status != http.StatusConflict {
		t.Errorf("its image: %+v", got)
	}
	a.create(spec{name: "kube", config: container.Config{Image: enginetest.Busybox}}) // the name is free here
	if err := a.machine.RemovePod(ctx, pod.ID); err != nil {
		t.Fatal(err)
	}
}
