package engine_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestIsolation runs testdata/probe under each kind of confinement and compares
// what it finds with testdata/isolation, which a person has looked at. Where the
// kernel has AppArmor, each runs with the default profile and without one, so
// that none hides what the others let through.
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
		profiles := []string{engine.AppArmorUnconfined}
		if m.AppArmor() && !c.security.Privileged {
			profiles = append(profiles, "")
		}
		for _, profile := range profiles {
			t.Run(name+"/"+cmp.Or(profile, "profile"), func(t *testing.T) {
				c.security.AppArmor = profile
				_, ctr := m.RunIn(c.pod, engine.ContainerSpec{Name: name, Command: []string{"/probe", name}, Security: c.security,
					Mounts: []engine.Mount{{Kind: engine.MountBind, Source: probe, Destination: "/probe", ReadOnly: true}}})
				got := settle(logOf(t, m, ctr), c.security.Privileged)
				file := filepath.Join("testdata", "isolation", name)
				want := expected(t, file, map[string]bool{"cgroup2": cgroups.Unified(), "apparmor": profile == ""})
				if diff := gocmp.Diff(want, got); diff != "" {
					t.Errorf("%s: is it tighter or looser?\n%s", file, diff)
				}
			})
		}
	}
}

// expected is what a file says of a machine: its lines without those that begin
// with a condition that does not hold, [CONDITION] or [!CONDITION], and those of
// files that the kernel has not.
func expected(t *testing.T, file string, conditions map[string]bool) string {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
lines:
	for line := range strings.Lines(string(data)) {
		for strings.HasPrefix(line, "[") {
			condition, rest, _ := strings.Cut(line[1:], "] ")
			name, not := strings.CutPrefix(condition, "!")
			holds, known := conditions[name]
			if !known {
				t.Fatalf("%s: unknown condition %q", file, condition)
			}
			if holds == not {
				continue lines
			}
			line = rest
		}
		if !absent(strings.Fields(line)) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// absent reports whether a line is of a file of /proc or /sys that the kernel
// has not, or of a directory in which it has nothing.
func absent(fields []string) bool {
	if fields[0] != "read" && fields[0] != "write" || !strings.HasPrefix(fields[1], "/proc/") && !strings.HasPrefix(fields[1], "/sys/") ||
		strings.HasPrefix(fields[1], "/sys/fs/cgroup/") {
		return false
	}
	info, err := os.Stat(fields[1])
	if err == nil && info.IsDir() {
		entries, err := os.ReadDir(fields[1])
		return err == nil && len(entries) == 0
	}
	return os.IsNotExist(err)
}

// settle says of what the probe found only what is the same on every machine.
func settle(found string, privileged bool) string {
	var out strings.Builder
	for line := range strings.Lines(found) {
		fields := strings.Fields(line)
		switch {
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
		case fields[0] == "call" && fields[2] == "ENOSYS":
			line = strings.Join(fields[:2], " ") + " EPERM\n" // this kernel has none: as closed
		case absent(fields):
			continue
		}
		out.WriteString(line)
	}
	return out.String()
}
