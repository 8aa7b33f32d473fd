package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// UnpackOptions say how an archive is unpacked.
type UnpackOptions struct {
	// KeepKind refuses to put a file in a directory's place or a directory in a file's.
	KeepKind bool
	// Owner, if set, owns what is unpacked, whoever the archive says: user and group.
	Owner *[2]int
}

// Unpack unpacks a tar in the directory name. What is there already is replaced,
// directories are merged.
func (r *Root) Unpack(ctx context.Context, in io.Reader, name string, opt UnpackOptions) error {
	dir, err := r.resolve(name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Invalid, "extraction point is not a directory: %s", name)
	}
	if err != nil {
		return asFault(err)
	}
	if err := dir.Close(); err != nil {
		return err
	}
	u := unpacker{root: r, base: path.Clean("/" + name), opt: opt}
	defer u.leave()
	archive := tar.NewReader(in)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.New(fault.Invalid, "read archive: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := u.entry(h, archive); err != nil {
			return asFault(fmt.Errorf("unpack %q: %w", h.Name, err))
		}
	}
	// Last, as what is made in a directory changes its time.
	for _, d := range u.dirs {
		if err := u.setTimes(d.name, d.time); err != nil {
			return asFault(fmt.Errorf("unpack %q: %w", d.name, err))
		}
	}
	return nil
}

// Clear removes all that is in the directory name.
func (r *Root) Clear(name string) error {
	dir, err := r.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return asFault(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(procPath(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return asFault(err)
}

type unpacker struct {
	root *Root
	base string
	opt  UnpackOptions
	dirs []dirTime

	// The directory of the last entry: most entries follow one of their own.
	parentName string
	parent     *os.File
}

type dirTime struct {
	name string
	time time.Time
}

func (u *unpacker) leave() {
	if u.parent != nil {
		u.parent.Close()
		u.parent = nil
	}
}

// inside makes a name of an archive one below the directory of unpacking; "." is that itself.
func inside(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fault.New(fault.Invalid, "%q leads out of the directory", name)
	}
	return clean, nil
}

// enter opens the directory that an entry is in, making it if it is missing. It
// is resolved anew for each directory: one before may have become a link, which
// then leads to a place within the root.
func (u *unpacker) enter(name string) (dir *os.File, base string, err error) {
	if name == "." { // u.base itself
		name, base = path.Dir(u.base), path.Base(u.base)
	} else {
		name, base = path.Join(u.base, path.Dir(name)), path.Base(name)
	}
	if base == "/" {
		base = "."
	}
	if u.parent != nil && u.parentName == name {
		return u.parent, base, nil
	}
	u.leave()
	u.parent, err = u.root.makeDirs(name)
	u.parentName = name
	return u.parent, base, err
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if name == "." && h.Typeflag != tar.TypeDir {
		return fault.New(fault.Invalid, "it would take the directory's place")
	}
	dir, base, err := u.enter(name)
	if err != nil {
		return err
	}
	if name == "." { // it may be a link to the directory, which is the one to change
		if dir, err = u.root.resolve(u.base, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return err
		}
		defer dir.Close()
		base = "."
	} else if err := u.clear(dir, base, h); err != nil {
		return err
	}
	f, err := u.make(dir, base, h, content)
	if err != nil {
		return err
	}
	defer f.Close()
	return u.dress(f, name, h)
}

// clear takes away what is in an entry's place, unless both are directories.
func (u *unpacker) clear(dir *os.File, base string, h *tar.Header) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isDir && h.Typeflag == tar.TypeDir:
		return nil
	case u.opt.KeepKind && isDir:
		return fault.New(fault.Invalid, "cannot overwrite directory with non-directory")
	case u.opt.KeepKind && h.Typeflag == tar.TypeDir:
		return fault.New(fault.Invalid, "cannot overwrite non-directory with directory")
	}
	if !isDir {
		return unix.Unlinkat(int(dir.Fd()), base, 0)
	}
	root, err := os.OpenRoot(procPath(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(base)
}

// make makes an entry and opens it as a path. Nothing is opened that was there
// before, which may be a device or lead elsewhere.
func (u *unpacker) make(dir *os.File, base string, h *tar.Header, content io.Reader) (*os.File, error) {
	fd := int(dir.Fd())
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if err = unix.Mkdirat(fd, base, 0o700); errors.Is(err, unix.EEXIST) {
			err = nil
		}
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return writeFile(dir, base, h, content)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeLink:
		err = u.link(dir, base, h.Linkname)
	case tar.TypeFifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = unix.Mknodat(fd, base, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(fd, base, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		err = fault.New(fault.Unsupported, "entries of type %q are not supported", h.Typeflag)
	}
	if err != nil {
		return nil, err
	}
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if h.Typeflag == tar.TypeDir {
		flags |= unix.O_DIRECTORY
	}
	made, err := unix.Openat(fd, base, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(made), h.Name), nil
}

func writeFile(dir *os.File, base string, h *tar.Header, content io.Reader) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), h.Name)
	if _, err := io.Copy(f, content); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// link makes a hard link to what an earlier entry, or anybody, put in the directory.
func (u *unpacker) link(dir *os.File, base, target string) error {
	target, err := inside(target)
	if err != nil {
		return err
	}
	from, err := u.root.resolve(path.Join(u.base, path.Dir(target)), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	return unix.Linkat(int(from.Fd()), path.Base(target), int(dir.Fd()), base, 0)
}

// dress gives what was made its owner, attributes, mode and times, in this
// order: a change of owner takes some of the others away.
func (u *unpacker) dress(f *os.File, name string, h *tar.Header) error {
	if h.Typeflag == tar.TypeLink {
		return nil // the file has them
	}
	uid, gid := h.Uid, h.Gid
	if u.opt.Owner != nil {
		uid, gid = u.opt.Owner[0], u.opt.Owner[1]
	}
	uid, gid = u.root.outside(uid, gid)
	if err := unix.Fchownat(int(f.Fd()), "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "chown", Path: name, Err: err}
	}
	if h.Typeflag == tar.TypeSymlink {
		return setTimes(f, h.ModTime)
	}
	if value, ok := h.PAXRecords[paxXattr+capabilities]; ok {
		if err := unix.Setxattr(procPath(f), capabilities, []byte(value), 0); err != nil {
			return &fs.PathError{Op: "set capabilities of", Path: name, Err: err}
		}
	}
	if err := unix.Chmod(procPath(f), uint32(h.Mode)&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	if h.Typeflag == tar.TypeDir {
		u.dirs = append(u.dirs, dirTime{path.Join(u.base, name), h.ModTime})
		return nil
	}
	return setTimes(f, h.ModTime)
}

// setTimes sets the time of a directory, unless it has been replaced since.
func (u *unpacker) setTimes(name string, t time.Time) error {
	f, err := u.root.resolve(name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return setTimes(f, t)
}

// setTimes sets the times of what is open, as a path or otherwise.
func setTimes(f *os.File, t time.Time) error {
	ts := unix.NsecToTimespec(max(t.UnixNano(), 0))
	err := unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "set time of", Path: f.Name(), Err: err}
	}
	return nil
}
