package cgroups

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// The kernel's own list is the other witness.
func TestHasAgreesWithKernel(t *testing.T) {
	data, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		t.Skipf("no cgroups in this kernel: %v", err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !slices.Contains(needed(false), fields[0]) || Unified() {
			continue
		}
		attached := fields[1] != "0" && fields[3] == "1"
		if got := Has(fields[0]); got != attached {
			t.Errorf("Has(%q) = %v, /proc/cgroups says %v", fields[0], got, attached)
		}
	}
	if Has("no-such-controller") {
		t.Error("has a controller that does not exist")
	}
}

// TestNeededByKubelet has what validateSystemRequirements of the kubelet's
// container manager asks for.
func TestNeededByKubelet(t *testing.T) {
	for _, name := range []string{"cpu", "cpuacct", "cpuset", "memory"} {
		if !slices.Contains(needed(false), name) {
			t.Errorf("%s of v1 is not asked for", name)
		}
	}
	for _, name := range []string{"cpuset", "cpuacct"} {
		if slices.Contains(needed(true), name) {
			t.Errorf("%s of v2 is asked for", name)
		}
	}
}
