// Package files reads and writes the files of containers: trees below a root
// that nothing in them leads out of, neither a link nor a name in an archive
// nor somebody who exchanges both while they are being looked at.
//
// Every path is resolved by the kernel with the root as its own "/" (openat2
// with RESOLVE_IN_ROOT), and what is found is worked on through descriptors. It
// knows archives and mount namespaces, but neither containers nor images. The
// engine, and through it the Docker API, are its users.
package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// Root is an open tree of files. Its methods may be called concurrently.
type Root struct {
	dir  *os.File
	keep *os.File // the mount namespace that dir is in; nil for the daemon's own

	owners Owners
}

// Owners translates the owners of files, user and group, for a root that belongs
// to a user namespace: Inside to what they are for its processes, and so in
// archives, Outside to what they are on the machine.
type Owners struct {
	Inside, Outside func(uid, gid int) (int, int)
}

// SetOwners has owners translated. Call it before anything else.
func (r *Root) SetOwners(o Owners) { r.owners = o }

func (r *Root) inside(uid, gid uint32) (int, int) {
	if r.owners.Inside == nil {
		return int(uid), int(gid)
	}
	return r.owners.Inside(int(uid), int(gid))
}

func (r *Root) outside(uid, gid int) (int, int) {
	if r.owners.Outside == nil {
		return uid, gid
	}
	return r.owners.Outside(uid, gid)
}

// Open opens a directory of this machine as a root.
func Open(dir string) (*Root, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &Root{dir: f}, nil
}

// Mount is what OpenView puts in a root.
type Mount struct {
	Source      string
	SubPath     string // of Source, which it cannot lead out of; "" for all of it
	Destination string // made if it is missing
	ReadOnly    bool
}

// OpenView opens a directory with mounts in it, as a container would see them
// that does not run; with readOnly what is not in a mount cannot be written.
// They are in a mount namespace that nobody else has, and end with it: at
// Close, or with this process.
func OpenView(dir string, readOnly bool, mounts []Mount) (*Root, error) {
	return onThread(func() (*Root, error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return nil, fmt.Errorf("mount namespace: %w", err)
		}
		// Nothing of this reaches the machine's own mounts, but their ends come here.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return nil, fmt.Errorf("mount namespace: %w", err)
		}
		r, err := Open(dir)
		if err != nil {
			return nil, err
		}
		if r.keep, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return nil, errors.Join(err, r.Close())
		}
		for _, m := range mounts {
			if err := r.mount(m); err != nil {
				return nil, errors.Join(fmt.Errorf("mount %s at %s: %w", m.Source, m.Destination, err), r.Close())
			}
		}
		if readOnly { // of the mount as this namespace has it
			if err := setReadOnly(r.dir, 0); err != nil {
				return nil, errors.Join(err, r.Close())
			}
		}
		return r, nil
	})
}

// OpenProcess opens the root of a process's mount namespace, with all that is
// mounted in it, wherever the process itself may have gone.
func OpenProcess(pid int) (*Root, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	r, err := onThread(func() (*Root, error) {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return nil, fmt.Errorf("leave the shared root: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return nil, fmt.Errorf("enter mount namespace of process %d: %w", pid, err)
		}
		return Open("/")
	})
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	r.keep = ns
	return r, nil
}

// onThread runs f on a thread of its own that ends with it, for what f changes
// of the thread cannot be taken back.
func onThread(f func() (*Root, error)) (*Root, error) {
	type result struct {
		root *Root
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked
		root, err := f()
		done <- result{root, err}
	}()
	r := <-done
	return r.root, r.err
}

// mount mounts m on what its destination is now; the thread is in r's namespace.
func (r *Root) mount(m Mount) error {
	source, err := openSource(m)
	if err != nil {
		return err
	}
	defer source.Close()
	st, err := source.Stat()
	if err != nil {
		return err
	}
	if err := r.makeMountPoint(m.Destination, st.IsDir()); err != nil {
		return err
	}
	at, err := r.resolve(m.Destination, unix.O_PATH)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.Mount(procPath(source), procPath(at), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if !m.ReadOnly {
		return nil
	}
	top, err := r.resolve(m.Destination, unix.O_PATH) // at is below the mount
	if err != nil {
		return err
	}
	defer top.Close()
	return setReadOnly(top, unix.AT_RECURSIVE)
}

func setReadOnly(top *os.File, flags uint) error {
	return unix.MountSetattr(int(top.Fd()), "", unix.AT_EMPTY_PATH|flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

// openSource opens what is to be mounted, as a path.
func openSource(m Mount) (*os.File, error) {
	if m.SubPath == "" {
		return os.OpenFile(m.Source, unix.O_PATH, 0)
	}
	root, err := Open(m.Source)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.resolve(m.SubPath, unix.O_PATH)
}

// Bind mounts what name is at a path of this machine, which is made.
func (r *Root) Bind(name, at string) error {
	source, err := r.resolve(name, unix.O_PATH)
	if err != nil {
		return asFault(err)
	}
	defer source.Close()
	st, err := source.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		err = os.Mkdir(at, 0o711)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return unix.Mount(procPath(source), at, "", unix.MS_BIND|unix.MS_REC, "")
}

func (r *Root) makeMountPoint(name string, dir bool) error {
	if dir {
		f, err := r.makeDirs(name)
		if err != nil {
			return err
		}
		return f.Close()
	}
	parent, err := r.makeDirs(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// Close lets go of the root, and of the mounts of a view.
func (r *Root) Close() error {
	err := r.dir.Close()
	if r.keep != nil {
		err = errors.Join(err, r.keep.Close())
	}
	return err
}

// resolve opens what name is within the root. A link as its last element is
// followed unless flags has O_NOFOLLOW; "name/" and "name/." follow it always.
func (r *Root) resolve(name string, flags int) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		rel = "."
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(int(r.dir.Fd()), rel, &how)
		if errors.Is(err, unix.EAGAIN) && try < 100 { // something was renamed while ".." was resolved
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// makeDirs opens the directory name, made with its parents if it is missing.
func (r *Root) makeDirs(name string) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	f, err := r.resolve(name, flags)
	clean := path.Clean("/" + name)
	if !errors.Is(err, fs.ErrNotExist) || clean == "/" {
		return f, err
	}
	parent, err := r.makeDirs(path.Dir(clean))
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), path.Base(clean), 0o755)
	if uid, gid := r.outside(0, 0); err == nil && uid|gid != 0 {
		err = unix.Fchownat(int(parent.Fd()), path.Base(clean), uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return r.resolve(clean, flags)
}

// procPath is a path to an open file, also to one that is open as a path alone.
func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Info tells of one file.
type Info struct {
	Name       string // last element of the path asked for
	Size       int64
	Mode       fs.FileMode
	ModTime    time.Time
	LinkTarget string // where in the root a link leads in the end, though there may be nothing
	UID, GID   int
}

// Stat tells of name, of a link itself.
func (r *Root) Stat(name string) (Info, error) {
	f, err := r.resolve(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return Info{}, asFault(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	sys, err := statOf(f)
	if err != nil {
		return Info{}, err
	}
	info := Info{Name: path.Base(path.Clean("/" + name)), Size: st.Size(), Mode: st.Mode(), ModTime: st.ModTime()}
	info.UID, info.GID = r.inside(sys.Uid, sys.Gid)
	if st.Mode()&fs.ModeSymlink != 0 {
		info.LinkTarget, err = r.follow(path.Clean("/"+name), maxLinks)
	}
	return info, err
}

// maxLinks is how many links are followed for one path, as by the kernel.
const maxLinks = 40

// follow returns the path without links that name leads to. It is for people
// and clients to see: what is there may change before it is used.
func (r *Root) follow(name string, left int) (string, error) {
	at := "/"
	rest := strings.Split(strings.Trim(name, "/"), "/")
	for len(rest) > 0 {
		next := path.Join(at, rest[0]) // ".." of the root is the root
		rest = rest[1:]
		target, err := r.readlink(next)
		if err != nil {
			return "", err
		}
		if target == "" {
			at = next
			continue
		}
		if left--; left < 0 {
			return "", fault.New(fault.Invalid, "%s: too many levels of symbolic links", name)
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return at, nil
}

// readlink returns a link's target; "" for what is none or not there.
func (r *Root) readlink(name string) (string, error) {
	f, err := r.resolve(name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", asFault(err)
	}
	defer f.Close()
	target, err := readlinkat(f)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // as it says of what is no link
		return "", nil
	}
	return target, err
}

// readlinkat reads the link that is open.
func readlinkat(link *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(link.Fd()), "", buf)
	return string(buf[:max(n, 0)]), err
}

func statOf(f *os.File) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st, nil
}

// Empty reports whether name is a directory with nothing in it.
func (r *Root) Empty(name string) (bool, error) {
	f, err := r.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, asFault(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return len(names) == 0, ignoreEOF(err)
}

// asFault gives what the caller has asked for wrongly its kind.
func asFault(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "%w", err)
	case errors.Is(err, unix.EROFS):
		return fault.New(fault.Invalid, "%w: the container's root or a volume is marked read-only", err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EBUSY):
		return fault.New(fault.Invalid, "%w", err)
	}
	return err
}
