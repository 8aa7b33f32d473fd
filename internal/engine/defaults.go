package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// What a container may do and see unless it asks for less or more: Docker's
// defaults (moby daemon/pkg/oci/defaults.go and caps).

// defaultCaps is Docker's default capability set.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

var defaultMaskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

var defaultReadonlyPaths = []string{
	"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
}

// defaultPath is what PATH is where neither the image nor the caller sets it.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// effectiveCaps applies "ALL" and single names to the default set: first what
// is added, then what is dropped, except that a name added beside a drop of ALL stays.
func effectiveCaps(sec Security, held []string) ([]string, error) {
	if sec.Privileged {
		return held, nil
	}
	add, addAll, err := normalizeCaps(sec.AddCaps)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := normalizeCaps(sec.DropCaps)
	if err != nil {
		return nil, err
	}
	base := defaultCaps
	switch {
	case addAll:
		base = held
	case dropAll:
		base = nil
	}
	var out []string
	for _, c := range runner.Capabilities {
		inBase := slices.Contains(base, c) && slices.Contains(held, c) && !slices.Contains(drop, c)
		if inBase || (slices.Contains(add, c) && !slices.Contains(drop, c)) {
			out = append(out, c)
		}
	}
	return out, nil
}

func normalizeCaps(in []string) (names []string, all bool, err error) {
	for _, c := range in {
		c = strings.ToUpper(c)
		if c == "ALL" || c == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(runner.Capabilities, c) {
			return nil, false, fault.New(fault.Invalid, "unknown capability %q", c).
				Hint("use a name of capabilities(7), with or without CAP_")
		}
		names = append(names, c)
	}
	return names, all, nil
}

// baseMounts are the file systems every container has. Host IPC shares the
// host's /dev/shm; shm is otherwise the pod's. A new mount of mqueue shows the
// queues of the container's IPC namespace, so the host's where it has that; the
// host need not have it mounted itself.
func baseMounts(privileged, hostIPC bool, shm string) []specs.Mount {
	sys := "ro"
	if privileged {
		sys = "rw"
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sys}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sys}},
	}
	if hostIPC {
		shm = "/dev/shm"
	}
	return append(mounts,
		specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		specs.Mount{Destination: "/dev/shm", Type: "bind", Source: shm, Options: []string{"bind", "nosuid", "noexec", "nodev"}})
}

// mergeEnv lays over on top of base by variable name, keeping base's order. A
// name without "=" takes the variable away, as Docker has it.
func mergeEnv(base, over []string) []string {
	out := slices.Clone(base)
	for _, kv := range over {
		name, _, set := strings.Cut(kv, "=")
		at := slices.IndexFunc(out, func(have string) bool {
			k, _, _ := strings.Cut(have, "=")
			return k == name
		})
		switch {
		case at >= 0 && set:
			out[at] = kv
		case at >= 0:
			out = slices.Delete(out, at, at+1)
		case set:
			out = append(out, kv)
		}
	}
	return out
}

// mergeCommand is Kubernetes' rule, which is Docker's too: a given command
// drops the image's cmd; given args replace it.
func mergeCommand(entrypoint, cmd, command, args []string) ([]string, error) {
	argv := slices.Clone(command)
	if len(command) == 0 {
		argv = slices.Clone(entrypoint)
		if len(args) == 0 {
			argv = append(argv, cmd...)
		}
	}
	argv = append(argv, args...)
	if len(argv) == 0 { // a program without a name is one that is not found, at the start
		return nil, fault.New(fault.Invalid, "no command: the image names none and none was given").
			Hint("name a command after the image, or set ENTRYPOINT or CMD in its Dockerfile")
	}
	return argv, nil
}

func rlimits(in []Rlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, r := range in {
		out = append(out, specs.POSIXRlimit{
			Type: fmt.Sprintf("RLIMIT_%s", strings.TrimPrefix(strings.ToUpper(r.Type), "RLIMIT_")), Soft: r.Soft, Hard: r.Hard})
	}
	return out
}
