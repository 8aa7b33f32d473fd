package cgroups

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestExpect has this process stay where it is.
func TestExpect(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	m := NewMover()
	if m.path == "" {
		t.Fatal("no cgroup of this process found")
	}
	procs, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains("\n"+string(procs), "\n"+strconv.Itoa(os.Getpid())+"\n") {
		t.Errorf("%s does not list this process", m.path)
	}
	m.Expect()
	m.Expect()
	m.mu.Lock() // until it is done
	defer m.mu.Unlock()
	after, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(before) {
		t.Errorf("moved from\n%s to\n%s", before, after)
	}
}

func TestExpectNowhere(*testing.T) { new(Mover).Expect() }
