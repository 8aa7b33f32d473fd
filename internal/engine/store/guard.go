package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/ferryos/ferry/internal/fault"
)

const (
	// idleTimeout is how long a registry may be silent in the middle of an answer.
	idleTimeout = time.Minute
	// maxDocument bounds what is read of an answer that is no blob: manifests,
	// tokens, errors. Docker's limit for a manifest is 4 MiB.
	maxDocument = 8 << 20
)

// errStalled is why a request ended in which nothing moved.
var errStalled = errors.New("the registry has gone silent")

// guard is the transport of everything that is asked of a registry. It ends an
// exchange in which no byte moves, and one whose answer has no end.
type guard struct {
	next http.RoundTripper
	idle time.Duration
}

// RoundTrip implements http.RoundTripper.
func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{idle: g.idle, cancel: cancel}
	w.timer = time.AfterFunc(g.idle, func() { cancel(errStalled) })
	inner := req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		inner.Body = &guardedBody{ReadCloser: req.Body, watch: w, ctx: ctx.Err, left: -1}
	}
	resp, err := g.next.RoundTrip(inner)
	if err != nil {
		w.end()
		return nil, stalled(ctx, g.idle, err)
	}
	w.timer.Stop() // until it is read from: the reader may take its time
	body := &guardedBody{ReadCloser: resp.Body, watch: w, answer: true, left: -1}
	body.ctx = func() error { return stalled(ctx, g.idle, nil) }
	if !asksForBlob(req) {
		body.left = maxDocument
	}
	resp.Body = body
	return resp, nil
}

// CloseIdleConnections is what http.Client looks for.
func (g guard) CloseIdleConnections() {
	if c, ok := g.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// asksForBlob looks at the request that redirects began with: a registry may
// keep its blobs elsewhere.
func asksForBlob(req *http.Request) bool {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/")
}

// stalled is err, or what ended the exchange if that was its silence.
func stalled(ctx context.Context, idle time.Duration, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return fault.New(fault.Unavailable, "%w for %s", errStalled, idle)
	}
	return err
}

// watch ends an exchange when nothing has moved for a while.
type watch struct {
	idle   time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// guardedBody is a request's or an answer's body.
type guardedBody struct {
	io.ReadCloser
	watch  *watch
	ctx    func() error // why the exchange ended
	answer bool
	left   int64 // bytes that may follow, negative for any number
}

// Read implements io.Reader. What is waited for is the other side alone: an
// answer's next bytes, or that the bytes of a request were taken.
func (b *guardedBody) Read(p []byte) (int, error) {
	if b.answer {
		b.watch.timer.Reset(b.watch.idle)
	}
	n, err := b.ReadCloser.Read(p)
	if b.answer {
		b.watch.timer.Stop()
	} else {
		b.watch.timer.Reset(b.watch.idle)
	}
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			return 0, fault.New(fault.Invalid, "the registry's answer is longer than %d bytes", int64(maxDocument))
		}
	}
	if err != nil && err != io.EOF {
		if cause := b.ctx(); cause != nil {
			err = cause
		} else {
			err = fmt.Errorf("read from the registry: %w", err)
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *guardedBody) Close() error {
	err := b.ReadCloser.Close()
	if b.answer {
		b.watch.end()
	}
	return err
}
