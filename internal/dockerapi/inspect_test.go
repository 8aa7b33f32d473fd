package dockerapi_test

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// TestInspect: what was asked for, and what the image says of the rest.
func TestInspect(t *testing.T) {
	a := newAPI(t)
	a.load(enginetest.Archive(t, "ferry.test/app:v1", busyboxFiles(t), ocispec.ImageConfig{
		Env: []string{"PATH=/bin", "A=image", "B=image"}, Entrypoint: []string{"sh", "-c"}, Cmd: []string{"exit 9"}, WorkingDir: "/tmp", User: "1000",
		StopSignal: "SIGUSR1", Labels: map[string]string{"from": "image", "both": "image"}, ExposedPorts: map[string]struct{}{"8080/tcp": {}}}))
	s := spec{name: "app", config: container.Config{Image: "ferry.test/app:v1", Cmd: []string{"echo hi; exit 3"}, Env: []string{"B=own", "C=own"},
		Labels: map[string]string{"both": "own"}, StopTimeout: seconds(3)}}
	s.host = container.HostConfig{Resources: container.Resources{Memory: 64 << 20}, Binds: []string{"/tmp:/host:ro"}, CapDrop: []string{"MKNOD"},
		PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1")}}}}
	r := a.run(s)
	if r.code != 3 || r.out != "hi\n" {
		t.Errorf("%+v", r)
	}
	c := a.inspect("app")
	if c.ID != r.id || c.Path != "sh" || !slices.Equal(c.Args, []string{"-c", "echo hi; exit 3"}) || c.Driver != "overlayfs" || c.Platform != "linux" ||
		!strings.HasPrefix(c.Image, "sha256:") || !strings.HasPrefix(c.LogPath, a.logs) {
		t.Errorf("%+v", c)
	}
	want := container.Config{Hostname: c.Config.Hostname, Image: "ferry.test/app:v1", Cmd: s.config.Cmd, Entrypoint: []string{"sh", "-c"},
		Env: []string{"B=own", "C=own", "PATH=/bin", "A=image"}, WorkingDir: "/tmp", User: "1000", StopSignal: "SIGUSR1", StopTimeout: seconds(3),
		Labels: map[string]string{"from": "image", "both": "own"}, ExposedPorts: network.PortSet{network.MustParsePort("8080/tcp"): {}}}
	if diff := cmp.Diff(want, *c.Config, cmp.Comparer(func(a, b network.Port) bool { return a == b })); diff != "" {
		t.Errorf("config: %s", diff)
	}
	if h := c.HostConfig; h.Memory != 64<<20 || !slices.Equal(h.Binds, s.host.Binds) || !slices.Equal(h.CapDrop, []string{"CAP_MKNOD"}) || h.NetworkMode != "bridge" {
		t.Errorf("host config: %+v", h)
	}
	// Without a program of its own the image's is run; a given entrypoint drops the image's command.
	if r := a.run(spec{config: container.Config{Image: "ferry.test/app:v1"}}); r.code != 9 {
		t.Errorf("%+v", r)
	}
	if r := a.run(spec{config: container.Config{Image: "ferry.test/app:v1", Entrypoint: []string{"echo"}}}); r.out != "\n" || r.code != 0 {
		t.Errorf("%+v", r)
	}
}

// TestInspectPaths: what tools read beside the container.
func TestInspectPaths(t *testing.T) {
	a := newAPI(t)
	s := shell("echo mine > /file; echo ready; sleep 1000")
	s.config.Hostname = "boat"
	id := a.up(s)
	a.awaitOutput(id, "ready")
	c := a.inspect(id)
	if c.GraphDriver == nil || c.GraphDriver.Name != "overlay2" || len(c.GraphDriver.Data) != 4 {
		t.Fatalf("%+v", c.GraphDriver)
	}
	data := c.GraphDriver.Data
	lower, _, _ := strings.Cut(data["LowerDir"], ":")
	for path, want := range map[string]string{
		c.HostnamePath: "boat\n", c.HostsPath: "\tboat\n", c.ResolvConfPath: "", c.LogPath: "ready",
		filepath.Join(data["UpperDir"], "file"): "mine\n", filepath.Join(data["MergedDir"], "file"): "mine\n",
		filepath.Join(data["MergedDir"], "etc/passwd"): "root", filepath.Join(lower, "etc/passwd"): "root",
	} {
		if got, err := os.ReadFile(path); err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if st, err := os.Stat(data["WorkDir"]); err != nil || !st.IsDir() {
		t.Error(err)
	}
	other := shell("sleep 1000")
	other.host.NetworkMode = container.NetworkMode("container:" + id)
	if got := a.inspect(a.up(other)); got.HostsPath != c.HostsPath {
		t.Errorf("who shares the network has the hosts %q, not %q", got.HostsPath, c.HostsPath)
	}
	if c := a.inspect(a.create(shell("true"))); c.HostsPath+c.HostnamePath+c.ResolvConfPath != "" {
		t.Errorf("of one that does not run: %q, %q, %q", c.HostsPath, c.HostnamePath, c.ResolvConfPath)
	}
}

// TestLegacyNetworkSettings: clients before 1.52 read the address at the top.
func TestLegacyNetworkSettings(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	var legacy struct {
		NetworkSettings struct{ IPAddress, Gateway string }
		SizeRw          *int64
	}
	got := a.do("GET", "/v1.44/containers/web/json?size=1", "")
	if err := json.Unmarshal([]byte(got.body), &legacy); err != nil {
		t.Fatal(err)
	}
	n := a.inspect(id).NetworkSettings.Networks["bridge"]
	if !n.IPAddress.IsValid() || legacy.NetworkSettings.IPAddress != n.IPAddress.String() || legacy.NetworkSettings.Gateway != n.Gateway.String() ||
		n.Gateway != a.machine.Gateway() || legacy.SizeRw == nil {
		t.Errorf("%+v, %+v", legacy, n)
	}
}

func TestList(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	a.load(enginetest.Archive(t, "ferry.test/other:v1", busyboxFiles(t), ocispec.ImageConfig{Labels: map[string]string{"tier": "image"}}))
	one := shell("exit 1")
	one.name, one.config.Labels = "one", map[string]string{"app": "x", "n": "1"}
	first := a.run(one).id
	two := sleeper("two")
	two.config.Labels = map[string]string{"app": "x", "n": "2"}
	a.up(two)
	three := sleeper("three-two")
	three.config.Image = "ferry.test/other:v1"
	third := a.up(three)
	if _, err := a.ContainerPause(ctx, third, client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	a.create(sleeper("four"))
	image := a.inspect(first).Image
	for _, tt := range []struct {
		name string
		opt  client.ContainerListOptions
		want string
	}{
		{"those that run", client.ContainerListOptions{}, "three-two two"},
		{"all, newest first", client.ContainerListOptions{All: true}, "four three-two two one"},
		{"the last so many", client.ContainerListOptions{Limit: 2}, "four three-two"},
		{"by label", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", "app")}, "two one"},
		{"by labels", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", "app=x", "n=2")}, "two"},
		{"by the image's label", client.ContainerListOptions{Filters: client.Filters{}.Add("label", "tier=image")}, "three-two"},
		{"by part of a name", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("name", "two")}, "three-two two"},
		{"by pattern", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("name", "^two$")}, "two"},
		{"by pattern with a slash", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("name", "^/(one|four)$")}, "four one"},
		{"by a broken pattern", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("name", "(")}, ""},
		{"by ID", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("id", first[:10])}, "one"},
		{"by state", client.ContainerListOptions{Filters: client.Filters{}.Add("status", "created", "paused")}, "four three-two"},
		{"by exit code", client.ContainerListOptions{Filters: client.Filters{}.Add("exited", "1")}, "one"},
		{"by another", client.ContainerListOptions{Filters: client.Filters{}.Add("exited", "2")}, ""},
		{"by image", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("ancestor", "ferry.test/busybox")}, "four two one"},
		{"by image ID", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("ancestor", image)}, "four two one"},
		{"by the image ID's beginning", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("ancestor", strings.TrimPrefix(image, "sha256:")[:8])}, "four two one"},
		{"by no image", client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("ancestor", "nothing")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := a.ContainerList(ctx, tt.opt)
			var names []string
			for _, c := range list.Items {
				names = append(names, strings.TrimPrefix(c.Names[0], "/"))
			}
			if got := strings.Join(names, " "); err != nil || got != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
	list, err := a.ContainerList(ctx, client.ContainerListOptions{All: true, Size: true, Filters: client.Filters{}.Add("name", "one")})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%+v, %v", list.Items, err)
	}
	if c := list.Items[0]; c.ID != first || c.Image != enginetest.Busybox || c.Command != "sh -c exit 1" || c.State != "exited" ||
		!strings.HasPrefix(c.Status, "Exited (1) ") || c.Labels["n"] != "1" || c.HostConfig.NetworkMode != "bridge" {
		t.Errorf("%+v", c)
	}
	for filters, says := range map[string]string{
		`{"colour":["red"]}`: `filter "colour"`, `{"status":["asleep"]}`: "status=asleep", `{"exited":["badly"]}`: "exited=badly", `{`: "filters", `[]`: "filters", `{"name":7}`: "filters",
	} {
		if got := a.do("GET", "/containers/json?filters="+url.QueryEscape(filters), ""); got.status != 400 || !strings.Contains(got.message, says) {
			t.Errorf("%s: %+v", filters, got)
		}
	}
	if got := a.do("GET", "/containers/json?limit=few", ""); got.status != 400 {
		t.Errorf("%+v", got)
	}
	if got := a.do("GET", `/containers/json?all=1&filters={"name":{"one":true,"two":false}}`, ""); strings.Count(got.body, `"Id"`) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestTop(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	a.awaitOutput(id, "ready")
	top, err := a.ContainerTop(t.Context(), id, client.ContainerTopOptions{})
	if err != nil || strings.Join(top.Titles, " ") != "UID PID PPID C STIME TTY TIME CMD" || len(top.Processes) != 2 ||
		!strings.HasPrefix(top.Processes[0][7], "sh -c trap") || top.Processes[0][0] != "root" {
		t.Errorf("%+v, %v", top, err)
	}
}
