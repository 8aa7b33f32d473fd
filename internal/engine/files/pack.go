package files

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// maxDepth is how deep a tree may be: each level takes a descriptor.
const maxDepth = 500

// capabilities is the one extended attribute that archives carry, as Docker's do.
const capabilities = "security.capability"

const paxXattr = "SCHILY.xattr."

// Pack writes name, and what is below it, as a tar in which it is called as.
// Where as is "" what is below it is at the top; "." and "/" begin all names, as
// docker cp, which puts another name in their place, expects. A link is written as
// a link, unless name ends in "/" or "/.". Sockets are left out, and the content of
// /proc and its like below name, and what ends while it is being read.
func (r *Root) Pack(ctx context.Context, out io.Writer, name, as string) error {
	top, err := r.resolve(name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return asFault(err)
	}
	defer top.Close()
	p := packer{root: r, out: tar.NewWriter(out), linked: map[inode]string{}}
	if err := p.add(ctx, top, as, 0); err != nil {
		return asFault(err)
	}
	return p.out.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	root   *Root
	out    *tar.Writer
	linked map[inode]string // files of several names, by the first
}

// add writes what is open as a path.
func (p *packer) add(ctx context.Context, f *os.File, as string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fault.New(fault.Unsupported, "%s: more than %d directories deep", as, maxDepth)
	}
	st, err := statOf(f)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return p.one(f, st, as)
	}
	if as != "" {
		if err := p.one(f, st, as); err != nil {
			return err
		}
	}
	if depth > 0 && madeByKernel(f) {
		return nil
	}
	return p.addContent(ctx, f, as, depth)
}

// kernelFiles are the file systems whose files say how the kernel is, and some of
// which never end.
var kernelFiles = []int64{unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
	unix.DEVPTS_SUPER_MAGIC, mqueueMagic, unix.SECURITYFS_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.BPF_FS_MAGIC}

const mqueueMagic = 0x19800202 // MQUEUE_MAGIC of ipc/mqueue.c

func madeByKernel(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && slices.Contains(kernelFiles, st.Type)
}

// one writes a file, or of a directory that alone.
func (p *packer) one(f *os.File, st unix.Stat_t, as string) (err error) {
	uid, gid := p.root.inside(st.Uid, st.Gid)
	h := &tar.Header{Name: as, Uid: uid, Gid: gid, Mode: int64(st.Mode & 0o7777), Format: tar.FormatPAX, ModTime: modTime(st)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, below(as, "")
		return p.out.WriteHeader(h)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlinkat(f); err != nil {
			return err
		}
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	default:
		return nil
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if id := (inode{st.Dev, st.Ino}); st.Nlink > 1 {
		if first, ok := p.linked[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.out.WriteHeader(h)
		}
		p.linked[id] = as
	}
	if h.Typeflag == tar.TypeReg {
		return p.addFile(f, h)
	}
	return p.out.WriteHeader(h)
}

func (p *packer) addFile(f *os.File, h *tar.Header) error {
	in, err := os.Open(procPath(f)) // the very file, whatever has its name by now
	if err != nil {
		return err
	}
	defer in.Close()
	buf := make([]byte, 256)
	if n, err := unix.Fgetxattr(int(in.Fd()), capabilities, buf); err == nil {
		h.PAXRecords = map[string]string{paxXattr + capabilities: string(buf[:n])}
	}
	if err := p.out.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.out, io.LimitReader(in, h.Size)) // it may grow
	if err == nil && n < h.Size {
		_, err = io.CopyN(p.out, zeros{}, h.Size-n) // and shrink
	}
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func (p *packer) addContent(ctx context.Context, f *os.File, as string, depth int) error {
	called := func(name string) string { return below(as, name) }
	return eachEntry(f, called, func(as string, entry *os.File) error { return p.add(ctx, entry, as, depth+1) })
}

// below is the name of an entry of the directory that is called dir. It is not
// cleaned: "./a" and "/a" keep what they begin with.
func below(dir, name string) string {
	if dir == "" || strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}

// eachEntry visits what is in a directory in the order of names, open as a path
// until visit returns, by what called makes of its name. What is removed meanwhile
// is left out.
func eachEntry(f *os.File, called func(name string) string, visit func(at string, entry *os.File) error) error {
	dir, err := os.Open(procPath(f))
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := visitEntry(dir, name, called(name), visit); err != nil {
			return err
		}
	}
	return nil
}

func visitEntry(dir *os.File, name, at string, visit func(at string, entry *os.File) error) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed since
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: at, Err: err}
	}
	entry := os.NewFile(uintptr(fd), at)
	defer entry.Close()
	return visit(at, entry)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Copy copies the directory from of one root over the directory to of another,
// with owners, modes and times.
func Copy(ctx context.Context, src *Root, from string, dst *Root, to string) error {
	in, out := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := src.Pack(ctx, out, from+"/.", ".")
		out.CloseWithError(err)
		packed <- err
	}()
	err := dst.Unpack(ctx, in, to, UnpackOptions{})
	in.CloseWithError(err)
	if packErr := <-packed; packErr != nil && !errors.Is(packErr, err) {
		err = errors.Join(packErr, err)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}
