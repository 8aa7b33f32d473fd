package engine_test

import (
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
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
