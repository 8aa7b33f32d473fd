package store

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// maxLayers is how many layers the kernel's overlay stacks.
const maxLayers = 500

// unpackers is how many layers are unpacked at a time.
func unpackers() int64 { return int64(max(2, runtime.NumCPU())) }

// unpack makes the snapshots of an image's layers; ctx has a lease. ready is
// called for each layer, of all at once, and returns when its blob is there.
//
// Each layer is written once, straight to its place below the snapshotter, as
// soon as its blob is there and verified, whatever becomes of the layers beneath
// it: a layer of an overlay does not depend on them but in the attributes of
// directories that it does not describe itself (see inheritParents). The layers
// are put on each other at the end, in order.
func (s *Store) unpack(ctx context.Context, img Image, ready func(ctx context.Context, layer int) error, report func(Event)) error {
	switch {
	case len(img.Layers) != len(img.DiffIDs):
		return fault.New(fault.Invalid, "unpack image %s: %d layers, but %d of them described", img.ID, len(img.Layers), len(img.DiffIDs)).
			Hint("its manifest and its configuration do not belong together")
	case len(img.Layers) > maxLayers:
		return fault.New(fault.Unsupported, "unpack image %s: it has %d layers; at most %d are possible", img.ID, len(img.Layers), maxLayers)
	}
	chains := identity.ChainIDs(append([]digest.Digest(nil), img.DiffIDs...))
	slots := semaphore.NewWeighted(unpackers())
	below := make(chan struct{}) // closed when the layer beneath is in its place
	close(below)
	g, ctx := errgroup.WithContext(ctx)
	for i := range img.Layers {
		l := &layer{store: s, blob: img.Layers[i], diffID: img.DiffIDs[i], chain: chains[i].String(), bottom: i == 0, report: report}
		if i > 0 {
			l.parent = chains[i-1].String()
		}
		wait, placed := below, make(chan struct{})
		below = placed
		g.Go(func() error {
			if err := ready(ctx, i); err != nil {
				return err
			}
			if err := l.make(ctx, slots, wait); err != nil {
				return fmt.Errorf("unpack layer %s: %w", l.blob.Digest, err)
			}
			close(placed)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return asFault(err)
	}
	return nil
}

// layer is a layer on its way into a snapshot.
type layer struct {
	store         *Store
	blob          ocispec.Descriptor
	diffID        digest.Digest
	chain, parent string // names of its snapshot and of that beneath
	bottom        bool
	report        func(Event)

	implied map[string]bool // directories that the layer has but does not describe
}

// make makes the layer's snapshot unless it is there.
func (l *layer) make(ctx context.Context, slots *semaphore.Weighted, below <-chan struct{}) error {
	unlock, err := l.store.unpacked.lock(ctx, l.chain)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := l.store.snapshotter.Stat(ctx, l.chain); err == nil {
		return nil
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	key := fmt.Sprintf(snapshots.UnpackKeyFormat, hex.EncodeToString(id), l.chain)
	mounts, err := l.store.snapshotter.Prepare(ctx, key, "")
	if err != nil {
		return err
	}
	if err := l.place(ctx, key, mounts[0].Source, slots, below); err != nil {
		// Its files go in the background, its name at once.
		return errors.Join(err, l.store.snapshotter.Remove(context.WithoutCancel(ctx), key))
	}
	return nil
}

// place fills dir, which is the snapshot key's, and puts it on the layer beneath.
func (l *layer) place(ctx context.Context, key, dir string, slots *semaphore.Weighted, below <-chan struct{}) error {
	if err := slots.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	err := l.apply(ctx, dir)
	slots.Release(1)
	if err != nil {
		return err
	}
	select {
	case <-below:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := l.inheritParents(ctx, dir); err != nil {
		return err
	}
	var opts []snapshots.Opt
	if l.parent != "" {
		opts = append(opts, snapshots.WithParent(l.parent))
	}
	if err := l.store.snapshotter.Commit(ctx, l.chain, key, opts...); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	l.report(Event{ID: l.blob.Digest, Status: StatusComplete})
	return nil
}

// apply writes the layer's files to dir and verifies what it read. It trusts
// the blob for nothing but that it is the one with this digest.
func (l *layer) apply(ctx context.Context, dir string) error {
	if !images.IsLayerType(l.blob.MediaType) || strings.HasSuffix(l.blob.MediaType, "+encrypted") {
		return fault.New(fault.Unsupported, "layers of type %s cannot be unpacked", l.blob.MediaType)
	}
	ra, err := l.store.db.ContentStore().ReaderAt(ctx, l.blob)
	if err != nil {
		return err
	}
	defer ra.Close()
	l.report(Event{ID: l.blob.Digest, Status: StatusExtracting, Total: l.blob.Size})
	in := &readCounter{Reader: content.NewReader(ra), ended: ctx.Err, report: func(n int64) {
		l.report(Event{ID: l.blob.Digest, Status: StatusExtracting, Current: n, Total: l.blob.Size})
	}}
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return fault.New(fault.Invalid, "decompress: %w", err)
	}
	ahead := readAhead(plain)
	digester := l.diffID.Algorithm()
	if !digester.Available() {
		return errors.Join(fault.New(fault.Invalid, "digest %q of the layer's content", l.diffID), ahead.Close(), plain.Close())
	}
	hash := digester.Hash()
	err = l.untar(ctx, dir, io.TeeReader(ahead, hash))
	err = errors.Join(err, ahead.Close(), plain.Close())
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	if got := digest.NewDigest(digester, hash); got != l.diffID {
		return fault.New(fault.Invalid, "its content has the digest %s, and the image's configuration says %s", got, l.diffID).
			Hint("the image was put together wrongly; build and push it again")
	}
	return nil
}

func (l *layer) untar(ctx context.Context, dir string, in io.Reader) error {
	described := map[string]bool{}
	l.implied = map[string]bool{}
	var written int64
	opts := []archive.ApplyOpt{archive.WithFilter(func(h *tar.Header) (bool, error) {
		if h.Typeflag == tar.TypeDir {
			described[h.Name] = true
			delete(l.implied, h.Name)
		}
		for p := path.Dir(h.Name); p != "." && p != "/" && !described[p] && !l.implied[p]; p = path.Dir(p) {
			l.implied[p] = true
		}
		// Looked at again after each 64 MB, and before a file that says it is large.
		if written += h.Size; written > 64<<20 {
			written = 0
			return true, l.store.room(h.Size)
		}
		return true, nil
	})}
	if !l.bottom {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if _, err := archive.Apply(ctx, dir, in, opts...); err != nil {
		return badArchive(err)
	}
	_, err := io.Copy(io.Discard, in) // what follows the archive is part of the digest
	return err
}

// archiveErrors are what the kernel says of names and links that make no sense.
var archiveErrors = []syscall.Errno{syscall.ENOENT, syscall.EEXIST, syscall.ENOTDIR, syscall.EISDIR, syscall.EINVAL, syscall.ENAMETOOLONG, syscall.ELOOP}

// badArchive tells an archive that is damaged from a machine that fails.
func badArchive(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok && !slices.Contains(archiveErrors, errno) {
		return err
	}
	if fault.KindOf(err) != fault.Internal {
		return err
	}
	return fault.New(fault.Invalid, "the layer cannot be unpacked: %w", err)
}

// room returns an error if a file of so many bytes would leave the disk all but
// full: what runs on the machine needs it too.
func (s *Store) room(size int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.opt.Root, &fs); err != nil {
		return err
	}
	total, free := int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	if reserve := min(total/50, 256<<20); size > free-reserve {
		return fault.New(fault.Unavailable, "%d more bytes would fill the disk, of which %d are free: %w", size, free, syscall.ENOSPC)
	}
	return nil
}

// readCounter reports how much was read, and ends when nobody wants more.
type readCounter struct {
	io.Reader
	ended  func() error
	done   int64
	report func(int64)
}

func (r *readCounter) Read(p []byte) (int, error) {
	if err := r.ended(); err != nil {
		return 0, err
	}
	n, err := r.Reader.Read(p)
	r.done += int64(n)
	r.report(r.done)
	return n, err
}

// aheadBuffer is how much is decompressed ahead of what is unpacked.
const aheadBuffer = 1 << 20

// readAhead reads r on a goroutine of its own, so that decompressing a layer
// and writing its files are done by two processors. Close waits for it.
func readAhead(r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	a := &aheadReader{Reader: bufio.NewReaderSize(pr, aheadBuffer), pipe: pr, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		buf := make([]byte, aheadBuffer)
		for {
			var n int
			var err error
			for n < len(buf) && err == nil {
				var m int
				m, err = r.Read(buf[n:])
				n += m
			}
			if _, gone := pw.Write(buf[:n]); gone != nil {
				return
			}
			if err != nil {
				pw.CloseWithError(err)
				return
			}
		}
	}()
	return a
}

type aheadReader struct {
	io.Reader
	pipe *io.PipeReader
	done chan struct{}
}

func (a *aheadReader) Close() error {
	err := a.pipe.Close()
	<-a.done
	return err
}
