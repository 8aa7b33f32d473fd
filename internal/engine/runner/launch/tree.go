package launch

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// tree is a container's file system while it is put together, by a thread
// in a mount namespace of its own. What needs the container's PID or
// cgroup namespace is left to the plan of its process.
type tree struct {
	root
	spec    *specs.Spec
	proc    *os.File // this machine's
	groups  []string // the container's directories in the hierarchies of cgroup v1, none on a machine with v2 alone
	users   *os.File // user namespace, nil for this machine's
	mounts  []mount
	sources map[int]int // open binds, by the mount's index
	nulls   []int       // copies of /dev/null to cover files with
	rest    []deferred
	pts     int // the mount of the terminals, -1 for none
	opened  []int
}

// deferred is a mount that the container's own process makes.
type deferred struct {
	mount
	source int // a bind's source, -1 for a new file system
}

// prepare opens what lies outside of the container, in this machine's mount
// namespace.
func (t *tree) prepare() error {
	for _, m := range t.spec.Mounts {
		parsed, err := parseMount(m)
		if err != nil {
			return err
		}
		if parsed.kind == "cgroup" && t.groups == nil {
			parsed.kind = "cgroup2"
		}
		parsed.ownedBy(t.ids)
		t.mounts = append(t.mounts, parsed)
	}
	t.sources = map[int]int{}
	for i := range t.mounts {
		m := &t.mounts[i]
		if m.kind != "bind" {
			continue
		}
		fd, err := m.bind(t.users)
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.source, m.destination, err)
		}
		t.opened = append(t.opened, fd)
		t.sources[i] = fd
	}
	fd, err := openTree(unix.AT_FDCWD, t.spec.Root.Path, true)
	if err != nil {
		return fmt.Errorf("container's root: %w", err)
	}
	t.root.fd = fd
	t.opened = append(t.opened, fd)
	if err := setAttributes(fd, true, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return fmt.Errorf("container's root: %w", err)
	}
	for range len(t.spec.Linux.MaskedPaths) {
		null, err := openTree(unix.AT_FDCWD, "/dev/null", false)
		if err != nil {
			return err
		}
		t.nulls = append(t.nulls, null)
		t.opened = append(t.opened, null)
	}
	return nil
}

// close lets go of the files that were opened on the way.
func (t *tree) close() {
	for _, fd := range t.opened {
		unix.Close(fd)
	}
}

// build makes the mounts, in a mount namespace that is private already. It needs
// the container's network, IPC and UTS namespaces.
func (t *tree) build() error {
	if err := unix.MoveMount(t.root.fd, "", unix.AT_FDCWD, t.spec.Root.Path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("container's root: move_mount: %w", err)
	}
	unix.Umask(0) // of this thread
	for i := range t.mounts {
		if err := t.mount(i); err != nil {
			m := &t.mounts[i]
			return fmt.Errorf("mount %s at %s: %w", m.what(), m.destination, err)
		}
	}
	if !t.bound("/dev") {
		if err := t.fillDev(); err != nil {
			return err
		}
	}
	return nil
}

// bound reports whether a directory is one of the machine's.
func (t *tree) bound(name string) bool {
	return slices.ContainsFunc(t.mounts, func(m mount) bool { return m.kind == "bind" && m.destination == name })
}

// finish makes read-only what is to be, and makes the tree the root of this
// thread; the machine's own tree is gone then.
func (t *tree) finish() error {
	for _, m := range t.mounts {
		if m.kind == "bind" || m.kind == "cgroup" || m.set&unix.MOUNT_ATTR_RDONLY == 0 || t.isDeferred(m.destination) {
			continue // the hierarchies of cgroups are read-only, and not the directory that they are in
		}
		if err := t.protect(m.destination); err != nil {
			return fmt.Errorf("make %s read-only: %w", m.destination, err)
		}
	}
	if err := t.cover(); err != nil {
		return err
	}
	if t.spec.Root.Readonly {
		if err := setAttributes(t.root.fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	if err := unix.Fchdir(t.root.fd); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	// The old root comes to lie on the new one; see pivot_root(2), its example with ".".
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return os.NewSyscallError("umount", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return os.NewSyscallError("chdir", err)
	}
	if t.spec.Linux.RootfsPropagation == "rshared" || t.spec.Linux.RootfsPropagation == "shared" {
		if err := setAttributes(t.root.fd, true, unix.MountAttr{Propagation: unix.MS_SHARED}); err != nil {
			return fmt.Errorf("share the root's mounts: %w", err)
		}
	}
	return nil
}

func (t *tree) isDeferred(destination string) bool {
	return slices.ContainsFunc(t.rest, func(d deferred) bool { return d.destination == destination })
}

// protect makes a mount read-only.
func (t *tree) protect(name string) error {
	fd, err := t.look(name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setAttributes(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// mount makes or defers the i-th mount.
func (t *tree) mount(i int) error {
	m := &t.mounts[i]
	source, bind := t.sources[i]
	switch {
	case isBelow(m.destination, "/proc"):
		return t.deferProc(m, source, bind)
	case m.destination == "/proc" && m.kind != "proc" && !(bind && isProc(source)):
		return fault.New(fault.Invalid, "it is not a proc file system").Hint("mount it elsewhere")
	case m.kind == "proc", (m.kind == "cgroup" || m.kind == "cgroup2") && t.ownCgroups():
		// Its process makes it; there must be a directory, and no link to one.
		t.rest = append(t.rest, deferred{*m, -1})
		return t.ordinary(m.destination)
	case m.kind == "cgroup":
		return t.cgroups(m)
	case m.kind == "sysfs":
		if err := t.ordinary(m.destination); err != nil {
			return err
		}
	}
	directory := true
	if bind {
		st, err := statOf(source)
		if err != nil {
			return err
		}
		directory = isDirectory(st)
	}
	onto, err := t.place(m.destination, directory)
	if err != nil {
		return err
	}
	defer unix.Close(onto)
	if !bind {
		if source, err = t.newFor(m, onto); err != nil {
			return err
		}
	}
	return attach(source, onto)
}

// newFor makes the file system of a mount. A tmpfs has the mode of what it covers.
func (t *tree) newFor(m *mount, onto int) (int, error) {
	if m.kind == "tmpfs" && !slices.ContainsFunc(m.data, func(o string) bool { return strings.HasPrefix(o, "mode=") }) {
		st, err := statOf(onto)
		if err != nil {
			return -1, err
		}
		m.data = append(m.data, fmt.Sprintf("mode=%o", st.Mode&0o7777))
	}
	fd, err := m.create()
	if err != nil {
		return -1, err
	}
	t.opened = append(t.opened, fd)
	if m.kind == "devpts" {
		t.pts = fd
	}
	return fd, nil
}

// ordinary makes a directory, unless it is there, and refuses one that is reached by a link.
func (t *tree) ordinary(name string) error {
	fd, err := t.directory(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	parent, err := t.look(path.Dir(name), 0)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(parent, path.Base(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !isDirectory(st) {
		return errors.New("it must be an ordinary directory")
	}
	return nil
}

// ownCgroups reports whether the container has a cgroup namespace.
func (t *tree) ownCgroups() bool {
	return slices.ContainsFunc(t.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}

func isBelow(name, dir string) bool { return strings.HasPrefix(name, dir+"/") }

// isProc reports whether a mount shows a proc file system.
func isProc(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// procFiles are the files of /proc that may be covered by others, as lxcfs does:
// what runc allows. Others could make a program believe what is not so, such as
// the one that reads /proc/self/attr.
var procFiles = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
	"/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}

// deferProc is for mounts below /proc, which is not there yet.
func (t *tree) deferProc(m *mount, source int, bind bool) error {
	if !bind || !slices.Contains(procFiles, m.destination) {
		return fault.New(fault.Invalid, "nothing can be mounted inside /proc but on %s", strings.Join(procFiles, ", "))
	}
	t.rest = append(t.rest, deferred{*m, source})
	return nil
}

// cgroups shows the container's own cgroup of v1: a directory with the one of each hierarchy.
func (t *tree) cgroups(m *mount) error {
	onto, err := t.place(m.destination, true)
	if err != nil {
		return err
	}
	defer unix.Close(onto)
	top := mount{kind: "tmpfs", set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, data: []string{"mode=755"}}
	top.ownedBy(t.ids)
	dir, err := top.create()
	if err != nil {
		return err
	}
	t.opened = append(t.opened, dir)
	if err := attach(dir, onto); err != nil {
		return err
	}
	for _, group := range t.groups {
		if err := t.hierarchy(dir, group, m.set); err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
	}
	return nil
}

// cgroupRoot is where the hierarchies are mounted.
const cgroupRoot = "/sys/fs/cgroup/"

// hierarchyOf is the name of the hierarchy that a group's directory is in.
func hierarchyOf(group string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(group, cgroupRoot), "/")
	return name
}

func (t *tree) hierarchy(dir int, group string, attributes uint64) error {
	name := hierarchyOf(group)
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	source, err := openTree(unix.AT_FDCWD, group, true)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	if err := setAttributes(source, false, unix.MountAttr{Attr_set: attributes, Attr_clr: unix.MOUNT_ATTR__ATIME, Propagation: unix.MS_PRIVATE}); err != nil {
		return err
	}
	if err := unix.MoveMount(source, "", dir, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	if !strings.Contains(name, ",") {
		return nil
	}
	for one := range strings.SplitSeq(name, ",") {
		if err := unix.Symlinkat(name, dir, one); err != nil && err != unix.EEXIST {
			return os.NewSyscallError("symlinkat", err)
		}
	}
	return nil
}

// cover hides the masked paths and protects the read-only ones, but for those
// in /proc.
func (t *tree) cover() error {
	for _, name := range t.spec.Linux.ReadonlyPaths {
		if isBelow(path.Clean(name), "/proc") {
			continue
		}
		if err := t.coverOne(name, func(fd int, _ bool) error {
			again, err := openTree(fd, "", true)
			if err != nil {
				return err
			}
			defer unix.Close(again)
			if err := setAttributes(again, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
				return err
			}
			return attach(again, fd)
		}); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	for i, name := range t.spec.Linux.MaskedPaths {
		if isBelow(path.Clean(name), "/proc") {
			continue
		}
		if err := t.coverOne(name, func(fd int, directory bool) error {
			lid := t.nulls[i]
			if directory {
				var err error
				if lid, err = t.emptyDir(); err != nil {
					return err
				}
			}
			return attach(lid, fd)
		}); err != nil {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	return nil
}

// coverOne calls f with what a path shows, unless there is no such path.
func (t *tree) coverOne(name string, f func(fd int, directory bool) error) error {
	fd, err := t.look(name, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	st, err := statOf(fd)
	if err != nil {
		return err
	}
	return f(fd, isDirectory(st))
}

// emptyDir is a directory that has nothing and cannot be written, to cover others with.
func (t *tree) emptyDir() (int, error) {
	m := mount{kind: "tmpfs", data: []string{"nr_blocks=1", "nr_inodes=1"}}
	fd, err := m.create()
	if err != nil {
		return -1, err
	}
	t.opened = append(t.opened, fd)
	return fd, setAttributes(fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
