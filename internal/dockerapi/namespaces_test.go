package dockerapi_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// TestInit: with --init the container's program is a child of process 1, which
// reaps what it is left, hands signals on and ends with the program's code.
func TestInit(t *testing.T) {
	a := newAPI(t)
	yes := true
	s := shell("trap 'exit 9' TERM; (sh -c 'sleep 0 & echo orphan' &); echo ready $$; while :; do sleep 0.01; done")
	s.name, s.host.Init = "web", &yes
	id := a.up(s)
	a.awaitOutput(id, "ready")
	if log := a.logsOf(id, client.ContainerLogsOptions{}); strings.Contains(log, "ready 1\n") {
		t.Errorf("the program is process 1: %s", log)
	}
	eventually(t, "no zombie is left", func() bool {
		out, _, _ := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "cat /proc/[0-9]*/stat; ls -l /sbin/docker-init"}}, "")
		return !strings.Contains(out, ") Z ") && strings.Contains(out, "1 (docker-init)") && strings.Contains(out, "docker-init")
	})
	if c := a.inspect(id); c.Path != "sh" || c.HostConfig.Init == nil || !*c.HostConfig.Init {
		t.Errorf("%s, %v", c.Path, c.HostConfig.Init)
	}
	if _, err := a.ContainerStop(t.Context(), id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	if code := a.inspect(id).State.ExitCode; code != 9 {
		t.Errorf("exit code %d", code)
	}
	tty := shell("test -t 0 && tty && exit 4")
	tty.host.Init, tty.config.Tty, tty.config.OpenStdin = &yes, true, true
	if r := a.run(tty); r.code != 4 {
		t.Errorf("with a terminal: %+v", r)
	}
}

// TestCDI: a device by name has what a vendor's file says of it.
func TestCDI(t *testing.T) {
	a := newAPI(t)
	dir := filepath.Join(a.machine.Dir(), "cdi")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := `{"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [{"name": "0", "containerEdits": {
		"env": ["GPU=zero"], "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
		"mounts": [{"hostPath": "` + dir + `", "containerPath": "/driver", "options": ["ro", "bind"]}]}}]}`
	for name, content := range map[string]string{"gpu.json": file, "nvidia.json": strings.Replace(file, "example.com", "nvidia.com", 1)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, request := range map[string]container.DeviceRequest{
		"by name": {Driver: "cdi", DeviceIDs: []string{"example.com/gpu=0"}},
		"--gpus":  {Count: 1, Capabilities: [][]string{{"gpu"}}},
	} {
		s := shell("echo $GPU; echo x > /dev/gpu0; test -c /dev/gpu0 && test -f /driver/gpu.json && exit 7")
		s.host.DeviceRequests = []container.DeviceRequest{request}
		if r := a.run(s); r.code != 7 || r.out != "zero\n" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	s := shell("true")
	s.name, s.host.DeviceRequests = "missing", []container.DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"example.com/gpu=9"}}}
	a.create(s)
	if got := a.do("POST", "/containers/missing/start", ""); got.status != 400 || !strings.Contains(got.message, "unresolvable CDI devices example.com/gpu=9") ||
		!strings.Contains(got.message, "devices are example.com/gpu=0, nvidia.com/gpu=0") {
		t.Errorf("%+v", got)
	}
}

// TestSharedNamespaces: another container's processes and shared memory.
func TestSharedNamespaces(t *testing.T) {
	a := newAPI(t)
	s := sleeper("donor")
	s.host.IpcMode = "shareable"
	donor := a.up(s)
	a.awaitOutput(donor, "ready")
	own := a.up(sleeper("private"))
	if _, _, code := a.execAttached(donor, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "echo shared > /dev/shm/x"}}, ""); code != 0 {
		t.Fatal(code)
	}
	for _, tt := range []struct {
		name, script, want string
		set                func(*container.HostConfig)
	}{
		{"processes", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", "echo ready", func(h *container.HostConfig) { h.PidMode = "container:donor" }},
		{"memory", "cat /dev/shm/x; readlink /proc/self/ns/ipc", "shared", func(h *container.HostConfig) { h.IpcMode = container.IpcMode("container:" + donor) }},
		{"no memory", "mount | grep -c /dev/shm", "0", func(h *container.HostConfig) { h.IpcMode = "none" }},
		{"the host's name", "hostname", hostname(t), func(h *container.HostConfig) { h.UTSMode = "host" }},
		{"the host's cgroups", "cat /proc/self/cgroup", "ferrytest", func(h *container.HostConfig) { h.CgroupnsMode = "host" }},
	} {
		s := shell(tt.script)
		tt.set(&s.host)
		if r := a.run(s); !strings.Contains(r.out, tt.want) {
			t.Errorf("%s: %+v", tt.name, r)
		}
	}
	private := shell("cat /proc/self/cgroup")
	private.host.CgroupnsMode = "private"
	if r := a.run(private); strings.Contains(r.out, "ferrytest") || !strings.Contains(r.out, ":/") {
		t.Errorf("a view of its own: %+v", r)
	}
	if got := a.do("POST", "/containers/create", `{"Image":"`+enginetest.Busybox+`","HostConfig":{"IpcMode":"container:`+own+`"}}`); got.status != 409 || !strings.Contains(got.message, "non-shareable IPC") {
		t.Errorf("%+v", got)
	}
}

func hostname(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}
