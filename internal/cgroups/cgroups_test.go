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
		if len(fields) < 4 || !slices.Contains(needed, fields[0]) || Unified() {
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
