package engine_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestSignalsAreDefault: what the runner does with signals is not inherited by
// programs, whose shells could not trap an ignored one.
func TestSignalsAreDefault(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "p", Command: []string{"cat", "/proc/1/status"}})
	if out := logOf(t, m, c); !strings.Contains(out, "SigIgn:\t0000000000000000\n") {
		t.Errorf("signals are ignored:\n%s", out)
	}
	_, c = m.Run(engine.ContainerSpec{Name: "s", Command: []string{"sh", "-c",
		`for s in HUP INT TERM PIPE; do trap "echo trapped $s" $s; kill -$s $$; done`}})
	if out, want := logOf(t, m, c), "trapped HUP\ntrapped INT\ntrapped TERM\ntrapped PIPE\n"; out != want {
		t.Errorf("output:\n%swant:\n%s", out, want)
	}
}

// TestOOMScore: the adjustment of this process is not its containers', for the
// kubelet changes the daemon's.
func TestOOMScore(t *testing.T) {
	m := enginetest.New(t)
	const own = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != "0\n" {
		t.Skipf("this process's own adjustment is %s", before)
	}
	if err := os.WriteFile(own, []byte("321"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(own, before, 0)
	_, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"cat", own}})
	if out := logOf(t, m, c); out != "0\n" {
		t.Errorf("a container's is %swant 0", out)
	}
	var out bytes.Buffer
	step := &specs.Spec{Version: specs.Version, Root: &specs.Root{Path: runnertest.Rootfs(t)},
		Process: &specs.Process{Args: []string{"cat", own}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}}}
	code, err := m.RunBundle(t.Context(), engine.Bundle{ID: "step-of-a-build", Spec: step, Network: engine.ModeNone}, engine.Streams{Stdout: &out})
	if err != nil || code != 0 || out.String() != "0\n" {
		t.Errorf("a bundle's is %s(%d, %v), want 0", out.String(), code, err)
	}
}

// TestDirectoriesArePrivate: users of the machine have no way to containers'
// roots and to images, and users inside read what is mounted from there.
func TestDirectoriesArePrivate(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "c", Security: engine.Security{User: "user"},
		Command: []string{"sh", "-c", "cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null && touch /dev/shm/x && echo fine"}})
	if out := logOf(t, m, c); out != "fine\n" {
		t.Errorf("a user in a container: %s", out)
	}
	m.Stop()
	dirs := []string{"run/c", "run/p", "run/r", "store"}
	for _, dir := range dirs { // as an earlier version left them
		if err := os.Chmod(filepath.Join(m.Dir(), dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.Start()
	for _, dir := range dirs {
		if st, err := os.Stat(filepath.Join(m.Dir(), dir)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, st, err)
		}
	}
}
