package main

// The two ways a machine is booted: with guest/boot itself as its init, and
// with systemd, which starts guest/boot as a service.
const (
	bootPlain   = "plain"
	bootSystemd = "systemd"
)

var allBoots = []string{bootPlain, bootSystemd}

// suite is one package's tests.
type suite struct {
	name string
	pkg  string // relative to the module
	// tests are those that run on each boot, as for go test -run; with -all, all
	// run on both.
	tests map[string]string
}

// suites are those where the kind of cgroups, systemd or the kernel can matter.
// The packages that link Kubernetes in are tested through the programs, in e2e.
var suites = []suite{
	{"cgroups", "internal/cgroups", map[string]string{bootPlain: ".", bootSystemd: "."}},
	{"runner", "internal/engine/runner", map[string]string{bootPlain: ".", bootSystemd: "."}},
	{"cgroup", "internal/engine/runner/cgroup", map[string]string{bootPlain: "."}},
	{"launch", "internal/engine/runner/launch", map[string]string{bootPlain: "."}},
	{"store", "internal/engine/store", map[string]string{bootPlain: "."}},
	{"network", "internal/engine/network", map[string]string{bootPlain: "."}},
	{"engine", "internal/engine", map[string]string{bootPlain: ".", bootSystemd: "."}},
	{"cri", "internal/engine/cri", map[string]string{bootPlain: "TestCritest$"}},
	{"dockerapi", "internal/dockerapi", nil},
	{"e2e", "test/e2e", map[string]string{bootPlain: "Scripts/(docker|crash|up-down|cgroup2|apparmor)$", bootSystemd: "Scripts/(systemd|pods|build|cgroup2)$"}},
}

// job is a suite on one boot.
type job struct {
	suite
	run string // as for go test -run
}

// jobs are what a boot runs of the suites whose names match.
func (o options) jobs(boot string) []job {
	var list []job
	for _, s := range suites {
		j := job{s, s.tests[boot]}
		if o.all {
			j.run = "."
		}
		if o.tests != "" {
			j.run = o.tests
		}
		if j.run != "" && o.run.MatchString(s.name) {
			list = append(list, j)
		}
	}
	return list
}
