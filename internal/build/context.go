package build

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	gofs "io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// tarContext is a build context that came as a tar archive. It is kept as that,
// in one file without a name, and read from there: nothing is unpacked on this
// machine that a link in it could lead astray.
type tarContext struct {
	file    *os.File
	digest  string      // hexadecimal SHA-256 of the archive, not compressed
	entries []*tarEntry // directories before what is in them, names in order
	byName  map[string]*tarEntry
}

// tarEntry is a file of the archive.
type tarEntry struct {
	stat   types.Stat
	offset int64 // of its content in the file
}

var _ fsutil.FS = (*tarContext)(nil)

// maxEntries bounds the memory that the list of an archive's files takes.
const maxEntries = 1 << 20

// newTarContext reads an archive, compressed or not. Close it when the build is done.
func newTarContext(body io.Reader) (_ *tarContext, err error) {
	plain, err := store.Decompress(body)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	defer plain.Close()
	f, err := os.CreateTemp("", "build-context-")
	if err != nil {
		return nil, err
	}
	c := &tarContext{file: f, byName: map[string]*tarEntry{}}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	sum := sha256.New()
	in, out := bufio.NewReaderSize(plain, 1<<18), bufio.NewWriterSize(f, 1<<20)
	part := make([]byte, 1<<15)
	position := int64(0)
	for archive := tar.NewReader(io.TeeReader(in, sum)); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fault.New(fault.Invalid, "build context: %w", err).Hint("send a tar archive, by itself or with gzip, bzip2 or zstd")
		}
		if err := c.add(h, position); err != nil {
			return nil, err
		}
		// Not by the writer's ReadFrom, which would go round its buffer.
		n, err := io.CopyBuffer(struct{ io.Writer }{out}, archive, part)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fault.New(fault.Invalid, "build context: the archive ends within %s", h.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("build context: %s: %w", h.Name, err)
		}
		position += n
	}
	if err := out.Flush(); err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	c.sort()
	c.digest = hex.EncodeToString(sum.Sum(nil))
	return c, nil
}

// add takes a file of the archive up. What comes later under a name replaces
// what came before, as unpacking would.
func (c *tarContext) add(h *tar.Header, offset int64) error {
	name := path.Clean("/" + h.Name)[1:]
	switch {
	case strings.Contains(h.Name, "\x00"), slices.Contains(strings.Split(h.Name, "/"), ".."):
		return fault.New(fault.Invalid, "build context: %q is outside of it", h.Name)
	case h.Typeflag == tar.TypeXGlobalHeader, name == "":
		return nil
	case len(c.byName) >= maxEntries:
		return fault.New(fault.Invalid, "build context: more than %d files", maxEntries).Hint("leave out what the build does not need, with .dockerignore")
	}
	e := &tarEntry{stat: types.Stat{Path: name, Mode: uint32(h.FileInfo().Mode()), ModTime: h.ModTime.UnixNano()}, offset: offset} // owned by root, as COPY has it
	for key, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			if e.stat.Xattrs == nil {
				e.stat.Xattrs = map[string][]byte{}
			}
			e.stat.Xattrs[attr] = []byte(value)
		}
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeReg:
		e.stat.Size = h.Size
	case tar.TypeSymlink:
		e.stat.Linkname = h.Linkname
	case tar.TypeLink: // is another file of the same content
		to := c.byName[path.Clean("/" + h.Linkname)[1:]]
		if to == nil || !gofs.FileMode(to.stat.Mode).IsRegular() {
			return fault.New(fault.Invalid, "build context: %q is a link to %q, which is no file before it", h.Name, h.Linkname)
		}
		e.stat.Mode, e.stat.Size, e.offset = to.stat.Mode, to.stat.Size, to.offset
	default:
		return fault.New(fault.Invalid, "build context: %q is a device or something else that no build can use (type %q)", h.Name, h.Typeflag)
	}
	return c.put(e)
}

// put adds an entry, and the directories above it that the archive has left out.
func (c *tarContext) put(e *tarEntry) error {
	for dir := path.Dir(e.stat.Path); dir != "."; dir = path.Dir(dir) {
		above := c.byName[dir]
		if above == nil {
			c.byName[dir] = &tarEntry{stat: types.Stat{Path: dir, Mode: uint32(gofs.ModeDir | 0o755), ModTime: e.stat.ModTime}}
		} else if !gofs.FileMode(above.stat.Mode).IsDir() {
			return fault.New(fault.Invalid, "build context: %q is in %q, which is no directory", e.stat.Path, dir)
		}
	}
	old := c.byName[e.stat.Path]
	if old != nil && gofs.FileMode(old.stat.Mode).IsDir() && !gofs.FileMode(e.stat.Mode).IsDir() {
		return fault.New(fault.Invalid, "build context: %q is a directory and something else", e.stat.Path)
	}
	c.byName[e.stat.Path] = e
	return nil
}

// sort lists the entries as a walk over directories would come by them.
func (c *tarContext) sort() {
	c.entries = make([]*tarEntry, 0, len(c.byName))
	for _, e := range c.byName {
		c.entries = append(c.entries, e)
	}
	order := func(e *tarEntry) string { return strings.ReplaceAll(e.stat.Path, "/", "\x00") }
	slices.SortFunc(c.entries, func(a, b *tarEntry) int { return cmp.Compare(order(a), order(b)) })
}

// has reports whether there is a file, or a link that may lead to one.
func (c *tarContext) has(name string) bool {
	e := c.byName[name]
	return e != nil && !gofs.FileMode(e.stat.Mode).IsDir()
}

// Close removes the archive.
func (c *tarContext) Close() { c.file.Close() }

// Walk implements fsutil.FS.
func (c *tarContext) Walk(ctx context.Context, target string, fn gofs.WalkDirFunc) error {
	target = path.Clean("/" + target)[1:]
	skip := "" // a directory, with a slash at its end
	for _, e := range c.entries {
		name := e.stat.Path
		if target != "" && name != target && !strings.HasPrefix(name, target+"/") || skip != "" && strings.HasPrefix(name, skip) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := fn(name, &fsutil.DirEntryInfo{Stat: e.stat.Clone()}, nil)
		switch {
		case err == nil:
		case errors.Is(err, gofs.SkipAll):
			return nil
		case errors.Is(err, gofs.SkipDir) && e.stat.IsDir():
			skip = name + "/"
		case errors.Is(err, gofs.SkipDir): // the rest of the directory it is in
			if skip = path.Dir(name) + "/"; skip == "./" {
				return nil
			}
		default:
			return err
		}
	}
	return nil
}

// Open implements fsutil.FS.
func (c *tarContext) Open(name string) (io.ReadCloser, error) {
	e := c.byName[path.Clean("/" + name)[1:]]
	if e == nil || !gofs.FileMode(e.stat.Mode).IsRegular() {
		return nil, &gofs.PathError{Op: "open", Path: name, Err: gofs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(c.file, e.offset, e.stat.Size)), nil
}
