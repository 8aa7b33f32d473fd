package main

import "regexp"

// The two ways a machine is booted: with guest/boot itself as its init, and
// with systemd, which starts guest/boot as a service.
const (
	bootPlain   = "plain"
	bootSystemd = "systemd"
)

var allBoots = []string{bootPlain, bootSystemd}

// suite is one package's tests, run on one machine.
type suite struct {
	name  string
	pkg   string   // relative to the module
	boots []string // where it runs
}

// suites are those where the kind of cgroups, systemd or the kernel can matter.
// The packages that link Kubernetes in are tested through the programs, in e2e.
var suites = []suite{
	{"cgroups", "internal/cgroups", allBoots},
	{"runner", "internal/engine/runner", allBoots},
	{"store", "internal/engine/store", []string{bootPlain}},
	{"network", "internal/engine/network", []string{bootPlain}},
	{"engine", "internal/engine", allBoots},
	{"cri", "internal/engine/cri", []string{bootPlain}},
	{"dockerapi", "internal/dockerapi", []string{bootPlain}},
	{"e2e", "test/e2e", allBoots},
}

// suitesOf are the suites of a boot whose names match.
func suitesOf(boot string, match *regexp.Regexp) []suite {
	var list []suite
	for _, s := range suites {
		for _, b := range s.boots {
			if b == boot && match.MatchString(s.name) {
				list = append(list, s)
			}
		}
	}
	return list
}
