package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/fault"
)

const (
	// maxTries is how often a download that does not get on is tried.
	maxTries = 6
	// getsOn is what a try must bring for the next to count as the first.
	getsOn = 1 << 20
	// firstPause is the time before the second try; it doubles with each.
	firstPause = 500 * time.Millisecond
	// copyBuffer is how much is read and written at a time.
	copyBuffer = 256 << 10
)

// fetcher brings the blobs of one pull into the content store. What is begun is
// kept for a day whatever becomes of the pull, and taken up where it ended;
// what is complete is kept by the lease.
type fetcher struct {
	store  *Store
	remote remotes.Fetcher
	lease  string
}

// leased gives ctx the pull's lease. Downloads under way do not have it, or its
// end would be theirs.
func (f *fetcher) leased(ctx context.Context) context.Context { return leases.WithLease(ctx, f.lease) }

// have reports whether a blob is there, and keeps it.
func (f *fetcher) have(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	err := f.store.leases.AddResource(ctx, leases.Lease{ID: f.lease}, leases.Resource{ID: desc.Digest.String(), Type: "content"})
	if err != nil {
		return false, err
	}
	info, err := f.store.db.ContentStore().Info(ctx, desc.Digest)
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case info.Size != desc.Size:
		return false, fault.New(fault.Invalid, "blob %s has %d bytes, not %d", desc.Digest, info.Size, desc.Size).
			Hint("the image's manifest is wrong")
	}
	return true, nil
}

// fetch downloads a blob unless it is there. One that somebody else downloads
// is waited for. report is told how many bytes have come, often.
func (f *fetcher) fetch(ctx context.Context, desc ocispec.Descriptor, report func(done int64)) error {
	if err := desc.Digest.Validate(); err != nil {
		return fault.New(fault.Invalid, "digest %q: %w", desc.Digest, err)
	}
	if desc.Size < 0 {
		return fault.New(fault.Invalid, "blob %s: its size is said to be %d", desc.Digest, desc.Size)
	}
	unlock, err := f.store.fetching.lock(ctx, desc.Digest.String())
	if err != nil {
		return err
	}
	defer unlock()
	if there, err := f.have(ctx, desc); there || err != nil {
		return err
	}
	desc.URLs = nil // whoever made the image could have us ask any address
	for try := 1; ; try++ {
		came, err := f.try(ctx, desc, report)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if came >= getsOn {
			try = 1
		}
		if !passes(err) {
			return fmt.Errorf("blob %s: %w", desc.Digest, err)
		}
		if try >= maxTries {
			return fault.New(fault.Unavailable, "blob %s: given up after %d tries: %w", desc.Digest, try, err).
				Hint("try again later; what was received is kept for a day")
		}
		f.store.opt.Log.Info("a download ended early and is taken up again", "blob", desc.Digest, "error", err)
		select {
		case <-time.After(cmp.Or(f.store.opt.RetryPause, firstPause) << (try - 1)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try downloads what is missing of a blob and returns how much came.
func (f *fetcher) try(ctx context.Context, desc ocispec.Descriptor, report func(int64)) (came int64, err error) {
	blobs, ref := f.store.db.ContentStore(), "pull-"+desc.Digest.String()
	w, err := content.OpenWriter(ctx, blobs, content.WithRef(ref), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer w.Close()
	status, err := w.Status()
	if err != nil {
		return 0, err
	}
	begin := status.Offset
	if begin > desc.Size {
		if err := w.Truncate(0); err != nil {
			return 0, err
		}
		begin = 0
	}
	if begin < desc.Size {
		if err := f.store.room(desc.Size - begin); err != nil {
			return 0, err
		}
		if came, err = f.copy(ctx, w, desc, begin, report); err != nil {
			return came, err
		}
	}
	err = w.Commit(f.leased(ctx), desc.Size, desc.Digest)
	if err == nil || errdefs.IsAlreadyExists(err) {
		return came, nil
	}
	if errdefs.IsFailedPrecondition(err) { // its bytes are others than those announced
		wrong := errors.Join(errWrongBytes, w.Close(), blobs.Abort(ctx, ref))
		if begin == 0 {
			return came, fault.New(fault.Invalid, "the registry sent other bytes than the digest says: %w", err).
				Hint("the registry is damaged, or something between here and there changes what it sends")
		}
		return came, wrong // what was there from before may be to blame
	}
	return came, err
}

// errWrongBytes is a blob that does not have its digest though it was not
// downloaded in one piece: worth another try, from the beginning.
var errWrongBytes = errors.New("the download that was taken up has the wrong digest")

func (f *fetcher) copy(ctx context.Context, w io.Writer, desc ocispec.Descriptor, begin int64, report func(int64)) (int64, error) {
	var in io.Reader
	if int64(len(desc.Data)) == desc.Size {
		in = bytes.NewReader(desc.Data[begin:])
	} else {
		body, err := f.remote.Fetch(ctx, desc)
		if err != nil {
			return 0, err
		}
		defer body.Close()
		if begin > 0 {
			seeker, ok := body.(io.Seeker)
			if !ok {
				return 0, fmt.Errorf("no seeking in %T", body)
			}
			if _, err := seeker.Seek(begin, io.SeekStart); err != nil {
				return 0, err
			}
		}
		in = body
	}
	// One byte more than announced is enough to know.
	in = io.LimitReader(in, desc.Size-begin+1)
	n, err := io.CopyBuffer(&counter{w, begin, report}, onlyReader{in}, make([]byte, copyBuffer))
	if begin+n > desc.Size || errdefs.IsFailedPrecondition(err) {
		return n, fault.New(fault.Invalid, "the registry sends more than the %d bytes that it announced", desc.Size).Hint("the registry is damaged")
	}
	if err == nil && begin+n < desc.Size {
		err = fmt.Errorf("after %d of %d bytes: %w", begin+n, desc.Size, io.ErrUnexpectedEOF)
	}
	return n, err
}

// onlyReader hides a WriteTo, which would not use the buffer.
type onlyReader struct{ io.Reader }

// counter reports how much was written.
type counter struct {
	io.Writer
	done   int64
	report func(int64)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.done += int64(n)
	c.report(c.done)
	return n, err
}

// passes reports whether another try may have better luck after err.
func passes(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return false
	case errors.As(err, &status):
		return status.StatusCode >= 500 || status.StatusCode == 429 || status.StatusCode == 408
	case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), errdefs.IsFailedPrecondition(err),
		errors.Is(err, docker.ErrInvalidAuthorization), fault.Is(err, fault.Invalid):
		return false
	}
	return true
}
