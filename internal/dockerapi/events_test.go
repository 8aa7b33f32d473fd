package dockerapi_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// past returns what has happened so far, as ACTION or, if it is not a container's, TYPE ACTION.
func (a *api) past(query string) []string {
	a.t.Helper()
	var out []string
	got := a.do("GET", "/events?since=1&until="+time.Now().UTC().Format(time.RFC3339Nano)+"&"+query, "")
	for line := range strings.Lines(got.body) {
		var m events.Message
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			a.t.Fatalf("%q: %v", line, err)
		}
		name := string(m.Action)
		if m.Type != events.ContainerEventType {
			name = string(m.Type) + " " + name
		}
		out = append(out, name)
	}
	return out
}

// TestEventsOfThePast: what the API does to a container is told in Docker's order.
func TestEventsOfThePast(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	id := a.up(sleeper("web"))
	a.awaitOutput(id, "ready")
	for _, err := range []error{
		second(a.ContainerPause(ctx, id, client.ContainerPauseOptions{})),
		second(a.ContainerUnpause(ctx, id, client.ContainerUnpauseOptions{})),
		second(a.ContainerTop(ctx, id, client.ContainerTopOptions{})),
		second(a.ContainerRestart(ctx, id, client.ContainerRestartOptions{Timeout: seconds(0)})),
		second(a.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "KILL"})),
		second(a.ContainerRemove(ctx, id, client.ContainerRemoveOptions{})),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"create", "start", "pause", "unpause", "top", "kill", "die", "stop", "start", "restart", "kill", "die", "destroy"}
	var got []string
	eventually(t, "its end is told", func() bool {
		got = a.past(`filters={"container":["web"]}`)
		return slices.Contains(got, "destroy")
	})
	if !slices.Equal(got, want) {
		t.Errorf("\n%v, want\n%v", got, want)
	}
	if got := a.past(`filters={"container":["web"],"event":["die","kill"]}`); !slices.Equal(got, []string{"kill", "die", "kill", "die"}) {
		t.Errorf("filtered: %v", got)
	}
	on := []string{"network connect", "network disconnect"} // at each start and end
	if got := a.past(`filters={"type":["network"],"network":["bridge"]}`); !slices.Equal(got, slices.Repeat(on, 2)) {
		t.Errorf("of networks: %q", got)
	}
}

// TestEventsOutliveTheServer: what was before its start is told first.
func TestEventsOutliveTheServer(t *testing.T) {
	a := newAPI(t)
	a.run(brief("before"))
	eventually(t, "its end is told", func() bool { return slices.Contains(a.past(""), "die") })
	a.stop()
	a.start()
	a.run(brief("after"))
	eventually(t, "the other's end too", func() bool { return slices.Contains(a.past(`filters={"container":["after"]}`), "die") })
	want := []string{"create", "attach", "start", "die", "create", "attach", "start", "die"}
	if got := a.past(`filters={"type":["container"]}`); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// brief is a container that ends at once.
func brief(name string) spec {
	s := shell("exit 0")
	s.name = name
	return s
}

func second[T any](_ T, err error) error { return err }

func TestEventsOfExec(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	a.awaitOutput(id, "ready")
	if _, _, code := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "exit 5"}}, ""); code != 5 {
		t.Fatal(code)
	}
	eventually(t, "its end is told", func() bool { return slices.Contains(a.past(""), "exec_die") })
	want := []string{"exec_create: sh -c exit 5", "exec_start: sh -c exit 5", "exec_die"}
	if got := a.past(`filters={"event":["exec_create","exec_start","exec_die"]}`); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
