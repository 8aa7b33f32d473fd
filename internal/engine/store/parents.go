package store

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inheritParents gives the directories that the layer has but does not describe
// what the layers beneath say of them: without that a layer of nothing but
// tmp/file would make /tmp root's alone. The layers beneath are in their places.
func (l *layer) inheritParents(ctx context.Context, dir string) (err error) {
	if l.parent == "" || len(l.implied) == 0 {
		return nil
	}
	key := "parents-" + l.chain + "-" + rand.Text() // one that a kill left is in nobody's way
	mounts, err := l.store.snapshotter.View(ctx, key, l.parent)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.store.snapshotter.Remove(context.WithoutCancel(ctx), key))
	}()
	upper, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer upper.Close()
	var lowers []*os.Root
	defer func() {
		for _, lower := range lowers {
			lower.Close()
		}
	}()
	for _, below := range directories(mounts[0]) {
		lower, err := os.OpenRoot(below)
		if err != nil {
			return err
		}
		lowers = append(lowers, lower)
	}
	for _, name := range slices.Sorted(maps.Keys(l.implied)) {
		if err := inherit(upper, lowers, name); err != nil {
			return err
		}
	}
	return nil
}

// inherit copies the attributes of a directory from the first layer that has
// it. os.Root keeps whatever the names and links of a layer try within the layer.
func inherit(upper *os.Root, lowers []*os.Root, name string) error {
	if st, err := upper.Lstat(name); err != nil || !st.IsDir() {
		return nil // a link by now, or elsewhere because of one
	}
	for _, lower := range lowers {
		st, err := lower.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil, !st.IsDir():
			return nil // something else in its place, or not to be reached: replaced by this layer
		}
		from, err := lower.Open(name)
		if err != nil {
			return err
		}
		to, err := upper.Open(name)
		if err != nil {
			return errors.Join(err, from.Close())
		}
		return errors.Join(copyAttributes(to, from), from.Close(), to.Close())
	}
	return nil
}

func copyAttributes(to, from *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	if err := to.Chown(int(sys.Uid), int(sys.Gid)); err != nil {
		return err
	}
	if err := to.Chmod(st.Mode()); err != nil { // after chown, which clears setgid
		return err
	}
	if err := copyXattrs(int(to.Fd()), int(from.Fd())); err != nil {
		return err
	}
	at := unix.NsecToTimeval(st.ModTime().Round(time.Microsecond).UnixNano())
	return unix.Futimes(int(to.Fd()), []unix.Timeval{at, at})
}

func copyXattrs(to, from int) error {
	names := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") { // the overlay's own
			continue
		}
		size, err := unix.Fgetxattr(from, name, value)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(to, name, value[:size], 0); err != nil {
			return err
		}
	}
	return nil
}
