package dockerapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// cpuPeriod is the period that --cpus is expressed in, microseconds.
const cpuPeriod = 100_000

// minMemory is the smallest memory limit, as Docker has it.
const minMemory = 6 << 20

// ulimits are the names of setrlimit(2), as Docker writes them.
var ulimits = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
	"rtprio", "rttime", "sigpending", "stack"}

// checkResources refuses limits that the kernel would refuse, or take for none.
func checkResources(h container.HostConfig) error {
	most := int64(runtime.NumCPU()) * 1e9
	for _, bad := range []struct {
		is   bool
		says string
	}{
		{h.Memory != 0 && h.Memory < minMemory, "Minimum memory limit allowed is 6MB"},
		{h.MemorySwap < -1 || h.MemorySwap > 0 && (h.Memory == 0 || h.MemorySwap < h.Memory),
			"--memory-swap must be --memory or more, which must be given too, or -1"},
		{h.NanoCPUs > 0 && (h.CPUPeriod != 0 || h.CPUQuota != 0), "--cpus must stand without --cpu-period and --cpu-quota"},
		{h.NanoCPUs != 0 && (h.NanoCPUs < 1e7 || h.NanoCPUs > most),
			fmt.Sprintf("range of CPUs is from 0.01 to %d.00, as there are only %[1]d CPUs available", most/1e9)},
		{h.CPUShares < 0, "--cpu-shares must be positive"},
		{h.CPUPeriod != 0 && (h.CPUPeriod < 1000 || h.CPUPeriod > 1e6), "--cpu-period must be between 1000 and 1000000 microseconds"},
		{h.CPUQuota > 0 && h.CPUQuota < 1000, "--cpu-quota must be 1000 microseconds or more"},
		{h.MemoryReservation < 0 || h.MemoryReservation > 0 && h.MemoryReservation < minMemory, "Minimum memory reservation allowed is 6MB"},
		{h.Memory > 0 && h.MemoryReservation > h.Memory, "Minimum memory limit can not be less than memory reservation limit, see usage"},
		{h.MemorySwappiness != nil && (*h.MemorySwappiness < -1 || *h.MemorySwappiness > 100),
			"Invalid value for memory swappiness, valid range is 0-100"},
		{h.BlkioWeight != 0 && (h.BlkioWeight < 10 || h.BlkioWeight > 1000), "Range of blkio weight is from 10 to 1000"},
		{h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000, "--oom-score-adj must be between -1000 and 1000"},
		{h.ShmSize < 0, "--shm-size must be positive"},
	} {
		if bad.is {
			return fault.New(fault.Invalid, "%s", bad.says)
		}
	}
	return cmp.Or(checkSet(h.CpusetCpus, "cpus", "CPUs", "/sys/devices/system/cpu/online"),
		checkSet(h.CpusetMems, "mems", "memory nodes", "/sys/devices/system/node/online"))
}

// checkSet refuses numbers of processors, or of memory nodes, that the machine
// does not have, of which the kernel tells in one of these files.
func checkSet(asked, kind, what, online string) error {
	if asked == "" {
		return nil
	}
	want, err := parseSet(asked)
	if err != nil {
		return fault.New(fault.Invalid, "Invalid value %s for cpuset %s: %w", asked, kind, err).Hint("write numbers and ranges of them, as 0-2,4")
	}
	for _, file := range []string{"/sys/fs/cgroup/cpuset/cpuset." + kind, "/sys/fs/cgroup/cpuset." + kind + ".effective", online} {
		data, err := os.ReadFile(file)
		available := strings.TrimSpace(string(data))
		have, parseErr := parseSet(available)
		if err != nil || parseErr != nil {
			continue
		}
		for _, w := range want {
			if !slices.ContainsFunc(have, func(h span) bool { return h.first <= w.first && w.last <= h.last }) {
				return fault.New(fault.Invalid, "Requested %s are not available - requested %s, available: %s", what, asked, available)
			}
		}
		break
	}
	return nil
}

// span is a range of numbers, both ends included.
type span struct{ first, last uint64 }

// parseSet reads the kernel's lists of numbers: 0-2,4.
func parseSet(s string) ([]span, error) {
	var out []span
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 31)
		to, toErr := strconv.ParseUint(last, 10, 31)
		if err != nil || toErr != nil || to < from {
			return nil, fmt.Errorf("invalid format: %s", s)
		}
		out = append(out, span{from, to})
	}
	return out, nil
}

// discard takes away limits that this machine's kernel does not have, and says
// so, as Docker does: a container that is limited less is better than none.
func discard(h *container.HostConfig) (warnings []string) {
	drop := func(asked bool, what string) bool {
		if asked {
			warnings = append(warnings, "Your kernel does not support "+what+" or the cgroup is not mounted. It is discarded.")
		}
		return asked
	}
	if cgroupV2() {
		if drop(h.MemorySwappiness != nil && *h.MemorySwappiness != -1, "memory swappiness") {
			h.MemorySwappiness = nil
		}
		if drop(h.OomKillDisable != nil && *h.OomKillDisable, "disabling the OOM killer") {
			h.OomKillDisable = nil
		}
	}
	if drop((h.BlkioWeight != 0 || len(h.BlkioWeightDevice) > 0) && !blkioWeights(), "block I/O weights") {
		h.BlkioWeight, h.BlkioWeightDevice = 0, nil
	}
	return warnings
}

// blkioWeights reports whether shares of block I/O can be given: cgroups v1 has
// had none since the scheduler that knew them left the kernel.
func blkioWeights() bool {
	pattern := "/sys/fs/cgroup/blkio/blkio.weight"
	if cgroupV2() {
		pattern = "/sys/fs/cgroup/*/io*.weight" // the root has none
	}
	found, err := filepath.Glob(pattern)
	return err == nil && len(found) > 0
}

// limits are the limits of h in the engine's terms.
func limits(h container.HostConfig) (engine.Resources, error) {
	r := engine.Resources{
		CPUShares: h.CPUShares, CPUQuota: h.CPUQuota, CPUPeriod: h.CPUPeriod, CpusetCPUs: h.CpusetCpus, CpusetMems: h.CpusetMems,
		Memory: h.Memory, MemorySwap: h.MemorySwap, MemoryReservation: h.MemoryReservation,
		OOMKillDisable: h.OomKillDisable != nil && *h.OomKillDisable,
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		r.MemorySwap = 2 * h.Memory
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness != -1 {
		swappiness := uint64(*h.MemorySwappiness)
		r.MemorySwappiness = &swappiness
	}
	if h.NanoCPUs > 0 {
		r.CPUPeriod, r.CPUQuota = cpuPeriod, h.NanoCPUs*cpuPeriod/1e9
	}
	if h.PidsLimit != nil {
		r.Pids = max(*h.PidsLimit, 0)
	}
	if h.OomScoreAdj != 0 {
		r.OOMScoreAdj = &h.OomScoreAdj
	}
	var err error
	r.BlockIO, err = blockIO(h.Resources)
	return r, err
}

// blockIO are the limits of block devices; nil for none.
func blockIO(r container.Resources) (*specs.LinuxBlockIO, error) {
	var io specs.LinuxBlockIO
	if r.BlkioWeight != 0 {
		io.Weight = &r.BlkioWeight
	}
	for _, d := range r.BlkioWeightDevice {
		w := specs.LinuxWeightDevice{Weight: &d.Weight}
		var err error
		if w.Major, w.Minor, err = blockDevice(d.Path); err != nil {
			return nil, err
		}
		io.WeightDevice = append(io.WeightDevice, w)
	}
	for _, list := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &io.ThrottleReadBpsDevice}, {r.BlkioDeviceWriteBps, &io.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &io.ThrottleReadIOPSDevice}, {r.BlkioDeviceWriteIOps, &io.ThrottleWriteIOPSDevice},
	} {
		for _, d := range list.from {
			t := specs.LinuxThrottleDevice{Rate: d.Rate}
			var err error
			if t.Major, t.Minor, err = blockDevice(d.Path); err != nil {
				return nil, err
			}
			*list.to = append(*list.to, t)
		}
	}
	if reflect.ValueOf(io).IsZero() {
		return nil, nil
	}
	return &io, nil
}

func blockDevice(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fault.New(fault.Invalid, "device %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, fault.New(fault.Invalid, "device %s: not a block device", path)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// resources translates a container's limits.
func (p *plan) resources(h container.HostConfig) error {
	if err := checkResources(h); err != nil {
		return err
	}
	p.warnings = append(p.warnings, discard(&h)...)
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	p.settings.HostConfig.Resources = h.Resources // as inspect shows them
	var err error
	if p.container.Resources, err = limits(h); err != nil {
		return err
	}
	for _, u := range h.Ulimits {
		if u == nil || !slices.Contains(ulimits, u.Name) || u.Soft < -1 || u.Hard < -1 || u.Hard >= 0 && (u.Soft > u.Hard || u.Soft < 0) {
			return fault.New(fault.Invalid, "--ulimit %v: write NAME=SOFT:HARD with a name of setrlimit(2), -1 for no limit", u)
		}
		p.container.Rlimits = append(p.container.Rlimits,
			engine.Rlimit{Type: strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return nil
}

// containerRename gives a container another name.
func (s *Server) containerRename(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(param(r, "name"), "/")
	switch name {
	case "":
		return fault.New(fault.Invalid, "Neither old nor new names may be empty")
	case c.Spec.Name:
		return fault.New(fault.Invalid, "Renaming a container with the same name as its current name")
	}
	name, release, err := s.reserve(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	if err := s.opt.Engine.AmendContainer(ctx, c.ID, name, c.Spec.Extra); err != nil {
		return err
	}
	old := c.Spec.Name
	c.Spec.Name = name
	if err := s.opt.Engine.Rename(context.WithoutCancel(ctx), c.PodID, old, name); err != nil {
		return err
	}
	s.publishOf(c, events.ActionRename, "oldName", "/"+old)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// updatable are the limits that can be changed; of the others a request may
// have only zeros.
var updatable = []string{"BlkioWeight", "CPUShares", "Memory", "NanoCPUs", "CPUPeriod", "CPUQuota", "CpusetCpus", "CpusetMems",
	"MemoryReservation", "MemorySwap", "PidsLimit"}

// containerUpdate changes limits and the restart policy of a container, at once
// if it runs.
func (s *Server) containerUpdate(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var req container.UpdateConfig
	if err := readJSON(r, &req); err != nil {
		return err
	}
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	set := settingsOf(c)
	if err := update(&set.HostConfig, req); err != nil {
		return err
	}
	warnings := discard(&set.HostConfig)
	wanted, err := limits(set.HostConfig)
	if err != nil {
		return err
	}
	if req.PidsLimit == nil { // it may be the daemon's own, which the container was not asked for
		wanted.Pids = c.Spec.Resources.Pids
	}
	wanted.HugePages, wanted.Unified = c.Spec.Resources.HugePages, c.Spec.Resources.Unified
	extra, err := json.Marshal(set)
	if err != nil {
		return fmt.Errorf("update %s: %w", c.Spec.Name, err)
	}
	ctx = context.WithoutCancel(ctx)
	if err := s.opt.Engine.UpdateContainer(ctx, c.ID, wanted); err != nil {
		return err
	}
	if err := s.opt.Engine.AmendContainer(ctx, c.ID, c.Spec.Name, extra); err != nil {
		return err
	}
	s.publishOf(c, events.ActionUpdate)
	return writeJSON(w, http.StatusOK, container.UpdateResponse{Warnings: notNil(warnings)})
}

// update takes what req asks for over into h, as Docker does: what is zero stays.
func update(h *container.HostConfig, req container.UpdateConfig) error {
	from, to := reflect.ValueOf(req.Resources), reflect.ValueOf(&h.Resources).Elem()
	var refused []string
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		switch {
		case empty(from.Field(i)):
		case slices.Contains(updatable, name):
			to.Field(i).Set(from.Field(i))
		default:
			refused = append(refused, name)
		}
	}
	if err := refusal(refused); err != nil {
		return err
	}
	switch {
	case req.NanoCPUs > 0 && (h.CPUPeriod != 0 || h.CPUQuota != 0):
		return fault.New(fault.Invalid, "Conflicting options: Nano CPUs cannot be updated as CPU Period or Quota has already been set")
	case req.CPUPeriod+req.CPUQuota != 0 && h.NanoCPUs != 0:
		return fault.New(fault.Invalid, "Conflicting options: CPU Period and Quota cannot be updated as NanoCPUs has already been set")
	case req.Memory > 0 && req.MemorySwap == 0 && h.MemorySwap > 0 && req.Memory > h.MemorySwap:
		return fault.New(fault.Invalid, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	if req.RestartPolicy.Name != "" {
		h.RestartPolicy = req.RestartPolicy
	}
	return cmp.Or(checkResources(*h), checkPolicy(*h))
}

var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// parseDeviceRule reads a rule of the devices cgroup: "c 42:* rmw".
func parseDeviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	m := deviceRule.FindStringSubmatch(s)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, fault.New(fault.Invalid, "invalid device cgroup rule format: '%s'", s).Hint("write TYPE MAJOR:MINOR ACCESS, as c 42:* rmw")
	}
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	for i, number := range []**int64{&rule.Major, &rule.Minor} {
		if m[2+i] == "*" {
			continue
		}
		n, err := strconv.ParseInt(m[2+i], 10, 32)
		if err != nil {
			return rule, fault.New(fault.Invalid, "invalid device cgroup rule format: '%s': %w", s, err)
		}
		*number = &n
	}
	return rule, nil
}

// cdiNames are the CDI names of the devices that a request asks for: its own,
// or those of the vendor's who has described the machine's GPUs.
func cdiNames(r container.DeviceRequest) ([]string, error) {
	if r.Driver == "cdi" {
		return r.DeviceIDs, nil
	}
	gpu := slices.ContainsFunc(r.Capabilities, func(all []string) bool { return slices.Contains(all, "gpu") })
	if r.Driver != "" && r.Driver != "nvidia" || !gpu {
		return nil, fault.New(fault.Invalid, "could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities).
			Hint("devices are given through CDI: --device VENDOR/CLASS=NAME, or --gpus")
	}
	ids := slices.Clone(r.DeviceIDs)
	for n := range max(r.Count, 0) {
		ids = append(ids, strconv.Itoa(n))
	}
	if r.Count < 0 {
		ids = []string{"all"}
	}
	for i, id := range ids {
		ids[i] = "nvidia.com/gpu=" + id
	}
	return ids, nil
}
