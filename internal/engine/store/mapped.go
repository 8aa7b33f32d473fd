package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// IDMap is a range of user or group ids of a user namespace and where it lies
// among the host's.
type IDMap struct {
	Inside uint32 `json:"inside"`
	Host   uint32 `json:"host"`
	Size   uint32 `json:"size"`
}

// Users are the ids of a user namespace.
type Users struct {
	UIDs []IDMap `json:"uids"`
	GIDs []IDMap `json:"gids"`
}

// hostRoot is what the host's own root is on disk in a mapped layer. overlayfs
// makes its working directory as root, which therefore must be something.
const hostRoot = 1<<32 - 16

// mapping is the form of containerd.
func mapping(in []IDMap) string {
	var parts []string
	for _, m := range append(slices.Clone(in), IDMap{Inside: hostRoot, Host: 0, Size: 1}) {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", m.Inside, m.Host, m.Size))
	}
	return strings.Join(parts, ",")
}

// MountMapped mounts mounts at dir as MountAll does, for the processes of a
// user namespace. On disk the files' owners stay as they are: what the
// namespace's root writes is root's there, and the host alone sees it under
// the id that root has outside. So a layer serves containers with any mapping.
func (s *Store) MountMapped(mounts []Mount, dir string, users Users) (err error) {
	ns, err := mount.GetUsernsFD(mapping(users.UIDs), mapping(users.GIDs))
	if err != nil {
		return fault.New(fault.Unsupported, "make a user namespace: %w", err).
			Hint("see /proc/sys/user/max_user_namespaces, or run without a user namespace")
	}
	defer ns.Close()
	// overlayfs itself cannot be mapped, its layers can. All of them lie below the
	// store's root, which is mapped once, beside, until the overlay has them.
	mapped, err := os.MkdirTemp(s.tmp(), "mapped-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, UnmountAll(mapped), os.Remove(mapped)) }()
	if err := mapIDs(s.opt.Root, mapped, ns); err != nil {
		return fault.New(fault.Unsupported, "map the ids of layers: %w", err).
			Hint("user namespaces need Linux 5.19 or later and dataDir on ext4, xfs or btrfs")
	}
	there := make([]Mount, len(mounts))
	for i, m := range mounts {
		m.Source = s.moved(m.Source, mapped)
		m.Options = slices.Clone(m.Options)
		for j, option := range m.Options {
			m.Options[j] = s.moved(option, mapped)
		}
		there[i] = m
	}
	return mount.All(there, dir)
}

// mapIDs shows a directory at another with the ids of a user namespace. What is
// mounted below it is not there: an overlay could not be mapped.
func mapIDs(dir, at string, ns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the tree %s: %w", dir, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("shift the ids of %s: %w", dir, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s at %s: %w", dir, at, err)
	}
	return nil
}

// moved is a mount's option or source with its paths in the store moved below to.
func (s *Store) moved(option, to string) string {
	return strings.ReplaceAll(option, s.opt.Root+"/", to+"/")
}

// CheckMapped reports why MountMapped cannot work on this machine; nil if it can.
func (s *Store) CheckMapped() (err error) {
	base, err := os.MkdirTemp(s.writablesDir(), newPrefix+"check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	for _, name := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(s.tmp(), "check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, UnmountAll(dir), os.Remove(dir)) }()
	one := []IDMap{{Inside: 0, Host: 1 << 30, Size: 1 << 16}}
	overlay := Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + filepath.Join(base, "lower"),
		"upperdir=" + filepath.Join(base, "upper"), "workdir=" + filepath.Join(base, "work")}}
	if err := s.MountMapped([]Mount{overlay}, dir, Users{UIDs: one, GIDs: one}); err != nil {
		return err
	}
	// That it is mounted says little: a kernel without mapped layers has them unmapped.
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	if st.Uid != one[0].Host {
		return fault.New(fault.Unsupported, "overlayfs does not map the ids of its layers")
	}
	return nil
}
