package build

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/engine/store"
)

// TestOrphans: a build that was killed after it made a layer and before it
// recorded it leaves nothing; what is recorded, and what the store itself is in
// the middle of, stays.
func TestOrphans(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	if a := b.build("t=kept", "RUN echo kept > /kept"); a.id == "" {
		t.Fatalf("%+v", a)
	}
	// BuildKit keeps the sums of contexts by process, with the database that is closed now.
	if _, err := b.PruneCache(t.Context(), Prune{Filters: map[string][]string{"type": {"source.local"}}}); err != nil {
		t.Fatal(err)
	}
	b.stop()
	ctx, s := named(t.Context()), b.machine.Store
	// As BuildKit's cache does it, up to the record.
	layer := func(lease, name string, label string) {
		t.Helper()
		l, err := s.Leases().Create(ctx, leases.WithID(lease), leases.WithLabel(label, "2026-01-01T00:00:00Z"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Leases().AddResource(ctx, l, leases.Resource{ID: name, Type: "snapshots/" + store.SnapshotterName}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshotter().Prepare(ctx, name, ""); err != nil {
			t.Fatal(err)
		}
	}
	layer("t0p2kyxs2x1vdu6pzz7e4ejyd", "t0p2kyxs2x1vdu6pzz7e4ejyd", "containerd.io/gc.flat")
	layer("lsvdmrvvyvxtk4fofzpiiqypx"+variantsSuffix, "variant", "containerd.io/gc.flat")
	layer("pull", "pulled", store.LabelLease)
	b.start()
	if a := b.build("t=kept", "RUN echo kept > /kept"); !strings.Contains(a.text, "Using cache") {
		t.Errorf("the cache is lost: %+v", a)
	}
	if err := s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"t0p2kyxs2x1vdu6pzz7e4ejyd": false, "variant": false, "pulled": true} {
		if _, err := s.Snapshotter().Stat(ctx, name); (err == nil) != want || err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v, there should be one: %v", name, err, want)
		}
	}
	if a := b.build("t=kept", "RUN echo kept > /kept\nRUN cat /kept"); !strings.Contains(a.text, "Using cache") || !strings.Contains(a.text, "\nkept\n") {
		t.Errorf("the cache is lost: %+v", a)
	}
}
