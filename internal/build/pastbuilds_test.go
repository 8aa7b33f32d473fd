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
	for what, pair := range map[string][2]string{ // queries with one Dockerfile and context each
		"an argument": {"t=app&" + url.Values{"buildargs": {`{"A":"1"}`}}.Encode(), "t=app&" + url.Values{"buildargs": {`{"A":"2"}`}}.Encode()},
		"a label":     {"t=app", "t=app&" + url.Values{"labels": {`{"a":"1"}`}}.Encode()},
		"no cache":    {"t=app", "t=app&nocache=1"},
	} {
		const file = "ARG A\n" + random
		if one, two := b.build(pair[0], file, "file", "1"), b.build(pair[1], file, "file", "1"); one.id == "" || two.id == "" || one.id == two.id {
			t.Errorf("%s: %+v and %+v", what, one, two)
		}
	}
	for what, build := range map[string]func() answer{
		"another file": func() answer { return b.build("t=app", random, "file", "2") },
		"another step": func() answer { return b.build("t=app", random+"RUN true", "file", "1") },
		"another platform": func() answer {
			return b.post(t.Context(), "t=app&platform=linux/"+other, contextOf(t, "FROM scratch\nCOPY Dockerfile /"))
		},
	} {
		if a := build(); a.id == "" || a.id == first.id {
			t.Errorf("%s: %+v", what, a)
		}
	}
	if a, again := b.post(t.Context(), "platform=linux/"+other, contextOf(t, "FROM scratch\nCOPY Dockerfile /")), b.post(t.Context(), "", contextOf(t, "FROM scratch\nCOPY Dockerfile /")); a.id == again.id {
		t.Errorf("one image for two platforms: %+v", a)
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
				past.confirmed = time.Now().Add(2 * pastBuildAge)
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

// TestPastBuildsSettings: a base can be nothing but settings, and the first line
// of the Dockerfile can name the frontend that is linked in.
func TestPastBuildsSettings(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	env := func() string {
		t.Helper()
		a := b.post(t.Context(), "t=app", contextOf(t, "# syntax=docker/dockerfile:1\nFROM base\nLABEL a=b"))
		img, err := b.machine.Store.Image(t.Context(), "app")
		if err != nil || img.ID != a.id {
			t.Fatalf("%+v, %+v, %v", a, img, err)
		}
		return strings.Join(img.Config.Env, " ")
	}
	for _, value := range []string{"1", "2", "1"} {
		b.post(t.Context(), "t=base", contextOf(t, "FROM scratch\nENV A="+value))
		for key, past := range b.past.done {
			if _, ok := b.past.find(t.Context(), key, nil); ok && len(past.bases) > 0 {
				t.Errorf("with A=%s in the base, %s of another base holds", value, past.id)
			}
		}
		if got := env(); !strings.Contains(got, "A="+value) {
			t.Errorf("built on A=%s: %s", value, got)
		}
		n := len(b.past.done)
		if got := env(); !strings.Contains(got, "A="+value) || n < 2 {
			t.Errorf("once more on A=%s: %s; %d builds remembered", value, got, n)
		}
	}
	b.withoutCache()
	if got := env(); !strings.Contains(got, "A=1") || b.kit == nil {
		t.Errorf("without a step there is nothing to show from memory: %s, BuildKit has started: %v", got, b.kit != nil)
	}
	if a := b.build("t=linted", "workdir /x\nRUN true"); !strings.Contains(a.text, "Warning") || !strings.Contains(b.build("t=linted", "workdir /x\nRUN true").text, "Warning") {
		t.Errorf("a warning is not seen each time: %+v", a)
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
	p := newPastBuilds(nil, nil)
	for i := range maxPastBuilds + 10 {
		p.remember(fmt.Sprint(i), pastBuild{})
	}
	_, first := p.done["0"]
	if _, last := p.done[fmt.Sprint(maxPastBuilds+9)]; len(p.done) != maxPastBuilds || first || !last {
		t.Errorf("%d builds; the first is there: %v, the last: %v", len(p.done), first, last)
	}
}
