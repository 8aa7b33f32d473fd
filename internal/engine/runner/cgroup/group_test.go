package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// parent is the group below which the tests and benchmarks make theirs.
var parent = fmt.Sprintf("/ferrytest-cgroup-%d", os.Getpid())

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range dirsOf(parent) {
		if err := cgroups.RemovePath(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// dirsOf are the directories of the group at a path that are there.
func dirsOf(path string) []string {
	var dirs []string
	for _, pattern := range []string{mountpoint, mountpoint + "/*"} {
		found, _ := filepath.Glob(pattern + path) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return dirs
}

// newGroup makes a group that goes with the test, and what runs in it.
func newGroup(t *testing.T, r *specs.LinuxResources) *Group {
	t.Helper()
	runnertest.NeedRoot(t)
	g, err := New(filepath.Join(parent, t.Name()), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = g.Kill(unix.SIGKILL) // it may be gone
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// run starts a script of busybox in the group, as launch does: born in v2's,
// and moved by itself into those of v1.
func run(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox")
	}
	script = "b=" + busybox + "\nfor f in \"$@\"; do echo 0 >\"$f\" || exit 99; done; echo joined\n" + script
	cmd := exec.Command(busybox, append([]string{"sh", "-c", script, "sh"}, g.JoinFiles()...)...)
	cmd.Stderr = os.Stderr
	if dir := g.Dir(); dir != "" {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		_ = g.Kill(unix.SIGKILL) // thaws it, too; it may have ended
		<-ended
	})
	joined, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its state tells
	}()
	if joined != "joined\n" {
		t.Fatalf("the process has not joined: %q, %v", joined, err)
	}
	return cmd
}

// await waits until something is so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Duration(runnertest.Patience()) * 5 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so", what)
		}
	}
}

// read returns what a file of the group says: v1's of a controller, or v2's.
func read(t *testing.T, g *Group, v1, v2 string) string {
	t.Helper()
	path := filepath.Join(g.Dir(), v2)
	controller, _, _ := strings.Cut(v1, ".")
	if dir := g.dirs[controller]; dir != "" {
		path = filepath.Join(dir, v1)
	}
	said, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(said))
}

func ptr[T any](v T) *T { return &v }

// limited are limits of every kind that the tests look at.
func limited() *specs.LinuxResources {
	return &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"},
			{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "rw"}},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0", Mems: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(37))},
	}
}

// checkLimits compares the files of the group with what limited says but for the
// number of processes and the memory.
func checkLimits(t *testing.T, g *Group, pids, memory string) {
	t.Helper()
	for _, file := range []struct{ v1, v2, want1, want2 string }{
		{"memory.limit_in_bytes", "memory.max", memory, memory},
		{"pids.max", "pids.max", pids, pids},
		{"cpu.shares", "cpu.weight", "512", "59"},
		{"cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"cpuset.cpus", "cpuset.cpus", "0", "0"},
		{"cpuset.mems", "cpuset.mems", "0", "0"},
	} {
		want := file.want1
		if cgroups.IsCgroup2UnifiedMode() {
			want = file.want2
		}
		if got := read(t, g, file.v1, file.v2); got != want {
			t.Errorf("%s is %q, want %q", file.v1, got, want)
		}
	}
	if g.dirs["devices"] == "" {
		return // v2 has a program in the kernel instead
	}
	got := strings.Split(read(t, g, "devices.list", ""), "\n")
	want := []string{"b *:* m", "c *:* m", "c 10:200 rwm", "c 10:229 rw", "c 136:* rwm", "c 1:3 rwm", "c 1:5 rwm",
		"c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("devices.list is %q, want %q", got, want)
	}
}

func TestLimits(t *testing.T) {
	checkLimits(t, newGroup(t, limited()), "37", "67108864")
}

func TestUpdate(t *testing.T) {
	g := newGroup(t, limited())
	if err := g.Update(specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(40))}}); err != nil {
		t.Fatal(err)
	}
	checkLimits(t, g, "40", "67108864")
	if err := g.Update(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20))}}); err != nil {
		t.Fatal(err)
	}
	checkLimits(t, g, "40", "33554432")
	bad := specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}, Pids: &specs.LinuxPids{Limit: ptr(int64(41))}}
	if err := g.Update(bad); err == nil {
		t.Error("CPU 999 was taken")
	}
	checkLimits(t, g, "40", "33554432")
}

func TestNewFails(t *testing.T) {
	runnertest.NeedRoot(t)
	for _, path := range []string{"", "/", "/..", "ferrytest"} {
		if _, err := New(path, nil); err == nil {
			t.Errorf("a group was made at %q", path)
		}
	}
	path := filepath.Join(parent, t.Name())
	if _, err := New(path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}}); err == nil {
		t.Error("CPU 999 was taken")
	}
	if left := dirsOf(path); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestProcesses(t *testing.T) {
	g := newGroup(t, nil)
	if files := g.JoinFiles(); !slices.IsSorted(files) || len(slices.Compact(files)) != len(g.JoinFiles()) {
		t.Errorf("join files %q", files)
	}
	// A container may make cgroups below its own: on v2 without controllers, for it has processes itself.
	outer, inner := run(t, g, "exec $b sleep 600"), (*exec.Cmd)(nil)
	if dir := g.Dir(); dir != "" {
		inner = run(t, g, "exec $b sleep 600")
		below := filepath.Join(dir, "below")
		if err := errors.Join(os.Mkdir(below, 0o755), os.WriteFile(filepath.Join(below, "cgroup.procs"), fmt.Append(nil, inner.Process.Pid), 0)); err != nil {
			t.Fatal(err)
		}
	} else {
		below, err := New(filepath.Join(parent, t.Name(), "below"), nil)
		if err != nil {
			t.Fatal(err)
		}
		inner = run(t, below, "exec $b sleep 600")
	}
	want := []int{outer.Process.Pid, inner.Process.Pid}
	got, err := g.Processes()
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("processes %v, %v; want %v", got, err, want)
	}
}

func frozen(t *testing.T, g *Group) bool {
	t.Helper()
	said := read(t, g, "freezer.state", "cgroup.events")
	return said == "FROZEN" || strings.Contains(said, "frozen 1")
}

func TestFreeze(t *testing.T) {
	g := newGroup(t, nil)
	run(t, g, "while :; do :; done")
	for range 3 {
		if err := g.Freeze(); err != nil || !frozen(t, g) {
			t.Fatalf("not frozen: %v", err)
		}
		if err := g.Thaw(); err != nil || frozen(t, g) {
			t.Fatalf("not thawed: %v", err)
		}
	}
}

// twoSleepers are two processes once the second has been forked.
const twoSleepers = "$b sleep 600 & exec $b sleep 600"

func TestKill(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		sig    unix.Signal
		freeze bool
		v1     bool // without v2 beside it
	}{
		"every one":    {script: twoSleepers, sig: unix.SIGKILL},
		"terminate":    {script: twoSleepers, sig: unix.SIGTERM},
		"frozen":       {script: twoSleepers, sig: unix.SIGKILL, freeze: true},
		"forking":      {script: "f() { f & }; f", sig: unix.SIGKILL},
		"forking, v1":  {script: "f() { f & }; f", sig: unix.SIGKILL, v1: true},
		"frozen on v1": {script: twoSleepers, sig: unix.SIGKILL, freeze: true, v1: true},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			g := newGroup(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(20))}})
			if tt.v1 && g.dirs["freezer"] == "" {
				t.Skip("no cgroup v1")
			}
			run(t, g, tt.script)
			if tt.script == twoSleepers {
				await(t, "both sleep", func() bool {
					pids, err := g.Processes()
					return err == nil && len(pids) == 2
				})
			}
			if tt.freeze {
				if err := g.Freeze(); err != nil {
					t.Fatal(err)
				}
			}
			killed := g
			if tt.v1 {
				killed = &Group{manager: g.manager, limits: g.limits, dirs: map[string]string{}}
			}
			if err := killed.Kill(tt.sig); err != nil {
				t.Fatal(err)
			}
			await(t, "the group is empty", func() bool {
				pids, err := g.Processes()
				return err == nil && len(pids) == 0
			})
			if err := g.Kill(tt.sig); err != nil {
				t.Errorf("kill nobody: %v", err)
			}
		})
	}
}

func TestStats(t *testing.T) {
	g := newGroup(t, limited())
	run(t, g, "while :; do :; done")
	await(t, "the process uses the processor and memory", func() bool {
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if s.MemoryLimit != 64<<20 || s.Detail.PidsLimit != 37 || s.MemoryWorkingSet > s.MemoryUsage || s.MemoryUsage > s.MemoryLimit {
			t.Fatalf("stats %+v", s)
		}
		return s.CPUNanos > 10e6 && s.Pids == 1 && s.MemoryUsage > 0 && s.Detail.Periods > 0
	})
}

// watchers is how many goroutines watch a group's memory.
func watchers() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), "cgroup.watchV") + strings.Count(string(stacks), ".Follow(")
}

func TestWatchOOM(t *testing.T) {
	g := newGroup(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}})
	kills := g.OOM()
	var told atomic.Int64
	g.WatchOOM(kills, func() { told.Add(1) })
	run(t, g, "$b dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; exec $b sleep 600")
	await(t, "a kill is told of", func() bool { return told.Load() == 1 })
	if err := g.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the group is empty", func() bool {
		pids, err := g.Processes()
		return err == nil && len(pids) == 0
	})
	if n := kills.Kills(); n != 1 {
		t.Errorf("%d kills, want 1", n)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	await(t, "nobody watches", func() bool { return watchers() == 0 })
	if told.Load() != 1 {
		t.Errorf("told %d times of one kill", told.Load())
	}
}

func TestWatchWithoutLimit(t *testing.T) {
	g := newGroup(t, nil)
	kills := g.OOM()
	defer kills.Kills()
	g.WatchOOM(kills, func() { t.Error("told of a kill") })
	if watchers() != 0 {
		t.Error("a group without a limit is watched")
	}
}

func TestRemove(t *testing.T) {
	g := newGroup(t, nil)
	run(t, g, twoSleepers)
	if err := g.Kill(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 2 { // while they leave, and when it is gone
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}
	if left := dirsOf(filepath.Join(parent, t.Name())); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
