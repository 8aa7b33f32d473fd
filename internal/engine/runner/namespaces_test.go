package runner_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// TestExecNamespaces: a process that is added to a container is in all of its namespaces.
func TestExecNamespaces(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	spec := h.spec(t, "c", "sleep", "1000")
	own := specs.LinuxNamespace{Type: specs.CgroupNamespace}
	if !slices.Contains(spec.Linux.Namespaces, own) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, own)
	}
	if _, err := h.Create(t.Context(), runner.CreateRequest{ID: "c", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	p := *spec.Process
	p.Args = []string{"sh", "-c", "for n in cgroup ipc mnt net pid uts; do readlink /proc/1/ns/$n; readlink /proc/self/ns/$n; done"}
	var out bytes.Buffer
	if code, err := h.Exec(t.Context(), runner.ExecRequest{ContainerID: "c", ExecID: "e", Process: &p}, runner.Streams{Stdout: &out}); err != nil || code != 0 {
		t.Fatalf("%d, %v", code, err)
	}
	lines := strings.Fields(out.String())
	if len(lines) != 12 {
		t.Fatalf("%q", lines)
	}
	for i := 0; i < len(lines); i += 2 {
		kind, _, _ := strings.Cut(lines[i], ":")
		ours, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || lines[i] != lines[i+1] || lines[i] == ours {
			t.Errorf("%s: the container's is %s, the added process's %s, the machine's %s (%v)", kind, lines[i], lines[i+1], ours, err)
		}
	}
	if err := h.Delete(t.Context(), "c", true); err != nil {
		t.Error(err)
	}
}
