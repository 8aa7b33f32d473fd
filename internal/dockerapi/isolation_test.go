package dockerapi

import (
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

func TestIsolate(t *testing.T) {
	pids := func(n int64) *int64 { return &n }
	on := Defaults{UserNamespaces: true, PidsLimit: 100}
	off := Defaults{PidsLimit: 100}
	for name, c := range map[string]struct {
		host  container.HostConfig
		in    Defaults
		plan  plan
		users bool
		pids  int64
		bad   bool
	}{
		"nothing said, on":       {in: on, users: true, pids: 100},
		"nothing said, off":      {in: off, pids: 100},
		"host":                   {in: on, host: container.HostConfig{UsernsMode: "host"}, pids: 100},
		"private":                {in: off, host: container.HostConfig{UsernsMode: "private"}, users: true, pids: 100},
		"auto":                   {in: off, host: container.HostConfig{UsernsMode: "auto"}, users: true, pids: 100},
		"docker's zero":          {in: off, host: container.HostConfig{Resources: container.Resources{PidsLimit: pids(0)}}, pids: 100},
		"no limit":               {in: off, host: container.HostConfig{Resources: container.Resources{PidsLimit: pids(-1)}}, pids: 0},
		"a limit":                {in: off, host: container.HostConfig{Resources: container.Resources{PidsLimit: pids(7)}}, pids: 7},
		"privileged":             {in: on, host: container.HostConfig{Privileged: true}, bad: true},
		"privileged, host users": {in: on, host: container.HostConfig{Privileged: true, UsernsMode: "host"}, pids: 100},
		"host network":           {in: on, plan: plan{pod: engine.PodSpec{Network: engine.ModeHost}}, bad: true},
		"host IPC":               {in: on, plan: plan{pod: engine.PodSpec{IPC: engine.ModeHost}}, bad: true},
		"host PID":               {in: on, plan: plan{container: engine.ContainerSpec{PID: engine.ModeHost}}, bad: true},
	} {
		p := c.plan
		if err := p.resources(c.host); err != nil {
			t.Fatal(err)
		}
		err := p.isolate(c.host, c.in)
		if c.bad {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || p.pod.AutoUsers != c.users || p.container.Resources.Pids != c.pids {
			t.Errorf("%s: %v, users %v, pids %d", name, err, p.pod.AutoUsers, p.container.Resources.Pids)
		}
	}
}
