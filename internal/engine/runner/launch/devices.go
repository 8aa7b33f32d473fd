package launch

import (
	"fmt"
	"os"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// standardDevices are the nodes that every container has (runtime-spec
// config-linux.md, Default Devices).
var standardDevices = []specs.LinuxDevice{
	node("/dev/null", 1, 3), node("/dev/zero", 1, 5), node("/dev/full", 1, 7),
	node("/dev/random", 1, 8), node("/dev/urandom", 1, 9), node("/dev/tty", 5, 0),
}

func node(name string, major, minor int64) specs.LinuxDevice {
	mode := os.FileMode(0o666)
	return specs.LinuxDevice{Path: name, Type: "c", Major: major, Minor: minor, FileMode: &mode}
}

// devLinks are the links in /dev (runtime-spec runtime-linux.md, Dev symbolic links).
var devLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
}

// fillDev makes the nodes and links of a /dev of the container's own.
func (t *tree) fillDev() error {
	for _, d := range standardDevices {
		if slices.ContainsFunc(t.spec.Linux.Devices, func(o specs.LinuxDevice) bool { return path.Clean(o.Path) == d.Path }) {
			continue
		}
		if err := t.device(d); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	for _, d := range t.spec.Linux.Devices {
		if path.Clean(d.Path) == "/dev/ptmx" {
			continue // it is that of the container's own terminals
		}
		if err := t.device(d); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	dev, err := t.directory("/dev")
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	links := devLinks
	if _, err := os.Stat("/proc/kcore"); err == nil {
		links = append(slices.Clone(links), [2]string{"/proc/kcore", "core"})
	}
	for _, l := range links {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil && err != unix.EEXIST {
			return &os.PathError{Op: "link", Path: "/dev/" + l[1], Err: err}
		}
	}
	if err := unix.Unlinkat(dev, "ptmx", 0); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove", Path: "/dev/ptmx", Err: err}
	}
	if err := unix.Symlinkat("pts/ptmx", dev, "ptmx"); err != nil {
		return &os.PathError{Op: "link", Path: "/dev/ptmx", Err: err}
	}
	return nil
}

// device makes a node, unless something of its name is there.
func (t *tree) device(d specs.LinuxDevice) error {
	kinds := map[string]uint32{"b": unix.S_IFBLK, "c": unix.S_IFCHR, "u": unix.S_IFCHR, "p": unix.S_IFIFO}
	kind, ok := kinds[d.Type]
	if !ok {
		return fault.New(fault.Invalid, "its type %q is not known", d.Type)
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	name := path.Clean("/" + d.Path)
	parent, err := t.directory(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	err = unix.Mknodat(parent, path.Base(name), kind|mode, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor))))
	switch {
	case err == unix.EEXIST:
		return nil
	case err == unix.EPERM: // this process may not make nodes
		return t.bindDevice(parent, name)
	case err != nil:
		return os.NewSyscallError("mknodat", err)
	}
	uid, gid := 0, 0
	if d.UID != nil {
		uid = int(*d.UID)
	}
	if d.GID != nil {
		gid = int(*d.GID)
	}
	if uid, gid = t.ids.UID(uid), t.ids.GID(gid); uid == 0 && gid == 0 {
		return nil
	}
	return os.NewSyscallError("fchownat", unix.Fchownat(parent, path.Base(name), uid, gid, unix.AT_SYMLINK_NOFOLLOW))
}

// bindDevice shows the machine's own node of the same name.
func (t *tree) bindDevice(parent int, name string) error {
	source, err := openTree(unix.AT_FDCWD, name, false)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	onto, err := unix.Openat(parent, path.Base(name), unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o000)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(onto)
	return attach(source, onto)
}
