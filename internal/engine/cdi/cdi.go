// Package cdi gives containers devices by name, as the Container Device
// Interface has it (tags.cncf.io): a vendor's file below /etc/cdi or
// /var/run/cdi says what a container needs of the device example.com/gpu=0,
// nodes, mounts, variables and hooks.
//
// Only internal/engine imports it, and it alone the interface's library. The
// files are read at each start of a container that asks for such a device, and
// at no other time.
package cdi

import (
	"errors"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/ferryos/ferry/internal/fault"
)

// DefaultDirs are where the files are if nothing else is said; a later
// directory goes before an earlier.
var DefaultDirs = cdi.DefaultSpecDirs

// IsName reports whether s has the form VENDOR/CLASS=NAME.
func IsName(s string) bool { return parser.IsQualifiedName(s) }

// Inject changes the spec of a container so that it has the named devices.
func Inject(spec *specs.Spec, dirs, names []string) error {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fault.New(fault.Invalid, "CDI devices: %w", err)
	}
	missing, err := cache.InjectDevices(spec, names...)
	if err == nil {
		return nil
	}
	if len(missing) == 0 {
		return fault.New(fault.Invalid, "CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	known := cache.ListDevices()
	what := fault.New(fault.Invalid, "CDI device injection failed: unresolvable CDI devices %s", strings.Join(missing, ", "))
	if broken := cache.GetErrors(); len(broken) > 0 {
		for _, path := range slices.Sorted(maps.Keys(broken)) {
			what = fault.New(fault.Invalid, "%w; %s: %w", what, path, errors.Join(broken[path]...))
		}
	}
	if len(known) == 0 {
		return fault.New(fault.Invalid, "%w", what).Hint("no device is described in %s", strings.Join(dirs, " or "))
	}
	return fault.New(fault.Invalid, "%w", what).Hint("devices are %s", strings.Join(known, ", "))
}
