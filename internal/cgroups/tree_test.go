package cgroups

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newCgroup makes a cgroup with two levels below it and returns its path and
// the innermost directory: on v1 in one hierarchy.
func newCgroup(t *testing.T) (path, inner string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	path = fmt.Sprintf("/ferrytest-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	top := root
	if !Unified() {
		top = filepath.Join(root, "pids")
	}
	inner = filepath.Join(top, path, "a", "b")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Kill(path, 10*time.Second); err != nil {
			t.Error(err)
		}
	})
	return path, inner
}

// sleepIn starts a process in a cgroup; the channel tells of its end.
func sleepIn(t *testing.T, dir string) <-chan error {
	t.Helper()
	cmd := exec.Command("sh", "-c", `echo $$ > "$0"/cgroup.procs && echo ready && exec sleep 1000`, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal("not in its cgroup: ", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended
}

func TestKillReachesAllBelow(t *testing.T) {
	path, inner := newCgroup(t)
	ended := sleepIn(t, inner)
	if err := Remove(path); err == nil {
		t.Error("removed with a process in it")
	}
	if err := Kill(path, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("process: %v, want killed", err)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(inner))); !os.IsNotExist(err) {
		t.Errorf("cgroup is left: %v", err)
	}
	if err := Kill(path, time.Second); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestRemove(t *testing.T) {
	path, inner := newCgroup(t)
	for range 2 {
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Dir(filepath.Dir(inner))); !os.IsNotExist(err) {
			t.Errorf("cgroup is left: %v", err)
		}
	}
}

func TestCheckParent(t *testing.T) {
	path, inner := newCgroup(t)
	if err := CheckParent(path + "/new"); err != nil {
		t.Errorf("below a cgroup without processes: %v", err)
	}
	sleepIn(t, inner)
	err := CheckParent(path + "/a/b/new")
	switch {
	case !Unified() && err != nil:
		t.Errorf("v1 has no such rule: %v", err)
	case Unified() && (err == nil || !strings.Contains(err.Error(), path+"/a/b has processes")):
		t.Errorf("below a cgroup with a process: %v", err)
	}
	if err := CheckParent(path + "/a"); err != nil {
		t.Errorf("beside it: %v", err)
	}
}
