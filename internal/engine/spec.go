package engine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// specInput is everything a container's OCI runtime spec is computed from.
type specInput struct {
	container ContainerSpec
	id        string
	hostname  string
	image     imageConfig
	argv      []string
	user      resolvedUser
	rootfs    string // mounted
	cgroup    string // absolute cgroup path of the container
	shm       string // host path of the pod's /dev/shm
	mounts    []specs.Mount
	ns        namespaces
	sysctls   map[string]string
	hostIPC   bool
	heldCaps  []string // what this process may pass on
	minOOMAdj int      // the lowest oom_score_adj this process may set
	cgroupV2  bool
	apparmor  string // profile
}

// imageConfig is what an image says of the containers made from it.
type imageConfig struct {
	User, WorkingDir, StopSignal string
	Env, Entrypoint, Cmd         []string
}

// namespaces are paths of existing namespaces to join; "" makes a new one,
// "host" stays in the host's. The user namespace is the host's if it is "".
type namespaces struct {
	user, network, ipc, uts, pid string
}

const hostNamespace = "host"

// buildSpec computes the OCI runtime spec (opencontainers/runtime-spec 1.3) of
// a container. It reads nothing but device numbers from the machine.
func buildSpec(in specInput) (*specs.Spec, error) {
	c := in.container
	caps, err := effectiveCaps(c.Security, in.heldCaps)
	if err != nil {
		return nil, err
	}
	resources, err := linuxResources(c.Resources, c.Security.Privileged, c.Devices)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: in.rootfs, Readonly: c.Security.ReadonlyRootfs},
		Process: in.process(caps),
		Mounts:  append(baseMounts(c.Security.Privileged, in.hostIPC, in.shm), in.mounts...),
		Linux: &specs.Linux{
			CgroupsPath:       in.cgroup,
			Namespaces:        in.namespaceList(),
			Resources:         resources,
			RootfsPropagation: rootPropagation(in.mounts),
			Sysctl:            in.sysctls,
		},
	}
	s.Domainname = c.Domainname
	if c.NoShm {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" && m.Source == in.shm })
	}
	resources.Devices = append(resources.Devices, c.DeviceRules...)
	// The last mount on a destination wins, as a volume over /dev/shm must.
	s.Mounts = dedupeMounts(s.Mounts)
	if s.Linux.Devices, err = deviceNodes(c); err != nil {
		return nil, err
	}
	if c.Security.Privileged {
		return s, nil
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = defaultMaskedPaths, defaultReadonlyPaths
	if c.Security.MaskedPaths != nil {
		s.Linux.MaskedPaths = c.Security.MaskedPaths
	}
	if c.Security.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = c.Security.ReadonlyPaths
	}
	s.Linux.Seccomp, err = seccompFilter(c.Security, s)
	return s, err
}

func (in specInput) process(caps []string) *specs.Process {
	c := in.container
	base := []string{defaultPath}
	if in.hostname != "" {
		base = append(base, "HOSTNAME="+in.hostname)
	}
	if c.TTY {
		base = append(base, "TERM=xterm")
	}
	env := mergeEnv(mergeEnv(base, in.image.Env), c.Env)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		env = append(env, "HOME="+in.user.home)
	}
	cwd := c.WorkingDir
	if cwd == "" {
		cwd = in.image.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	var size *specs.Box
	if c.TTY && c.ConsoleSize != [2]uint{} {
		size = &specs.Box{Width: c.ConsoleSize[0], Height: c.ConsoleSize[1]}
	}
	return &specs.Process{
		Terminal: c.TTY, ConsoleSize: size,
		User: specs.User{UID: in.user.uid, GID: in.user.gid, AdditionalGids: in.user.groups},
		Args: in.argv,
		Env:  env,
		Cwd:  filepath.Clean("/" + cwd),
		Capabilities: &specs.LinuxCapabilities{
			Bounding: caps, Effective: caps, Permitted: caps,
		},
		Rlimits:         rlimits(c.Rlimits),
		NoNewPrivileges: c.Security.NoNewPrivileges,
		ApparmorProfile: in.apparmor,
		OOMScoreAdj:     clampOOMAdj(c.Resources.OOMScoreAdj, in.minOOMAdj),
	}
}

// clampOOMAdj is 0 where no adjustment is asked for: none set would be this
// process's own, and the kubelet makes the daemon all but immune. One that may
// not be set (the process lacks CAP_SYS_RESOURCE, as in a container) is raised
// to the lowest that may: a pod that is a little likelier to be killed is
// better than one that cannot start.
func clampOOMAdj(adj *int, lowest int) *int {
	asked := 0
	if adj != nil {
		asked = *adj
	}
	asked = max(asked, lowest)
	return &asked
}

func (in specInput) namespaceList() []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if in.ns.user != "" {
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace, Path: in.ns.user})
	}
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		path string
	}{
		{specs.NetworkNamespace, in.ns.network}, {specs.IPCNamespace, in.ns.ipc},
		{specs.UTSNamespace, in.ns.uts}, {specs.PIDNamespace, in.ns.pid},
	} {
		if n.path != hostNamespace {
			list = append(list, specs.LinuxNamespace{Type: n.kind, Path: n.path})
		}
	}
	// Docker gives a container its own view of cgroups on v2 only, unless
	// something else is asked for.
	own := in.cgroupV2
	if mode := in.container.CgroupNS; mode != ModePod {
		own = mode == ModeContainer
	}
	if own {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return list
}

// dedupeMounts keeps the last mount of each destination, at the place of the
// last, so that a parent given late does not hide children given earlier.
func dedupeMounts(in []specs.Mount) []specs.Mount {
	last := make(map[string]int, len(in))
	for i, m := range in {
		last[filepath.Clean(m.Destination)] = i
	}
	var out []specs.Mount
	for i, m := range in {
		if last[filepath.Clean(m.Destination)] == i {
			out = append(out, m)
		}
	}
	return out
}

// rootPropagation is what the container's root needs for its volumes'
// propagation to work, as in containerd.
func rootPropagation(mounts []specs.Mount) string {
	prop := "rprivate"
	for _, m := range mounts {
		switch {
		case slices.Contains(m.Options, "rshared"):
			return "rshared"
		case slices.Contains(m.Options, "rslave"):
			prop = "rslave"
		}
	}
	return prop
}

func linuxResources(r Resources, privileged bool, devices []Device) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Unified: r.Unified}
	out.Devices = []specs.LinuxDeviceCgroup{{Allow: privileged, Access: "rwm"}}
	if !privileged {
		for _, d := range devices {
			node, err := hostDevice(d.HostPath, d.ContainerPath)
			if err != nil {
				return nil, err
			}
			out.Devices = append(out.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: node.Type, Major: &node.Major, Minor: &node.Minor, Access: d.Permissions})
		}
	}
	out.Memory, out.BlockIO = linuxMemory(r), r.BlockIO
	if r.CPUShares != 0 || r.CPUQuota != 0 || r.CPUPeriod != 0 || r.CpusetCPUs != "" || r.CpusetMems != "" {
		out.CPU = &specs.LinuxCPU{Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
		if r.CPUShares != 0 {
			shares := uint64(r.CPUShares)
			out.CPU.Shares = &shares
		}
		if r.CPUQuota != 0 {
			out.CPU.Quota = &r.CPUQuota
		}
		if r.CPUPeriod != 0 {
			period := uint64(r.CPUPeriod)
			out.CPU.Period = &period
		}
	}
	if r.Pids > 0 {
		out.Pids = &specs.LinuxPids{Limit: &r.Pids}
	}
	for size, limit := range r.HugePages {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	return out, nil
}

func linuxMemory(r Resources) *specs.LinuxMemory {
	var m specs.LinuxMemory
	if r.Memory > 0 {
		m.Limit = &r.Memory
		if r.MemorySwap != 0 {
			m.Swap = &r.MemorySwap
		}
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	m.Swappiness = r.MemorySwappiness
	if r.OOMKillDisable {
		m.DisableOOMKiller = &r.OOMKillDisable
	}
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
}

// deviceNodes lists the nodes to make in /dev beside the standard ones: those
// asked for, or all of the host's for a privileged container.
func deviceNodes(c ContainerSpec) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	if c.Security.Privileged {
		var err error
		if out, err = hostDevices("/dev"); err != nil {
			return nil, err
		}
	}
	for _, d := range c.Devices {
		node, err := hostDevice(d.HostPath, d.ContainerPath)
		if err != nil {
			return nil, err
		}
		out = slices.DeleteFunc(out, func(o specs.LinuxDevice) bool { return o.Path == node.Path })
		out = append(out, node)
	}
	return out, nil
}

func hostDevice(path, inside string) (specs.LinuxDevice, error) {
	if inside == "" {
		inside = path
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return specs.LinuxDevice{}, fault.New(fault.Invalid, "device %s: %w", path, err).
			Hint("name a device node of this machine")
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, fault.New(fault.Invalid, "device %s: not a device node", path).
			Hint("name a device node of this machine")
	}
	mode := modeOf(st.Mode)
	return specs.LinuxDevice{
		Path: inside, Type: kind, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
	}, nil
}

// seccompFilter computes the filter for the spec's capabilities and architecture.
func seccompFilter(sec Security, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	switch sec.Seccomp {
	case SeccompUnconfined:
		return nil, nil
	case SeccompLocalhost:
		f, err := seccomp.LoadProfile(string(sec.SeccompProfile), s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "seccomp profile: %w", err).Hint("give a profile in Docker's JSON format")
		}
		return f, nil
	case SeccompDefault:
		f, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("default seccomp profile: %w", err)
		}
		return f, nil
	}
	return nil, fault.New(fault.Invalid, "seccomp kind %q is not known", sec.Seccomp).Hint("use the default, unconfined or localhost")
}
