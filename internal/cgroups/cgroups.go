// Package cgroups tells what the machine's control groups can do. Any package
// may import it; it imports nothing of Ferry.
package cgroups

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// root is where the hierarchies are mounted.
const root = "/sys/fs/cgroup"

// needed are the controllers without which limits mean nothing and, where the
// hierarchies are separate, those without which the kubelet does not start.
func needed(unified bool) []string {
	names := []string{"cpu", "memory", "pids", "devices", "freezer"}
	if !unified {
		names = append(names, "cpuset", "cpuacct")
	}
	return names
}

// Unified reports whether the machine has cgroup v2 alone.
func Unified() bool { return mounted(root, unix.CGROUP2_SUPER_MAGIC) }

func mounted(dir string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == magic
}

// Has reports whether a controller can be used.
func Has(name string) bool {
	if !Unified() {
		return mounted(filepath.Join(root, name), unix.CGROUP_SUPER_MAGIC)
	}
	if name == "devices" || name == "freezer" { // part of v2 itself
		return true
	}
	data, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(data)), name)
}

// Missing lists the controllers that Ferry needs and that cannot be used.
func Missing() []string {
	var missing []string
	for _, name := range needed(Unified()) {
		if !Has(name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// Version is "v2", or "v1" for separate hierarchies, hybrid or not.
func Version() string {
	if Unified() {
		return "v2"
	}
	return "v1"
}

// Remedy is what to do where controllers are missing.
const Remedy = "mount the controllers below /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1"
