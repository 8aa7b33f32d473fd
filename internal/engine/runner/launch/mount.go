package launch

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

// mount is a mount of an OCI spec with its options understood (runtime-spec
// config-linux.md and mount(8)).
type mount struct {
	destination string // clean
	kind        string // "bind", or a type of file system
	source      string
	recursive   bool // a bind with what is mounted below it
	idmap       bool // owners are those of the container's user namespace
	set, clear  uint64
	all         unix.MountAttr // attributes of the mount and of those below it
	propagation uint64         // MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE
	plain       bool           // a bind that keeps the attributes of its source
	data        []string       // options of the file system itself
}

// Attributes of mount_setattr(2) by the options of mount(8). The times of access
// are one field of several values.
var attributes = map[string]struct{ set, clear uint64 }{
	"ro": {unix.MOUNT_ATTR_RDONLY, 0}, "rw": {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, 0}, "suid": {0, unix.MOUNT_ATTR_NOSUID},
	"nodev": {unix.MOUNT_ATTR_NODEV, 0}, "dev": {0, unix.MOUNT_ATTR_NODEV},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, 0}, "exec": {0, unix.MOUNT_ATTR_NOEXEC},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0}, "symfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "diratime": {0, unix.MOUNT_ATTR_NODIRATIME},
	"noatime":     {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"relatime":    {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"atime":       {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"norelatime":  {}, "nostrictatime": {},
}

// ordinary are the attributes that a bind with options has as those say, and
// not as its source.
const ordinary = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
}

// ignored are options that say what is so anyway, or that no mount has any more.
var ignored = []string{"defaults", "bind", "rbind", "silent", "loud", "remount", "async", "mand", "nomand", "iversion", "noiversion", "nolazytime"}

// parseMount understands a mount's options.
func parseMount(in specs.Mount) (mount, error) {
	m := mount{destination: path.Clean("/" + in.Destination), kind: in.Type, source: in.Source, propagation: unix.MS_PRIVATE, plain: true}
	if len(in.UIDMappings)+len(in.GIDMappings) > 0 {
		return m, fault.New(fault.Unsupported, "mount %s: mappings of its own are not supported", in.Destination)
	}
	for _, o := range in.Options {
		name, all := strings.CutPrefix(o, "r")
		if a, ok := attributes[o]; ok {
			m.set, m.clear, m.plain = m.set&^(a.set|a.clear)|a.set, m.clear|a.clear, false
		} else if p, ok := propagations[o]; ok {
			m.propagation = p
		} else if p, ok := propagations[name]; ok && all {
			m.propagation = p
		} else if a, ok := attributes[name]; ok && all {
			m.all.Attr_set, m.all.Attr_clr = m.all.Attr_set&^(a.set|a.clear)|a.set, m.all.Attr_clr|a.clear
		} else if o == "idmap" || o == "ridmap" {
			m.idmap = true
		} else if !slices.Contains(ignored, o) {
			m.data = append(m.data, o)
		}
		switch o {
		case "bind", "rbind":
			m.kind, m.recursive = "bind", o == "rbind"
		}
	}
	if m.kind == "bind" && len(m.data) > 0 {
		return m, fault.New(fault.Invalid, "mount %s: option %q is not known", in.Destination, m.data[0])
	}
	if m.destination == "/" {
		return m, fault.New(fault.Invalid, "a mount cannot have the container's root as its destination")
	}
	return m, nil
}

// what is the mount in an error.
func (m *mount) what() string {
	if m.kind == "bind" {
		return m.source
	}
	return "a " + m.kind
}

// openTree returns a copy of the mount at a path, attached nowhere.
func openTree(dir int, name string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, name, flags)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: name, Err: err}
	}
	return fd, nil
}

// bind returns the source of a bind mount with its attributes, attached nowhere. users
// is the container's user namespace, for owners as it sees them.
func (m *mount) bind(users *os.File) (int, error) {
	fd, err := openTree(unix.AT_FDCWD, m.source, m.recursive)
	if err != nil {
		return -1, err
	}
	if err := m.bindAttributes(fd, users); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (m *mount) bindAttributes(fd int, users *os.File) error {
	if m.idmap {
		if users == nil {
			return fault.New(fault.Invalid, "mount %s: owners cannot be mapped in a container without a user namespace", m.destination)
		}
		a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
		if err := setAttributes(fd, m.recursive, a); err != nil {
			return fmt.Errorf("map owners: %w", err)
		}
	}
	if err := setAttributes(fd, true, unix.MountAttr{Propagation: m.propagation}); err != nil {
		return fmt.Errorf("set propagation: %w", err)
	}
	if !m.plain {
		if err := setAttributes(fd, false, unix.MountAttr{Attr_set: m.set, Attr_clr: m.clear | ordinary&^m.set}); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	if m.all != (unix.MountAttr{}) {
		return setAttributes(fd, true, m.all)
	}
	return nil
}

func setAttributes(fd int, recursive bool, a unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", flags, &a))
}

// create makes a new file system and returns its mount, attached nowhere.
func (m *mount) create() (int, error) {
	fs, err := unix.Fsopen(m.kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %s: %w", m.kind, err)
	}
	defer unix.Close(fs)
	source := cmp.Or(m.source, m.kind)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return -1, fmt.Errorf("source %s: %w", source, err)
	}
	for _, o := range m.data {
		name, value, given := strings.Cut(o, "=")
		if given {
			err = unix.FsconfigSetString(fs, name, value)
		} else {
			err = unix.FsconfigSetFlag(fs, name)
		}
		if err != nil {
			return -1, fault.New(fault.Invalid, "option %s of a %s: %w", o, m.kind, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("file system %s: %w", m.kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.set&^unix.MOUNT_ATTR_RDONLY))
	if err != nil {
		return -1, fmt.Errorf("file system %s: %w", m.kind, err)
	}
	return fd, nil
}

// ownedBy has a file system that can say so belong to the container's root, and
// translates the owners that its options name.
func (m *mount) ownedBy(ids *runner.Users) {
	if ids == nil || m.kind != "tmpfs" && m.kind != "devpts" {
		return
	}
	seen := map[string]bool{}
	for i, o := range m.data {
		name, value, _ := strings.Cut(o, "=")
		seen[name] = true
		n, err := strconv.Atoi(value)
		if err != nil {
			continue // the kernel says so
		}
		switch name {
		case "uid":
			m.data[i] = "uid=" + strconv.Itoa(ids.UID(n))
		case "gid":
			m.data[i] = "gid=" + strconv.Itoa(ids.GID(n))
		}
	}
	if m.kind == "tmpfs" && !seen["uid"] {
		m.data = append(m.data, "uid="+strconv.Itoa(ids.UID(0)))
	}
	if m.kind == "tmpfs" && !seen["gid"] {
		m.data = append(m.data, "gid="+strconv.Itoa(ids.GID(0)))
	}
}

// attach puts a mount on what a descriptor shows.
func attach(mount, onto int) error {
	err := unix.MoveMount(mount, "", onto, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// root is a directory in which names are looked up as by a process whose root it is.
type root struct {
	fd  int
	ids *runner.Users // who owns what is made in it; nil: this machine's root
}

// look opens a path for use as a place (O_PATH). What is above the root, and
// what /proc's links lead to, is not found whatever the path says.
func (r root) look(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	name = cmp.Or(strings.TrimLeft(name, "/"), ".")
	for range 10 { // EAGAIN: somebody renames things meanwhile
		fd, err := unix.Openat2(r.fd, name, &how)
		if err != unix.EAGAIN {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// place opens a path, making it, a directory or an empty file, where it is missing.
func (r root) place(name string, directory bool) (int, error) {
	fd, err := r.look(name, 0)
	if err == unix.ENOENT {
		fd, err = r.make(name, directory)
	}
	if err != nil {
		return -1, &os.PathError{Op: "make", Path: name, Err: err}
	}
	return fd, nil
}

func (r root) make(name string, directory bool) (int, error) {
	parent, err := r.directory(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	if directory {
		return r.mkdir(parent, base)
	}
	fd, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return -1, err
	}
	return fd, r.own(parent, base)
}

// directory opens a directory, making it and those above it where they are missing.
func (r root) directory(name string) (int, error) {
	name = path.Clean("/" + name)
	if name == "/" {
		return unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	fd, err := r.look(name, unix.O_DIRECTORY)
	if err != unix.ENOENT {
		return fd, err
	}
	parent, err := r.directory(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	return r.mkdir(parent, path.Base(name))
}

func (r root) mkdir(parent int, name string) (int, error) {
	if err := unix.Mkdirat(parent, name, 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err // a link that leads nowhere
	}
	return fd, r.own(parent, name)
}

// own gives what was made to the container's root.
func (r root) own(parent int, name string) error {
	if r.ids == nil {
		return nil
	}
	return unix.Fchownat(parent, name, r.ids.UID(0), r.ids.GID(0), unix.AT_SYMLINK_NOFOLLOW)
}

func statOf(fd int) (st unix.Stat_t, err error) {
	return st, os.NewSyscallError("fstat", unix.Fstat(fd, &st))
}

func isDirectory(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
