package dockerapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// statsInterval is the time between two samples, as clients expect it.
const statsInterval = time.Second

// containerStats answers with a container's usage, once or every second. A
// client computes the load from two samples: unless it wants only one and says
// so (one-shot), each has the one before beside it.
func (s *Server) containerStats(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	stream := param(r, "stream") == "" || flag(r, "stream")
	if stream && flag(r, "one-shot") {
		return fault.New(fault.Invalid, "cannot have stream=true and one-shot=true")
	}
	last, err := s.sample(ctx, c)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if !stream && (flag(r, "one-shot") || !alive(c)) {
		return writeJSON(w, http.StatusOK, last)
	}
	if stream { // the first comes at once, so that a client has something to show
		if err := s.sendSample(w, last); err != nil {
			return err
		}
	}
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if c, err = s.find(ctx, c.ID); fault.Is(err, fault.NotFound) && stream {
			return nil
		}
		if err != nil {
			return err
		}
		next, err := s.sample(ctx, c)
		if err != nil {
			return err
		}
		next.PreRead, next.PreCPUStats = last.Read, last.CPUStats
		if !stream {
			return writeJSON(w, http.StatusOK, next)
		}
		if err := s.sendSample(w, next); err != nil {
			return err
		}
		last = next
	}
}

func (s *Server) sendSample(w http.ResponseWriter, v container.StatsResponse) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// sample is a container's usage now; of one that does not run, nothing but its name.
func (s *Server) sample(ctx context.Context, c engine.Container) (container.StatsResponse, error) {
	v := container.StatsResponse{ID: c.ID, Name: "/" + c.Spec.Name, OSType: "linux"}
	if c.PID == 0 {
		return v, nil
	}
	usage, err := s.opt.Engine.Usage(ctx, c.ID)
	if gone(err) || err == nil && usage.CPUNanos == 0 && usage.Pids == 0 { // ended meanwhile
		return v, nil
	}
	if err != nil {
		return v, err
	}
	d := usage.Detail
	v.Read = usage.Time
	v.CPUStats = container.CPUStats{
		CPUUsage:       container.CPUUsage{TotalUsage: usage.CPUNanos, PercpuUsage: d.CPUs, UsageInKernelmode: d.CPUKernel, UsageInUsermode: d.CPUUser},
		ThrottlingData: container.ThrottlingData{Periods: d.Periods, ThrottledPeriods: d.ThrottledPeriods, ThrottledTime: d.ThrottledNanos},
	}
	if v.CPUStats.SystemUsage, v.CPUStats.OnlineCPUs, err = machineCPU(); err != nil {
		return v, err
	}
	v.MemoryStats = container.MemoryStats{Usage: usage.MemoryUsage, MaxUsage: d.MemoryMax, Stats: d.Memory, Failcnt: d.MemoryFailed, Limit: usage.MemoryLimit}
	if total := memoryTotal(); usage.MemoryLimit == 0 || usage.MemoryLimit > total {
		v.MemoryStats.Limit = total
	}
	v.PidsStats = container.PidsStats{Current: usage.Pids, Limit: d.PidsLimit}
	v.BlkioStats = container.BlkioStats{IoServiceBytesRecursive: ioStats(d.IOBytes), IoServicedRecursive: ioStats(d.IOOps)}
	if pod, err := s.opt.Engine.Pod(ctx, c.PodID); err == nil && pod.Spec.Network == engine.ModePod {
		v.Networks = interfaces(c.PID)
	}
	return v, nil
}

func ioStats(in []engine.IO) []container.BlkioStatEntry {
	var out []container.BlkioStatEntry
	for _, e := range in {
		out = append(out, container.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}

// clockTicks is USER_HZ, which the kernel counts processor time in for
// everybody, whatever its own clock: 100 on every architecture that Go has.
const clockTicks = 100

// machineCPU returns the processor time of the whole machine since its start in
// nanoseconds, idle time included, and the number of its processors.
func machineCPU() (total uint64, processors uint32, err error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 8 || !strings.HasPrefix(fields[0], "cpu"):
		case fields[0] == "cpu":
			for _, f := range fields[1:8] { // as Docker: without what guests took
				ticks, err := strconv.ParseUint(f, 10, 64)
				if err != nil {
					return 0, 0, err
				}
				total += ticks * uint64(time.Second) / clockTicks
			}
		default:
			processors++
		}
	}
	return total, processors, nil
}

// interfaces are the counters of the network interfaces that a process sees,
// but for the loopback; nil if it has ended.
func interfaces(pid int) map[string]container.NetworkStats {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "net/dev"))
	if err != nil {
		return nil
	}
	return parseNetDev(data)
}

// parseNetDev reads /proc/net/dev: two lines of headings, then a line for each
// interface of eight numbers received and eight sent.
func parseNetDev(data []byte) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(fields) < 16 {
			continue
		}
		n := make([]uint64, len(fields))
		for i, f := range fields {
			n[i], _ = strconv.ParseUint(f, 10, 64) // the kernel writes numbers
		}
		out[name] = container.NetworkStats{RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11]}
	}
	return out
}

// defaultPs is what docker top asks ps for where nothing else is said.
const defaultPs = "-ef"

// containerTop lists a container's processes as the host's ps shows them.
func (s *Server) containerTop(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	pids, err := s.opt.Engine.Processes(ctx, c.ID)
	if err != nil {
		return err
	}
	args := param(r, "ps_args")
	if args == "" {
		args = defaultPs
	}
	if err := checkPs(args); err != nil {
		return err
	}
	list, err := ps(ctx, strings.Fields(args), pids)
	if errors.Is(err, exec.ErrNotFound) && args == defaultPs {
		list, err = processes(pids), nil
	}
	if err != nil {
		return err
	}
	s.publishOf(c, events.ActionTop)
	return writeJSON(w, http.StatusOK, list)
}

// pidColumn finds a column of ps that is given the name of that with the PIDs.
var pidColumn = regexp.MustCompile(`\s+([^\s]*)=\s*PID[^\s]*`)

// checkPs refuses arguments of ps that would have it show something else as PID,
// as Docker does: another's processes could be listed by that.
func checkPs(args string) error {
	for _, m := range pidColumn.FindAllStringSubmatch(args, -1) {
		if m[1] != "pid" {
			return fault.New(fault.Invalid, "specifying %q is not allowed", strings.TrimSpace(m[0]))
		}
	}
	return nil
}

// ps runs the host's ps and keeps the given processes. It is told to look at
// these alone: else what selects no processes, as -o, would show those of the
// daemon's user that have no terminal. Some of its options refuse that.
func ps(ctx context.Context, args []string, pids []int) (container.TopResponse, error) {
	list := make([]string, len(pids))
	for i, pid := range pids {
		list[i] = strconv.Itoa(pid)
	}
	out, err := exec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q"+strings.Join(list, ","))...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		out, err = exec.CommandContext(ctx, "ps", args...).Output()
	}
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return container.TopResponse{}, fault.New(fault.Unsupported, "top: %w", err).Hint("install procps, whose ps lists processes")
	case errors.As(err, &failed):
		return container.TopResponse{}, fault.New(fault.Invalid, "ps %s: %s", strings.Join(args, " "), strings.TrimSpace(string(failed.Stderr)))
	case err != nil:
		return container.TopResponse{}, err
	}
	return parsePs(string(out), pids)
}

// parsePs reads ps's table and keeps the rows of the given processes, found by
// the column PID, and of their threads, which have none there and follow. The
// last column is the rest of the line.
func parsePs(out string, pids []int) (container.TopResponse, error) {
	head, rows, _ := strings.Cut(out, "\n")
	list := container.TopResponse{Titles: strings.Fields(head), Processes: [][]string{}}
	column := slices.Index(list.Titles, "PID")
	if column < 0 {
		return list, fault.New(fault.Invalid, "Couldn't find PID field in ps output").Hint("ask for the column pid too: -o pid,...")
	}
	ours := false
	for line := range strings.Lines(rows) {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		if fields[column] != "-" {
			pid, err := strconv.Atoi(fields[column])
			if err != nil {
				return list, fault.New(fault.Internal, "ps: %q is no process", fields[column])
			}
			ours = slices.Contains(pids, pid)
		}
		if !ours {
			continue
		}
		if last := len(list.Titles) - 1; len(fields) > last {
			fields = append(fields[:last:last], strings.Join(fields[last:], " "))
		}
		list.Processes = append(list.Processes, fields)
	}
	return list, nil
}

// processes is the list for a machine without ps.
func processes(pids []int) container.TopResponse {
	list := container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{}}
	for _, pid := range pids {
		cmd, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil {
			continue // ended since the listing
		}
		line := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		list.Processes = append(list.Processes, []string{strconv.Itoa(pid), line})
	}
	return list
}
