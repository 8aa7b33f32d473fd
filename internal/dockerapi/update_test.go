package dockerapi_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func TestRename(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("old"))
	a.create(sleeper("other"))
	for query, want := range map[string]struct {
		status int
		says   string
	}{
		"":           {400, "Neither old nor new names may be empty"},
		"name=old":   {400, "same name"},
		"name=other": {409, "already in use"},
		"name=a+b":   {400, "Invalid container name"},
		"name=new":   {204, ""},
	} {
		if query == "name=new" {
			continue // last
		}
		if got := a.do("POST", "/containers/old/rename?"+query, ""); got.status != want.status || !strings.Contains(got.message, want.says) {
			t.Errorf("%s: %+v", query, got)
		}
	}
	if _, err := a.ContainerRename(t.Context(), "old", client.ContainerRenameOptions{NewName: "new"}); err != nil {
		t.Fatal(err)
	}
	if c := a.inspect("new"); c.ID != id || c.Name != "/new" || !c.State.Running {
		t.Errorf("%+v", c)
	}
	a.create(sleeper("old")) // the name is free
	a.stop()
	a.machine.Stop()
	a.machine.Start()
	a.start()
	if c := a.inspect("new"); c.ID != id {
		t.Errorf("after a restart: %+v", c)
	}
}

func TestUpdate(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	s := sleeper("web")
	s.host.Memory, s.host.NanoCPUs = 64<<20, 5e8
	id := a.up(s)
	a.awaitOutput(id, "ready")
	pids, none := int64(50), int64(-1)
	change := func(u container.UpdateConfig) {
		t.Helper()
		if _, err := a.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{Resources: &u.Resources, RestartPolicy: &u.RestartPolicy}); err != nil {
			t.Fatal(err)
		}
	}
	inside := func(v1, v2 string) string {
		t.Helper()
		out, errs, code := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "cd /sys/fs/cgroup; cat " + v1 + " 2>/dev/null || cat " + v2}}, "")
		if code != 0 {
			t.Fatalf("%s: %s", v1, errs)
		}
		return strings.TrimSpace(out)
	}
	change(container.UpdateConfig{Resources: container.Resources{Memory: 96 << 20, CPUShares: 512, PidsLimit: &pids, MemoryReservation: 32 << 20},
		RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 4}})
	if got := inside("memory/memory.limit_in_bytes", "memory.max"); got != "100663296" {
		t.Errorf("memory: %s", got)
	}
	if got := inside("memory/memory.soft_limit_in_bytes", "memory.low"); got != "33554432" {
		t.Errorf("reservation: %s", got)
	}
	if got := inside("pids/pids.max", "pids.max"); got != "50" {
		t.Errorf("pids: %s", got)
	}
	change(container.UpdateConfig{Resources: container.Resources{PidsLimit: &none, Memory: 200 << 20, MemorySwap: -1}})
	if got := inside("pids/pids.max", "pids.max"); got != "max" {
		t.Errorf("pids without limit: %s", got)
	}
	h := a.inspect(id).HostConfig
	if h.Memory != 200<<20 || h.MemorySwap != -1 || h.CPUShares != 512 || h.NanoCPUs != 5e8 || h.RestartPolicy.MaximumRetryCount != 4 {
		t.Errorf("%+v", h)
	}
	for body, want := range map[string]string{
		`{"Memory":1}`:      "Minimum memory limit",
		`{"CpuQuota":5000}`: "Conflicting options",
		`{"NanoCpus":-1}`:   "range of CPUs",
		`{"ShmSize":1,"Ulimits":[{"Name":"core"}]}`: "Ulimits",
		`{"RestartPolicy":{"Name":"often"}}`:        "unknown policy",
	} {
		if got := a.do("POST", "/containers/web/update", body); got.status < 400 || !strings.Contains(got.message, want) {
			t.Errorf("%s: %+v", body, got)
		}
	}
	// What is changed while it does not run holds from its next start.
	if _, err := a.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: seconds(0)}); err != nil {
		t.Fatal(err)
	}
	change(container.UpdateConfig{Resources: container.Resources{PidsLimit: &pids}})
	a.startContainer(id)
	if got := inside("pids/pids.max", "pids.max"); got != "50" {
		t.Errorf("after a start: %s", got)
	}
	if got := a.past(`filters={"event":["update"]}`); len(got) != 3 {
		t.Errorf("told: %v", got)
	}
}

func TestDiscardedLimits(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/blkio/blkio.weight"); err == nil {
		t.Skip("this kernel has block I/O weights")
	}
	a := newAPI(t)
	s := sleeper("web")
	s.host.BlkioWeight = 300
	res, err := a.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: &s.config, HostConfig: &s.host, Name: s.name})
	if err != nil || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "does not support block I/O weights") || a.inspect("web").HostConfig.BlkioWeight != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestListFilters(t *testing.T) {
	a := newAPI(t)
	for _, name := range []string{"one", "two", "three"} {
		s := sleeper(name)
		s.config.Labels = map[string]string{"number": name}
		a.create(s)
	}
	for _, tt := range []struct {
		key, value string
		want       []string
	}{
		{"before", "two", []string{"/one"}}, {"since", "two", []string{"/three"}}, {"is-task", "true", nil},
		{"is-task", "false", []string{"/three", "/two", "/one"}}, {"expose", "80", nil}, {"publish", "1-65535/tcp", nil},
	} {
		list, err := a.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: client.Filters{}.Add(tt.key, tt.value)})
		var got []string
		for _, c := range list.Items {
			got = append(got, c.Names[0])
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s=%s: %v, %v", tt.key, tt.value, got, err)
		}
	}
	for _, bad := range []string{`{"before":["nothing"]}`, `{"publish":["x"]}`, `{"is-task":["maybe"]}`, `{"expose":["90-80"]}`} {
		if got := a.do("GET", "/containers/json?all=1&filters="+bad, ""); got.status != 400 && got.status != 404 {
			t.Errorf("%s: %+v", bad, got)
		}
	}
	if got := a.do("POST", `/containers/prune?filters={"label!":["number=two"]}`, ""); got.status != 200 {
		t.Fatalf("%+v", got)
	}
	if list, err := a.ContainerList(t.Context(), client.ContainerListOptions{All: true}); err != nil || len(list.Items) != 1 || list.Items[0].Names[0] != "/two" {
		t.Errorf("left: %v, %v", list.Items, err)
	}
}

func TestTopArguments(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	a.awaitOutput(id, "ready")
	top, err := a.ContainerTop(t.Context(), id, client.ContainerTopOptions{Arguments: []string{"-o", "pid,comm,args"}})
	if err != nil || !slices.Equal(top.Titles, []string{"PID", "COMMAND", "COMMAND"}) || len(top.Processes) != 2 ||
		!slices.ContainsFunc(top.Processes, func(row []string) bool {
			return len(row) == 3 && row[1] == "sh" && strings.HasPrefix(row[2], "sh -c trap")
		}) {
		t.Errorf("%+v, %v", top, err)
	}
	for args, want := range map[string]string{"-o+comm": "PID field", "--nonsense": "ps --nonsense"} {
		if got := a.do("GET", "/containers/web/top?ps_args="+args, ""); got.status != 400 || !strings.Contains(got.message, want) {
			t.Errorf("%s: %+v", args, got)
		}
	}
}
