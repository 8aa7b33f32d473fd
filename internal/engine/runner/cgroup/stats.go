package cgroup

import (
	"github.com/opencontainers/cgroups"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// Stats is what the group's processes use and have used.
func (g *Group) Stats() (runner.Stats, error) {
	cg, err := g.manager.GetStats()
	if err != nil {
		return runner.Stats{}, err
	}
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
