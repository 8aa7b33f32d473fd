package build

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/leaseutil"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestRebuildWritesNothing: of a rebuild of which nothing changes the image
// store's metadata knows nothing, and what it leans on is let go of later.
func TestRebuildWritesNothing(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	build := func() {
		t.Helper()
		b.past.forget() // else BuildKit would have nothing to do
		if a := b.build("t=kept", "RUN echo kept > /kept\nCOPY a /a\nENV A=1", "a", "content"); a.id == "" {
			t.Fatalf("%+v", a)
		}
	}
	// metas are the two pages that a commit of bbolt ends with, in turns.
	metas := func() []byte {
		t.Helper()
		f, err := os.Open(filepath.Join(b.machine.Dir(), "store", "meta.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		pages := make([]byte, 2*os.Getpagesize())
		if _, err := io.ReadFull(f, pages); err != nil {
			t.Fatal(err)
		}
		return pages
	}
	build()
	wrote := true
	for range 10 { // what goes on behind the first ones, such as a collection, writes too
		before := metas()
		build()
		if wrote = !bytes.Equal(before, metas()); !wrote {
			break
		}
	}
	if wrote {
		t.Error("every rebuild writes to the image store's metadata")
	}
	lease := leases.Lease{ID: b.kit.lease.id}
	b.kit.lease.endIdle()
	if _, err := b.machine.Store.Leases().ListResources(named(t.Context()), lease); !errdefs.IsNotFound(err) {
		t.Errorf("the lease outlives the builds: %v", err)
	}
	build()
}

// TestBuildLease: short leases are one, that of a build outlives it by a little,
// and all others are made as they are asked for.
func TestBuildLease(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	ctx, all := named(t.Context()), b.machine.Store.Leases()
	l := newBuildLease(t.Context(), all, b.opt.Log)
	create := func(opts ...leases.Opt) string {
		t.Helper()
		made, err := l.Create(ctx, append([]leases.Opt{leases.WithRandomID()}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	short := []leases.Opt{leases.WithExpiration(5 * time.Minute), leaseutil.MakeTemporary}
	first := create(short...)
	if second := create(short...); second != first {
		t.Errorf("two leases, %s and %s", first, second)
	}
	for _, own := range [][]leases.Opt{{leaseutil.MakeTemporary}, {leases.WithExpiration(time.Hour), leaseutil.MakeTemporary}, {leases.WithExpiration(time.Minute)}} {
		if id := create(own...); id == first {
			t.Errorf("%v shares the lease of builds", own)
		}
	}
	inside, done, err := l.enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if id, _ := leases.FromContext(inside); id != first {
		t.Errorf("a build has the lease %q, not %q", id, first)
	}
	r := leases.Resource{ID: "sha256:" + strings.Repeat("a", 64), Type: "content"}
	if err := l.AddResource(ctx, leases.Lease{ID: first}, r); err != nil || !l.holds(first, r) {
		t.Errorf("add a resource: %v, it is held: %v", err, l.holds(first, r))
	}
	l.endIdle()
	if _, err := all.ListResources(ctx, leases.Lease{ID: first}); err != nil {
		t.Errorf("the lease of a build under way: %v", err)
	}
	done()
	if l.idle == nil || time.Until(l.until) < leaseDelay/2 {
		t.Error("nothing ends the lease, or too early")
	}
	if err := l.Delete(ctx, leases.Lease{ID: first}); err != nil {
		t.Error(err)
	}
	if _, err := all.ListResources(ctx, leases.Lease{ID: first}); !errdefs.IsNotFound(err) {
		t.Errorf("the lease that nobody needs: %v", err)
	}
	if err := l.Delete(ctx, leases.Lease{ID: first}); !errdefs.IsNotFound(err) {
		t.Errorf("end it once more: %v", err)
	}
	if l.holds(first, r) {
		t.Error("a lease that has ended holds something")
	}
}

// TestSameLabels: only an update of labels that have these values already is none.
func TestSameLabels(t *testing.T) {
	old := map[string]string{"a": "1"}
	for _, tt := range []struct {
		want   map[string]string
		fields []string
		same   bool
	}{
		{map[string]string{"a": "1"}, []string{"labels.a"}, true},
		{map[string]string{}, []string{"labels.b"}, true},
		{map[string]string{"a": "2"}, []string{"labels.a"}, false},
		{map[string]string{}, []string{"labels.a"}, false},
		{map[string]string{"a": "1"}, []string{"labels"}, false},
		{map[string]string{"a": "1"}, nil, false},
	} {
		if got := sameLabels(old, tt.want, tt.fields); got != tt.same {
			t.Errorf("%v of %v: %v", tt.fields, tt.want, got)
		}
	}
}
