package engine_test

import (
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/fault"
)

// TestAppArmor: containers run under the default profile where the kernel has
// AppArmor (`make test-vm`), and say so clearly where it has not.
func TestAppArmor(t *testing.T) {
	m := enginetest.New(t)
	current := []string{"sh", "-c", "cat /proc/self/attr/apparmor/current 2>/dev/null || echo none"}
	if !m.AppArmor() {
		out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: current})
		if err != nil || !strings.Contains("none unconfined", strings.TrimSpace(out)) {
			t.Errorf("without a profile: %v, %s", err, out)
		}
		_, err = tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: current, Security: engine.Security{AppArmor: "mine"}})
		if !fault.Is(err, fault.Unsupported) && !fault.Is(err, fault.Invalid) {
			t.Errorf("with a profile: %v", err)
		}
		return
	}
	for want, sec := range map[string]engine.Security{
		"ferry-default (enforce)": {},
		"unconfined":              {AppArmor: engine.AppArmorUnconfined},
	} {
		_, c := m.Run(engine.ContainerSpec{Name: "a", Command: append(current[:2:2], current[2]+"; sleep 1000"), Security: sec})
		out, err := execIn(t, m, c.ID, engine.ExecSpec{Args: current})
		if err != nil || strings.TrimSpace(out) != want {
			t.Errorf("exec: %v, %s, want %s", err, out, want)
		}
		if err := m.StopContainer(t.Context(), c.ID, 0); err != nil {
			t.Fatal(err)
		}
		if out := logOf(t, m, c); strings.TrimSpace(out) != want {
			t.Errorf("main: %s, want %s", out, want)
		}
	}
	if _, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Security: engine.Security{AppArmor: "no-such-profile"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	// What the profile denies and capabilities would not.
	out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: []string{"sh", "-c", "mkdir /m; mount -t tmpfs x /m 2>/dev/null && echo mounted; echo done"},
		Security: engine.Security{AddCaps: []string{"SYS_ADMIN"}, Seccomp: engine.SeccompUnconfined}})
	if err != nil || out != "done\n" {
		t.Errorf("mount under the profile: %v, %s", err, out)
	}
}
