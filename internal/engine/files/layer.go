package files

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// Layer is the writable layer of an overlay: what was written to it, and what
// that lies on. A reader of the directory of the upper alone would take
// overlayfs's own marks for files.
type Layer struct {
	Upper, Lower *Root
	// Placeholders are paths that were made to mount something on. Where they
	// are new and empty they are no changes, nor are directories that hold
	// nothing else.
	Placeholders []string
}

// ChangeKind is what became of a file.
type ChangeKind int

// The kinds of change.
const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// Change is a difference between a layer and what it lies on.
type Change struct {
	Path string
	Kind ChangeKind
}

// Marks of overlayfs: the character device 0:0 in the place of what was removed,
// and attributes of directories that hide what is below them, or stand for
// what is elsewhere.
const (
	attrOpaque   = "trusted.overlay.opaque"
	attrRedirect = "trusted.overlay.redirect"
	attrMetacopy = "trusted.overlay.metacopy"
)

// How archives of layers say the same: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Changes returns what differs, in the order of paths, as `docker diff` does.
func (l Layer) Changes(ctx context.Context) ([]Change, error) {
	var out []Change
	err := l.walk(ctx, func(e layerEntry) error {
		out = append(out, Change{e.path, e.kind})
		if !e.opaque {
			return nil
		}
		hidden, err := l.hidden(e)
		out = append(out, hidden...)
		return err
	})
	slices.SortStableFunc(out, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return out, asFault(err)
}

// hidden are the files below an opaque directory that it has not itself.
func (l Layer) hidden(e layerEntry) ([]Change, error) {
	lower, err := l.Lower.resolve(e.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer lower.Close()
	names, err := lower.Readdirnames(-1)
	var out []Change
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(int(e.file.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			out = append(out, Change{path.Join(e.path, name), Deleted})
		}
	}
	return out, err
}

// Pack writes the layer as a tar of an image's layer and tells how many entries it has.
func (l Layer) Pack(ctx context.Context, out io.Writer) (entries int, err error) {
	p := packer{root: l.Upper, out: tar.NewWriter(out), linked: map[inode]string{}}
	err = l.walk(ctx, func(e layerEntry) error {
		entries++
		name := e.path[1:]
		if e.kind == Deleted {
			dir, base := path.Split(name)
			return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteout + base, Format: tar.FormatPAX, ModTime: modTime(e.stat)})
		}
		if err := p.one(e.file, e.stat, name); err != nil || !e.opaque {
			return err
		}
		entries++
		return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, opaque), Format: tar.FormatPAX, ModTime: modTime(e.stat)})
	})
	if err != nil {
		return entries, asFault(err)
	}
	return entries, p.out.Close()
}

// layerEntry is one change and, unless that is a removal, the file.
type layerEntry struct {
	path   string // below "/"
	kind   ChangeKind
	file   *os.File // open as a path
	stat   unix.Stat_t
	opaque bool
}

// layerWalk is a walk through a layer. Directories wait until something in them
// changed, or they did themselves.
type layerWalk struct {
	Layer
	visit   func(layerEntry) error
	waiting []layerEntry
}

func (l Layer) walk(ctx context.Context, visit func(layerEntry) error) error {
	top, err := l.Upper.resolve("/", unix.O_PATH)
	if err != nil {
		return err
	}
	defer top.Close()
	w := layerWalk{Layer: l, visit: visit}
	return w.children(ctx, top, "/", 0)
}

// emit visits the directories that wait and then e.
func (w *layerWalk) emit(e layerEntry) error {
	waiting := w.waiting
	w.waiting = nil
	for _, dir := range waiting {
		if err := w.visit(dir); err != nil {
			return err
		}
	}
	return w.visit(e)
}

func (w *layerWalk) children(ctx context.Context, f *os.File, at string, depth int) error {
	if depth > maxDepth {
		return fault.New(fault.Unsupported, "%s: more than %d directories deep", at, maxDepth)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	called := func(name string) string { return path.Join(at, name) }
	return eachEntry(f, called, func(at string, entry *os.File) error { return w.entry(ctx, at, entry, depth) })
}

func (w *layerWalk) entry(ctx context.Context, at string, f *os.File, depth int) (err error) {
	e := layerEntry{path: at, kind: Added, file: f}
	if e.stat, err = statOf(f); err != nil {
		return err
	}
	was, existed, err := w.lowerStat(at)
	if err != nil {
		return err
	}
	if existed {
		e.kind = Modified
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFCHR:
		if e.stat.Rdev == 0 {
			if e.kind = Deleted; !existed {
				return nil // hides nothing
			}
		}
	case unix.S_IFDIR:
		return w.dir(ctx, e, was, existed, depth)
	}
	if !existed && e.stat.Size == 0 && slices.Contains(w.Placeholders, at) {
		return nil
	}
	if _, err := getxattr(e.file, attrMetacopy); err == nil {
		return errOverlay(at)
	}
	return w.emit(e)
}

// lowerStat tells of what the layer lies on.
func (w *layerWalk) lowerStat(at string) (unix.Stat_t, bool, error) {
	f, err := w.Lower.resolve(at, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return unix.Stat_t{}, false, nil
	}
	if err != nil {
		return unix.Stat_t{}, false, err
	}
	defer f.Close()
	st, err := statOf(f)
	return st, true, err
}

// dir visits a directory before what is in it, if it is a change or holds one.
func (w *layerWalk) dir(ctx context.Context, e layerEntry, was unix.Stat_t, existed bool, depth int) error {
	if _, err := getxattr(e.file, attrRedirect); err == nil {
		return errOverlay(e.path)
	}
	value, err := getxattr(e.file, attrOpaque)
	e.opaque = err == nil && value == "y" && existed
	changed := !existed && !slices.Contains(w.Placeholders, e.path) || e.opaque ||
		existed && (e.stat.Mode != was.Mode || e.stat.Uid != was.Uid || e.stat.Gid != was.Gid)
	if changed {
		if err := w.emit(e); err != nil {
			return err
		}
		return w.children(ctx, e.file, e.path, depth+1)
	}
	before := len(w.waiting)
	w.waiting = append(w.waiting, e)
	if err := w.children(ctx, e.file, e.path, depth+1); err != nil {
		return err
	}
	// What still waits of this level holds no change.
	w.waiting = w.waiting[:min(before, len(w.waiting))]
	return nil
}

func errOverlay(at string) error {
	return fault.New(fault.Unsupported, "%s: the layer was written by an overlay file system with redirect_dir or metacopy", at).
		Hint("turn them off: see /sys/module/overlay/parameters")
}

func getxattr(f *os.File, name string) (string, error) {
	buf := make([]byte, 256)
	n, err := unix.Getxattr(procPath(f), name, buf)
	return string(buf[:max(n, 0)]), err
}

func modTime(st unix.Stat_t) time.Time { return time.Unix(st.Mtim.Unix()).Truncate(time.Second) }
