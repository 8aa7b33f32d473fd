package cgroup

import (
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestLimitsOf: the limits of v1 and, where those differ, of v2 beside them.
func TestLimitsOf(t *testing.T) {
	idle, swappiness, burst := ptr(int64(1)), ptr(uint64(7)), ptr(uint64(5000))
	for name, tt := range map[string]struct {
		spec *specs.LinuxResources
		want cgroups.Resources // but for the standard devices
	}{
		"none":  {nil, cgroups.Resources{}},
		"empty": {&specs.LinuxResources{}, cgroups.Resources{}},
		"memory": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(3)), Swap: ptr(int64(-1)), Reservation: ptr(int64(2)),
			Swappiness: swappiness, DisableOOMKiller: ptr(true), CheckBeforeUpdate: ptr(true)}},
			cgroups.Resources{Memory: 3, MemorySwap: -1, MemoryReservation: 2, MemorySwappiness: swappiness, OomKillDisable: true,
				MemoryCheckBeforeUpdate: true}},
		"processor": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(9)), Burst: burst, Idle: idle,
			RealtimeRuntime: ptr(int64(4)), RealtimePeriod: ptr(uint64(8)), Cpus: "0-1", Mems: "0"}},
			cgroups.Resources{CpuQuota: -1, CpuPeriod: 9, CpuBurst: burst, CPUIdle: idle, CpuRtRuntime: 4, CpuRtPeriod: 8,
				CpusetCpus: "0-1", CpusetMems: "0"}},
		"fewest shares":   {shares(2), cgroups.Resources{CpuShares: 2, CpuWeight: 1}},
		"usual shares":    {shares(1024), cgroups.Resources{CpuShares: 1024, CpuWeight: 100}},
		"most shares":     {shares(262144), cgroups.Resources{CpuShares: 262144, CpuWeight: 10000}},
		"no shares given": {shares(0), cgroups.Resources{}},
		"processes":       {&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, cgroups.Resources{PidsLimit: ptr(int64(-1))}},
		"disks": {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(300)), LeafWeight: ptr(uint16(20)),
			WeightDevice:           []specs.LinuxWeightDevice{weightOf(8, 0, 500)},
			ThrottleReadBpsDevice:  []specs.LinuxThrottleDevice{rateOf(8, 1, 100)},
			ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{rateOf(8, 2, 200)}, ThrottleReadIOPSDevice: []specs.LinuxThrottleDevice{rateOf(8, 3, 300)},
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{rateOf(8, 4, 400)}}},
			cgroups.Resources{BlkioWeight: 300, BlkioLeafWeight: 20,
				BlkioWeightDevice:            []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 500, 0)},
				BlkioThrottleReadBpsDevice:   []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 1, 100)},
				BlkioThrottleWriteBpsDevice:  []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 2, 200)},
				BlkioThrottleReadIOPSDevice:  []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 3, 300)},
				BlkioThrottleWriteIOPSDevice: []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 4, 400)}}},
		"huge pages": {&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}},
			cgroups.Resources{HugetlbLimit: []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}},
		"files of v2": {&specs.LinuxResources{Unified: map[string]string{"memory.high": "9"}},
			cgroups.Resources{Unified: map[string]string{"memory.high": "9"}}},
		"devices": {&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"},
			{Allow: true, Type: "b", Major: ptr(int64(8)), Access: "r"}}},
			cgroups.Resources{Devices: []*devices.Rule{
				{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm"},
				{Type: devices.BlockDevice, Major: 8, Minor: devices.Wildcard, Permissions: "r", Allow: true}}}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.want.Devices = append(tt.want.Devices, standardRules...)
			if got := limitsOf(tt.spec); !reflect.DeepEqual(*got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", *got, tt.want)
			}
		})
	}
}

func shares(n uint64) *specs.LinuxResources {
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &n}}
}

func weightOf(major, minor int64, weight uint16) specs.LinuxWeightDevice {
	d := specs.LinuxWeightDevice{Weight: &weight}
	d.Major, d.Minor = major, minor
	return d
}

func rateOf(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return d
}

// TestChange: what is not given stays.
func TestChange(t *testing.T) {
	limits := cgroups.Resources{Memory: 1, CpuShares: 2, CpuWeight: 3, CpusetCpus: "0", PidsLimit: ptr(int64(5)), BlkioWeight: 6}
	want := limits
	want.Memory, want.CpuShares, want.CpuWeight = 7, 1024, 100
	change(&limits, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(7))}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}})
	if !reflect.DeepEqual(limits, want) {
		t.Errorf("got  %+v\nwant %+v", limits, want)
	}
}
