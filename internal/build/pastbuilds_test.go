package build

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// random is a step that comes out differently each time it runs.
const random = "COPY file /file\nRUN cat /proc/sys/kernel/random/uuid > /id\n"

// withoutCache takes BuildKit's cache away, and leaves what is remembered of
// builds: steps that run now come out differently.
func (b *builder) withoutCache() {
	b.t.Helper()
	b.stop()
	if err := os.RemoveAll(b.opt.Root); err != nil {
		b.t.Fatal(err)
	}
}

// TestPastBuilds: a build of which nothing has changed is answered without
// BuildKit, as BuildKit would; any change has it built.
func TestPastBuilds(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	first := b.build("t=app&t=second", random, "file", "1")
	if first.id == "" {
		t.Fatalf("%+v", first)
	}
	b.withoutCache()
	var named []string
	b.OnNamed(func(_ context.Context, name string) { named = append(named, name) })
	again := b.build("t=app&t=third", random, "file", "1")
	if steps := strings.Count(first.text, "Step "); again.id != first.id || b.kit != nil || steps != 3 || strings.Count(again.text, "Step ") != steps ||
		strings.Count(again.text, "Using cache") != steps || !strings.Contains(again.text, "Successfully tagged third:latest") {
		t.Errorf("unchanged: %+v, before: %+v; BuildKit has started: %v", again, first, b.kit != nil)
	}
	if got := strings.Join(named, " "); got != "app:latest third:latest" {
		t.Errorf("told of %q", got)
	}
	for _, name := range []string{"app", "second", "third"} {
		if img, err := b.machine.Store.Image(t.Context(), name); err != nil || img.ID != first.id {
			t.Errorf("%s is %s, %v", name, img.ID, err)
		}
	}
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	for what, build := range map[string]func() answer{
		"another file": func() answer { return b.build("t=app", random, "file", "2") },
		"another step": func() answer { return b.build("t=app", random+"RUN true", "file", "1") },
		"an argument": func() answer {
			return b.build("t=app&"+url.Values{"buildargs": {`{"A":"1"}`}}.Encode(), "ARG A\n"+random, "file", "1")
		},
		"a label": func() answer {
			return b.build("t=app&"+url.Values{"labels": {`{"a":"1"}`}}.Encode(), random, "file", "1")
		},
		"no cache wanted": func() answer { return b.build("t=app&nocache=1", random, "file", "1") },
		"another platform": func() answer {
			return b.build("t=app&platform=linux/"+other, "FROM scratch\nCOPY file /file", "file", "1")
		},
	} {
		if a := build(); a.id == "" || a.id == first.id {
			t.Errorf("%s: %+v", what, a)
		}
	}
}

// TestPastBuildsGone: what a past build has come to does not outlive that which
// it depends on.
func TestPastBuildsGone(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	onBase := func(query string) answer {
		t.Helper()
		return b.post(t.Context(), query, contextOf(t, "FROM base\n"+random, "file", "1"))
	}
	if err := b.machine.Store.Tag(t.Context(), enginetest.Busybox, "base"); err != nil {
		t.Fatal(err)
	}
	last := onBase("t=app")
	for _, change := range []struct {
		what string
		make func() error
	}{
		{"the base is another image", func() error {
			b.build("t=base", "RUN true")
			return nil
		}},
		{"the image is gone", func() error {
			_, _, err := b.machine.Store.Remove(t.Context(), "app", false)
			b.withoutCache()
			return err
		}},
		{"the cache was pruned", func() error {
			_, err := b.PruneCache(t.Context(), Prune{All: true})
			return err
		}},
		{"it is long ago", func() error {
			for key, past := range b.past.done {
				past.confirmed = past.confirmed.Add(-pastBuildAge)
				b.past.done[key] = past
			}
			b.withoutCache()
			return nil
		}},
		{"the clock was set back", func() error {
			for key, past := range b.past.done {
				past.confirmed = time.Now().Add(time.Hour)
				b.past.done[key] = past
			}
			b.withoutCache()
			return nil
		}},
	} {
		if err := change.make(); err != nil {
			t.Fatal(err)
		}
		a := onBase("t=app")
		if a.id == "" || a.id == last.id {
			t.Errorf("%s, and %+v", change.what, a)
		}
		last = a
	}
}

// TestPastBuildsUnknown: builds that take something from elsewhere are not remembered.
func TestPastBuildsUnknown(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	b.build("t=app", random, "file", "1") // the busybox of tests is there, and is known
	if len(b.past.done) != 1 {
		t.Fatalf("%d builds remembered", len(b.past.done))
	}
	files := httptest.NewServer(http.FileServer(http.Dir(t.TempDir())))
	defer files.Close()
	if a := b.build("t=app", "ADD "+files.URL+"/ /remote"); a.id == "" || len(b.past.done) != 1 {
		t.Errorf("%+v", a)
	}
	if a := b.build("t=app", "COPY --from="+enginetest.Busybox+" /bin/busybox /copy"); a.id == "" || len(b.past.done) != 2 {
		t.Errorf("%+v, %d builds remembered", a, len(b.past.done))
	}
	if _, err := b.Unchanged(t.Context(), "nobody's", []string{"app"}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := b.Unchanged(t.Context(), "nobody's", []string{"App"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// TestPastBuildsBounded: the builds that were confirmed last are kept.
func TestPastBuildsBounded(t *testing.T) {
	p := newPastBuilds(nil)
	for i := range maxPastBuilds + 10 {
		p.remember(fmt.Sprint(i), pastBuild{})
	}
	_, first := p.done["0"]
	if _, last := p.done[fmt.Sprint(maxPastBuilds+9)]; len(p.done) != maxPastBuilds || first || !last {
		t.Errorf("%d builds; the first is there: %v, the last: %v", len(p.done), first, last)
	}
}
