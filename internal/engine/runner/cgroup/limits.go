package cgroup

import (
	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// standardRules are the devices that every container may use, whatever its spec
// says, as with runc: making any node, the nodes that each has, terminals, and
// tun, which VPN clients make for themselves.
var standardRules = []*devices.Rule{
	allow(devices.CharDevice, devices.Wildcard, devices.Wildcard, "m"),
	allow(devices.BlockDevice, devices.Wildcard, devices.Wildcard, "m"),
	allow(devices.CharDevice, 1, 3, "rwm"),                  // null
	allow(devices.CharDevice, 1, 5, "rwm"),                  // zero
	allow(devices.CharDevice, 1, 7, "rwm"),                  // full
	allow(devices.CharDevice, 1, 8, "rwm"),                  // random
	allow(devices.CharDevice, 1, 9, "rwm"),                  // urandom
	allow(devices.CharDevice, 5, 0, "rwm"),                  // tty
	allow(devices.CharDevice, 5, 2, "rwm"),                  // ptmx
	allow(devices.CharDevice, 136, devices.Wildcard, "rwm"), // pts
	allow(devices.CharDevice, 10, 200, "rwm"),               // net/tun
}

func allow(kind devices.Type, major, minor int64, access devices.Permissions) *devices.Rule {
	return &devices.Rule{Type: kind, Major: major, Minor: minor, Permissions: access, Allow: true}
}

// limitsOf are the limits of a new group.
func limitsOf(r *specs.LinuxResources) *cgroups.Resources {
	limits := &cgroups.Resources{}
	if r != nil {
		for _, d := range r.Devices {
			limits.Devices = append(limits.Devices, ruleOf(d))
		}
		change(limits, *r)
		for _, h := range r.HugepageLimits {
			limits.HugetlbLimit = append(limits.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
		}
	}
	limits.Devices = append(limits.Devices, standardRules...)
	return limits
}

func ruleOf(d specs.LinuxDeviceCgroup) *devices.Rule {
	rule := &devices.Rule{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard,
		Permissions: devices.Permissions(d.Access), Allow: d.Allow}
	if d.Type != "" {
		rule.Type = devices.Type(d.Type[0])
	}
	set(&rule.Major, d.Major)
	set(&rule.Minor, d.Minor)
	return rule
}

// change sets the limits that are given.
func change(limits *cgroups.Resources, r specs.LinuxResources) {
	if m := r.Memory; m != nil {
		set(&limits.Memory, m.Limit)
		set(&limits.MemorySwap, m.Swap)
		set(&limits.MemoryReservation, m.Reservation)
		set(&limits.OomKillDisable, m.DisableOOMKiller)
		set(&limits.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
		if m.Swappiness != nil {
			limits.MemorySwappiness = m.Swappiness
		}
	}
	if c := r.CPU; c != nil {
		set(&limits.CpuShares, c.Shares)
		set(&limits.CpuQuota, c.Quota)
		set(&limits.CpuPeriod, c.Period)
		set(&limits.CpuRtRuntime, c.RealtimeRuntime)
		set(&limits.CpuRtPeriod, c.RealtimePeriod)
		if c.Shares != nil {
			limits.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		if c.Burst != nil {
			limits.CpuBurst = c.Burst
		}
		if c.Idle != nil {
			limits.CPUIdle = c.Idle
		}
		if c.Cpus != "" {
			limits.CpusetCpus = c.Cpus
		}
		if c.Mems != "" {
			limits.CpusetMems = c.Mems
		}
	}
	if b := r.BlockIO; b != nil {
		changeIO(limits, b)
	}
	if r.Pids != nil {
		limits.PidsLimit = r.Pids.Limit
	}
	if len(r.Unified) > 0 {
		limits.Unified = r.Unified
	}
}

func changeIO(limits *cgroups.Resources, b *specs.LinuxBlockIO) {
	set(&limits.BlkioWeight, b.Weight)
	set(&limits.BlkioLeafWeight, b.LeafWeight)
	if len(b.WeightDevice) > 0 {
		limits.BlkioWeightDevice = nil
	}
	for _, w := range b.WeightDevice {
		var weight, leaf uint16
		set(&weight, w.Weight)
		set(&leaf, w.LeafWeight)
		limits.BlkioWeightDevice = append(limits.BlkioWeightDevice, cgroups.NewWeightDevice(w.Major, w.Minor, weight, leaf))
	}
	for _, t := range []struct {
		from []specs.LinuxThrottleDevice
		to   *[]*cgroups.ThrottleDevice
	}{
		{b.ThrottleReadBpsDevice, &limits.BlkioThrottleReadBpsDevice}, {b.ThrottleWriteBpsDevice, &limits.BlkioThrottleWriteBpsDevice},
		{b.ThrottleReadIOPSDevice, &limits.BlkioThrottleReadIOPSDevice}, {b.ThrottleWriteIOPSDevice, &limits.BlkioThrottleWriteIOPSDevice},
	} {
		if len(t.from) > 0 {
			*t.to = nil
		}
		for _, d := range t.from {
			*t.to = append(*t.to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
	}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}
