package proc

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"

	"github.com/ferryos/ferry/internal/engine/runner"
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

// oomCounter counts the out-of-memory kills in a container's cgroup.
type oomCounter struct {
	file    *os.File // memory.oom_control (v1) or memory.events (v2); nil without a memory controller
	unified bool     // v2
	limit   bool
}

func newOOMCounter(ctr *libcontainer.Container) (*oomCounter, error) {
	st, err := ctr.State()
	if err != nil {
		return nil, err
	}
	o := &oomCounter{limit: ctr.Config().Cgroups.Resources.Memory > 0}
	for _, path := range []string{
		filepath.Join(st.CgroupPaths["memory"], "memory.oom_control"), filepath.Join(st.CgroupPaths[""], "memory.events"),
	} {
		if !filepath.IsAbs(path) {
			continue
		}
		if f, err := os.Open(path); err == nil {
			o.file, o.unified = f, filepath.Base(path) == "memory.events"
			break
		}
	}
	return o, nil
}

// kills returns how many processes were killed for memory, and lets go of the file.
func (o *oomCounter) kills() int {
	if o.file == nil {
		return 0
	}
	defer o.file.Close()
	n, err := o.count()
	if err != nil {
		return 0
	}
	return n
}

// count returns how many processes were killed for memory so far.
func (o *oomCounter) count() (int, error) {
	lines := bufio.NewScanner(io.NewSectionReader(o.file, 0, 1<<16))
	for lines.Scan() {
		if n, found := strings.CutPrefix(lines.Text(), "oom_kill "); found {
			return strconv.Atoi(n)
		}
	}
	return 0, lines.Err()
}

// watch calls f at each out-of-memory kill from now on. Only a container with a
// limit of its own is watched: the watch holds a thread.
func (o *oomCounter) watch(ctr *libcontainer.Container, f func()) {
	if !o.limit || o.file == nil {
		return
	}
	kills, err := ctr.NotifyOOM()
	if err != nil {
		return // the exit still tells
	}
	go func() { // ends when the cgroup is removed
		seen := 0
		for range kills {
			// Once there was a kill, v2 tells of every time that the limit is reached.
			// v1 tells of a kill before it is counted.
			now, err := o.count()
			if err != nil || now > seen || !o.unified { // no longer to be read: it was the last
				seen = now
				f()
			}
		}
	}()
}
