package engine_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

var update = flag.Bool("update", false, "write testdata/isolation")

// TestIsolation runs testdata/probe under each kind of confinement and compares
// what it finds with testdata/isolation, which a person has looked at.
func TestIsolation(t *testing.T) {
	m := enginetest.New(t)
	// Where containers of any user reach it.
	probe := filepath.Join(m.Dir(), "probe")
	data, err := os.ReadFile(runnertest.Program(t, "testdata/probe"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(probe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	private := engine.PodSpec{PID: engine.ModeContainer}
	for name, c := range map[string]struct {
		pod      engine.PodSpec
		security engine.Security
	}{
		"default":    {pod: private},
		"privileged": {pod: private, security: engine.Security{Privileged: true}},
		"userns":     {pod: ownUsers},
		"restricted": {pod: private, security: engine.Security{
			User: "user", ReadonlyRootfs: true, NoNewPrivileges: true, DropCaps: []string{"ALL"}}},
		// As Kubernetes has it where a pod says nothing of seccomp and nothing is masked.
		"unconfined": {pod: private, security: engine.Security{
			Seccomp: engine.SeccompUnconfined, MaskedPaths: []string{}, ReadonlyPaths: []string{}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, ctr := m.RunIn(c.pod, engine.ContainerSpec{Name: name, Command: []string{"/probe", name}, Security: c.security,
				Mounts: []engine.Mount{{Kind: engine.MountBind, Source: probe, Destination: "/probe", ReadOnly: true}}})
			got := settle(logOf(t, m, ctr), c.security.Privileged)
			file := filepath.Join("testdata", "isolation", name)
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s: look whether it is tighter or looser, and run with -update\n%s", file, diff)
			}
		})
	}
}

// settle says of what the probe found only what is the same on every machine.
func settle(found string, privileged bool) string {
	var out strings.Builder
	for line := range strings.Lines(found) {
		fields := strings.Fields(line)
		switch {
		case fields[0] == "namespace" && fields[1] == "cgroup" && !cgroups.Unified():
			continue // Docker gives a container one of its own on version 2 alone
		case fields[0] == "namespace":
			own, err := os.Readlink("/proc/self/ns/" + fields[1])
			word := "its own"
			if err != nil || own == fields[2] {
				word = "the host's"
			}
			line = fmt.Sprintf("namespace %s %s\n", fields[1], word)
		case privileged && (fields[0] == "device" || strings.HasPrefix(line, "status Cap") || fields[0] == "made" || fields[0] == "read"):
			continue // whatever the machine has
		case privileged && (fields[0] == "call" || fields[0] == "write"):
			continue // whatever the test's own process may
		case fields[0] == "write" && strings.Contains(line, "/sys/fs/cgroup/"):
			if strings.HasSuffix(line, " open\n") {
				break
			}
			line = strings.Join(fields[:2], " ") + " closed\n" // absent in one version, read-only in the other
		case fields[0] == "read" && strings.HasSuffix(line, " ENOENT\n"):
			line = strings.Join(fields[:2], " ") + " empty\n" // this kernel has none
		}
		out.WriteString(line)
	}
	return out.String()
}
