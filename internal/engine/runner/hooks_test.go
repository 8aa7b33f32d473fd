package runner_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// TestHooks: what a spec names is run when and where the runtime specification
// says, with the container's state; one that fails ends the start.
func TestHooks(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	notes := t.TempDir()
	note := func(name string) specs.Hook {
		// On the machine's files: what it is told, and in whose namespaces it runs.
		script := fmt.Sprintf("cat >%[1]s/%[2]s.state; readlink /proc/self/ns/mnt /proc/self/ns/uts >%[1]s/%[2]s.where; cat $(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/' %[1]s/%[2]s.state)/config.json >%[1]s/%[2]s.config", notes, name)
		return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
	}
	spec := h.spec(t, "c", "sh", "-c", "cat /tmp/hooked; readlink /proc/self/ns/uts")
	spec.Annotations = map[string]string{"a": "b"}
	spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{note("createRuntime")}, CreateContainer: []specs.Hook{note("createContainer")},
		StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; echo in the root >/tmp/hooked"}}},
		Poststart:      []specs.Hook{note("poststart")}, Poststop: []specs.Hook{note("poststop")}}
	exit, out := h.run(t, runner.CreateRequest{ID: "c", Spec: spec})
	if exit.Code != 0 || !strings.HasPrefix(out, "in the root\n") {
		t.Errorf("%+v, %q", exit, out)
	}
	uts := strings.TrimSpace(strings.TrimPrefix(out, "in the root\n"))
	for name, want := range map[string]struct {
		status specs.ContainerState
		pid    bool
		inside bool // the container's namespaces
	}{"createRuntime": {specs.StateCreated, true, false}, "createContainer": {specs.StateCreating, false, true},
		"poststart": {specs.StateRunning, true, false}, "poststop": {specs.StateStopped, false, false}} {
		var state specs.State
		data, err := os.ReadFile(filepath.Join(notes, name+".state"))
		if err == nil {
			err = json.Unmarshal(data, &state)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if state.ID != "c" || state.Status != want.status || state.Pid > 0 != want.pid || state.Annotations["a"] != "b" {
			t.Errorf("%s was told %s", name, data)
		}
		where, err := os.ReadFile(filepath.Join(notes, name+".where"))
		if err != nil || strings.Contains(string(where), uts) != want.inside {
			t.Errorf("%s ran in %s (%v); the container's is %s", name, where, err, uts)
		}
		var config specs.Spec
		data, err = os.ReadFile(filepath.Join(notes, name+".config"))
		if err == nil {
			err = json.Unmarshal(data, &config)
		}
		if err != nil || config.Hooks == nil {
			t.Errorf("%s: the bundle's config.json: %v", name, err)
		}
	}

	brief := 1
	for what, hook := range map[string]specs.Hook{
		"no luck":                {Path: "/bin/sh", Args: []string{"sh", "-c", "echo no luck; exit 3"}},
		"it took longer than 1s": {Path: "/bin/sleep", Args: []string{"sleep", "60"}, Timeout: &brief},
		"/none":                  {Path: "/none"},
	} {
		for _, hooks := range []specs.Hooks{{CreateRuntime: []specs.Hook{hook}}, {CreateContainer: []specs.Hook{hook}}} {
			spec := h.spec(t, "bad", "true")
			spec.Hooks = &hooks
			if _, err := h.Create(t.Context(), runner.CreateRequest{ID: "bad", Spec: spec}); err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%v, without %q", err, what)
			}
		}
	}
	if exit, out := h.run(t, runner.CreateRequest{ID: "bad", Spec: h.spec(t, "bad", "echo", "good now")}); exit.Code != 0 || out != "good now\n" {
		t.Errorf("%+v, %q", exit, out)
	}
}
