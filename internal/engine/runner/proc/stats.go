package proc

import (
	"fmt"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/oom"
)

// stats reads a container's usage from its cgroup.
func (c *container) stats() (runner.Stats, error) {
	all, err := c.ctr.Stats()
	if err != nil {
		return runner.Stats{}, fmt.Errorf("stats of container %s: %w", c.id, err)
	}
	cg := all.CgroupStats
	mem := cg.MemoryStats
	s := runner.Stats{
		CPUNanos: cg.CpuStats.CpuUsage.TotalUsage, MemoryUsage: mem.Usage.Usage, Pids: cg.PidsStats.Current,
		PageFaults: mem.Stats["pgfault"], MajorPageFaults: mem.Stats["pgmajfault"],
	}
	s.Detail = runner.Detail{
		CPUUser: cg.CpuStats.CpuUsage.UsageInUsermode, CPUKernel: cg.CpuStats.CpuUsage.UsageInKernelmode, CPUs: cg.CpuStats.CpuUsage.PercpuUsage,
		Periods: cg.CpuStats.ThrottlingData.Periods, ThrottledPeriods: cg.CpuStats.ThrottlingData.ThrottledPeriods,
		ThrottledNanos: cg.CpuStats.ThrottlingData.ThrottledTime, MemoryMax: mem.Usage.MaxUsage, MemoryFailed: mem.Usage.Failcnt,
		Memory: mem.Stats, PidsLimit: cg.PidsStats.Limit,
		IOBytes: ioCounts(cg.BlkioStats.IoServiceBytesRecursive), IOOps: ioCounts(cg.BlkioStats.IoServicedRecursive),
	}
	// The kernel's "no limit" is the highest page-aligned number.
	if mem.Usage.Limit < 1<<62 {
		s.MemoryLimit = mem.Usage.Limit
	}
	inactive, ok := mem.Stats["total_inactive_file"] // v1
	if !ok {
		inactive = mem.Stats["inactive_file"]
	}
	if s.MemoryRSS, ok = mem.Stats["total_rss"]; !ok {
		s.MemoryRSS = mem.Stats["anon"] // v2
	}
	s.MemoryWorkingSet = s.MemoryUsage - min(inactive, s.MemoryUsage)
	return s, nil
}

func ioCounts(in []cgroups.BlkioStatEntry) []runner.IO {
	var out []runner.IO
	for _, e := range in {
		out = append(out, runner.IO{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}

// openOOM returns what counts the out-of-memory kills in a container's cgroup.
func openOOM(ctr *libcontainer.Container) (*oom.Counter, error) {
	st, err := ctr.State()
	if err != nil {
		return nil, err
	}
	var files []string
	if dir := st.CgroupPaths["memory"]; dir != "" { // v1
		files = append(files, filepath.Join(dir, "memory.oom_control"))
	}
	if dir := st.CgroupPaths[""]; dir != "" {
		files = append(files, filepath.Join(dir, "memory.events"))
	}
	return oom.Open(files...), nil
}

// watchOOM calls f at each out-of-memory kill from now on. Only a container with
// a limit of its own is watched: the watch holds a thread.
func watchOOM(kills *oom.Counter, ctr *libcontainer.Container, f func()) {
	if ctr.Config().Cgroups.Resources.Memory <= 0 || !kills.Counts() {
		return
	}
	notifications, err := ctr.NotifyOOM()
	if err != nil {
		return // the exit still tells
	}
	go kills.Follow(notifications, f) // ends when the cgroup is removed
}
