package launch

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// planRest adds what of the tree is made by a process in the container's PID and
// cgroup namespaces: /proc, what lies in it, and perhaps the cgroups. Its root
// must be the container's.
func (t *tree) planRest(p *plan) {
	for i := range t.rest {
		d := &t.rest[i]
		switch {
		case d.source >= 0:
			p.move("mount "+d.mount.source+" at "+d.destination, file(d.source), d.destination)
		case d.kind == "cgroup":
			t.planHierarchies(p, d)
		default:
			p.mountNew(d.kind, d.data, d.set, d.destination)
		}
	}
	for _, name := range t.spec.Linux.ReadonlyPaths {
		if name = path.Clean(name); isBelow(name, "/proc") {
			p.readonly(name)
		}
	}
	for i, name := range t.spec.Linux.MaskedPaths {
		if name = path.Clean(name); isBelow(name, "/proc") {
			t.planMask(p, name, t.nulls[i])
		}
	}
}

// move attaches a mount.
func (p *plan) move(what string, mount any, onto string, opts ...any) {
	args := append([]any{mount, "", unix.AT_FDCWD, onto, unix.MOVE_MOUNT_F_EMPTY_PATH}, opts...)
	p.call(what, unix.SYS_MOVE_MOUNT, args...)
}

// mountNew mounts a new file system.
func (p *plan) mountNew(kind string, options []string, attributes uint64, onto string) {
	var fs, mount result
	what := "mount a " + kind + " at " + onto
	p.call(what, unix.SYS_FSOPEN, kind, unix.FSOPEN_CLOEXEC, keep(&fs))
	p.call(what, unix.SYS_FSCONFIG, fromResult(fs), unix.FSCONFIG_SET_STRING, "source", kind, 0)
	for _, o := range options {
		if name, value, given := strings.Cut(o, "="); given {
			p.call(what, unix.SYS_FSCONFIG, fromResult(fs), unix.FSCONFIG_SET_STRING, name, value, 0)
		} else {
			p.call(what, unix.SYS_FSCONFIG, fromResult(fs), unix.FSCONFIG_SET_FLAG, name, 0, 0)
		}
	}
	p.call(what, unix.SYS_FSCONFIG, fromResult(fs), unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	p.call(what, unix.SYS_FSMOUNT, fromResult(fs), unix.FSMOUNT_CLOEXEC, int(attributes), keep(&mount))
	p.move(what, fromResult(mount), onto)
	p.call(what, unix.SYS_CLOSE, fromResult(fs))
	p.call(what, unix.SYS_CLOSE, fromResult(mount))
	p.kept -= 2
}

// planHierarchies mounts the hierarchies of v1 as a cgroup namespace shows them.
func (t *tree) planHierarchies(p *plan, d *deferred) {
	p.mountNew("tmpfs", []string{"mode=755"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, d.destination)
	for _, group := range t.groups {
		name := hierarchyOf(group)
		dir := path.Join(d.destination, name)
		p.call("mkdir "+dir, unix.SYS_MKDIRAT, unix.AT_FDCWD, dir, 0o755)
		options := strings.Split(name, ",")
		if name == "systemd" {
			options = []string{"none", "name=systemd"}
		}
		p.mountNew("cgroup", options, d.set, dir)
		if len(options) > 1 && name != "systemd" {
			for _, one := range options {
				p.call("link "+one, unix.SYS_SYMLINKAT, name, unix.AT_FDCWD, path.Join(d.destination, one), ignoring(unix.EEXIST))
			}
		}
	}
}

// readonly makes what lies at a path read-only, if there is such a path.
func (p *plan) readonly(name string) {
	var tree result
	what := "make " + name + " read-only"
	p.call(what, unix.SYS_OPEN_TREE, unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE, keep(&tree), ignoring(unix.ENOENT))
	attr := bytesOf(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	p.call(what, unix.SYS_MOUNT_SETATTR, fromResult(tree), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr, len(attr), ifDone(tree))
	p.move(what, fromResult(tree), name, ifDone(tree))
	p.call(what, unix.SYS_CLOSE, fromResult(tree), ifDone(tree))
	p.kept--
}

// planMask covers a path below /proc, if there is such a path. What lies there
// is the same in every /proc, so that this machine's tells what it is. lid is to
// cover a file with.
func (t *tree) planMask(p *plan, name string, lid int) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(t.proc.Fd()), strings.TrimPrefix(name, "/proc/"), &st, 0); err == nil && isDirectory(st) {
		if lid, err = t.emptyDir(); err != nil {
			p.err = fmt.Errorf("mask %s: %w", name, err)
			return
		}
	}
	p.move("mask "+name, file(lid), name, ignoring(unix.ENOENT))
}
