package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// limit bounds what a test waits for; nothing comes near it unless it is broken.
const limit = 60 * time.Second

// builder is a Builder over an engine of its own, behind HTTP.
type builder struct {
	*Builder
	t       *testing.T
	machine *enginetest.Machine
	url     string
}

func newBuilder(t *testing.T) *builder {
	t.Helper()
	b := &builder{t: t, machine: enginetest.New(t)}
	b.start()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := b.ServeBuild(w, r); err != nil {
			w.WriteHeader(fault.HTTPStatus(err))
			_, _ = io.WriteString(w, err.Error())
		}
	}))
	b.url = server.URL
	t.Cleanup(func() {
		server.Close()
		b.stop()
	})
	return b
}

func (b *builder) start() {
	b.Builder = New(Options{Root: filepath.Join(b.machine.Dir(), "store", "build"), Gateway: netip.MustParseAddr("10.1.1.1"), Engine: b.machine.Engine,
		Log: slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
}

func (b *builder) stop() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), limit)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		b.t.Errorf("stop: %v", err)
	}
}

// answer is what a build said.
type answer struct {
	status int
	text   string // all that was written for people, or the error in place of an answer
	id     string
	err    string // at the end of an answer
	code   int    // of the command that failed
}

// contextOf makes a context of a Dockerfile and files: a name and content each.
func contextOf(t *testing.T, dockerfile string, files ...string) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	files = append([]string{"Dockerfile", dockerfile}, files...)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// post builds. The query is Docker's.
func (b *builder) post(ctx context.Context, query string, body io.Reader) answer {
	b.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+"/build?"+query, body)
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if errors.Is(err, context.Canceled) {
		return answer{}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode}
	if res.StatusCode != http.StatusOK {
		data, err := io.ReadAll(res.Body)
		if err != nil {
			b.t.Fatal(err)
		}
		a.text = string(data)
		return a
	}
	for dec := json.NewDecoder(res.Body); ; {
		var m struct {
			Stream, Error string
			Aux           json.RawMessage
			ErrorDetail   struct{ Code int }
		}
		if err := dec.Decode(&m); err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				b.t.Fatal(err)
			}
			return a
		}
		a.text += m.Stream
		if m.Error != "" {
			a.err, a.code = m.Error, m.ErrorDetail.Code
		}
		var built builtImage
		if json.Unmarshal(m.Aux, &built) == nil && built.ID != "" {
			a.id = built.ID
		}
	}
}

// build builds a Dockerfile on busybox, which it calls box.
func (b *builder) build(query, dockerfile string, files ...string) answer {
	b.t.Helper()
	return b.post(b.t.Context(), query, contextOf(b.t, onBox(dockerfile), files...))
}

func onBox(dockerfile string) string { return "FROM " + enginetest.Busybox + " AS box\n" + dockerfile }

func TestClassicBuild(t *testing.T) {
	b := newBuilder(t)
	var named []string
	b.OnNamed(func(_ context.Context, name string) { named = append(named, name) })
	a := b.build("t=app&t=localhost:5000/app:v2&"+url.Values{"buildargs": {`{"WHO":"world"}`}, "labels": {`{"a":"b"}`}}.Encode(),
		"ARG WHO\nCOPY file /file\nRUN echo hello $WHO && echo said >&2\nENV A=b\nUSER 7\nVOLUME /data\nHEALTHCHECK CMD true\nONBUILD RUN true\nSHELL [\"/bin/sh\", \"-e\"]\nSTOPSIGNAL 9\nEXPOSE 80",
		"file", "content")
	for _, want := range []string{"Step 1/3 : FROM", "Step 2/3 : COPY file /file", "hello world\n", "said\n", "Successfully built " + strings.TrimPrefix(a.id, "sha256:")[:12],
		"Successfully tagged app:latest", "Successfully tagged localhost:5000/app:v2"} {
		if !strings.Contains(a.text, want) {
			t.Errorf("%q without %q", a.text, want)
		}
	}
	if strings.Join(named, " ") != "app:latest localhost:5000/app:v2" {
		t.Errorf("told of %q", named)
	}
	img, err := b.machine.Store.Image(t.Context(), "app")
	if err != nil || img.ID != a.id || img.Config.Labels["a"] != "b" || img.Config.User != "7" || len(img.History) < 10 || len(img.Config.ExposedPorts) != 1 ||
		len(img.Config.Volumes) != 1 || img.Config.StopSignal != "9" {
		t.Errorf("%+v, %v", img, err)
	}
	if a := b.build("", "RUN true"); a.id == "" || len(named) != 2 {
		t.Errorf("%+v, told of %q", a, named)
	}
	if again := b.build("t=app&q=1&"+url.Values{"buildargs": {`{"WHO":"world"}`}}.Encode(), "ARG WHO\nCOPY file /file\nRUN echo hello $WHO && echo said >&2", "file", "content"); again.text != again.id+again.text || !strings.HasPrefix(again.text, "sha256:") {
		t.Errorf("quiet: %+v", again)
	}
	if again := b.build(url.Values{"buildargs": {`{"WHO":"world"}`}}.Encode(), "ARG WHO\nCOPY file /file\nRUN echo hello $WHO && echo said >&2", "file", "content"); strings.Count(again.text, "Using cache") != 2 {
		t.Errorf("not cached: %s", again.text)
	}
	if again := b.build("nocache=1&"+url.Values{"buildargs": {`{"WHO":"world"}`}}.Encode(), "ARG WHO\nCOPY file /file\nRUN echo hello $WHO", "file", "content"); strings.Contains(again.text, "Using cache") {
		t.Errorf("cached: %s", again.text)
	}
}

// TestNamelessImages keeps what has no name, and what loses its name.
func TestNamelessImages(t *testing.T) {
	b := newBuilder(t)
	nameless := b.build("", "RUN echo 1 > /1")
	first := b.build("t=app", "RUN echo 2 > /2")
	second := b.build("t=app", "RUN echo 3 > /3")
	b.past.forget()
	again := b.build("t=app", "RUN echo 3 > /3")
	if again.id != second.id {
		t.Errorf("%q and %q", second.id, again.id)
	}
	if err := b.machine.Store.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id, names := range map[string]int{nameless.id: 0, first.id: 0, second.id: 1} {
		if img, err := b.machine.Store.Image(t.Context(), id); err != nil || len(img.Names) != names {
			t.Errorf("%s: %+v, %v", id, img.Names, err)
		}
	}
	if all, err := b.machine.Store.Images(t.Context()); err != nil || len(all) != 4 {
		t.Errorf("%d images, %v", len(all), err)
	}
}

func TestClassicBuildFails(t *testing.T) {
	b := newBuilder(t)
	for _, tt := range []struct {
		name, query, dockerfile string
		status                  int
		says                    string
		code                    int
	}{
		{"command", "", "RUN echo before && exit 3", 200, "The command '/bin/sh -c echo before && exit 3' returned a non-zero code: 3", 3},
		{"syntax", "", "RUUN true", 400, "dockerfile parse error on line 2: unknown instruction: RUUN", 0},
		{"no Dockerfile", "dockerfile=other", "", 400, "Cannot locate specified Dockerfile: other", 0},
		{"source", "", "COPY nothing /", 200, `"/nothing": not found`, 0},
		{"target", "target=nothing", "", 400, "target stage \"nothing\" could not be found", 0},
		{"user", "", "USER nobody-here\nRUN true", 200, "nobody-here", 0},
		{"insecure", "", "RUN --security=insecure true", 403, "security.insecure is not allowed", 0},
		{"host network", "", "RUN --network=host true", 403, "network.host is not allowed", 0},
	} {
		a := b.build(tt.query, tt.dockerfile)
		if said := a.text + a.err; tt.status != 0 && a.status != tt.status || !strings.Contains(said, tt.says) || a.code != tt.code || a.id != "" {
			t.Errorf("%s: %+v", tt.name, a)
		}
	}
	if a := b.build("networkmode=host", "RUN true"); a.id == "" {
		t.Errorf("host network, allowed: %+v", a)
	}
	if a := b.post(t.Context(), "", strings.NewReader("")); a.status != 400 {
		t.Errorf("no context: %+v", a)
	}
}

// TestSyntaxLine: the frontend that most Dockerfiles ask for is here.
func TestSyntaxLine(t *testing.T) {
	b := newBuilder(t)
	for _, syntax := range []string{"docker/dockerfile:1", "docker/dockerfile", "docker.io/docker/dockerfile:1.7", "docker/dockerfile-upstream:master"} {
		a := b.post(t.Context(), "", contextOf(t, "# syntax="+syntax+"\n"+onBox("RUN <<EOF\necho 'a\nb' > /x\nEOF\nCOPY <<EOF /y\ntext\nEOF")))
		if a.id == "" {
			t.Errorf("%s: %+v", syntax, a)
		}
	}
	for source, want := range map[string]bool{"docker/dockerfile:1-labs": false, "docker/dockerfile:labs": false, "example.org/docker/dockerfile:1": false,
		"docker/dockerfile@sha256:" + strings.Repeat("a", 64): false, "docker/dockerfile:1.17.0": true, "": false} {
		if got := isBuiltin(source); got != want {
			t.Errorf("%q: %v", source, got)
		}
	}
}

func TestCache(t *testing.T) {
	b := newBuilder(t)
	if list, err := b.CacheUsage(t.Context()); err != nil || len(list) != 0 || b.kit != nil {
		t.Errorf("before the first build: %v, %v", list, err)
	}
	if report, err := b.PruneCache(t.Context(), Prune{All: true}); err != nil || len(report.CachesDeleted) != 0 {
		t.Errorf("%v, %v", report, err)
	}
	if a := b.build("", "RUN --mount=type=cache,target=/c echo > /c/x\nRUN echo 1 > /1"); a.id == "" {
		t.Fatalf("%+v", a)
	}
	list, err := b.CacheUsage(t.Context())
	if err != nil || len(list) < 4 {
		t.Errorf("%+v, %v", list, err)
	}
	kinds := map[string]int{}
	for _, r := range list {
		kinds[r.Type]++
		if r.ID == "" || r.CreatedAt.IsZero() {
			t.Errorf("%+v", r)
		}
	}
	if kinds["exec.cachemount"] != 1 || kinds["source.local"] == 0 || kinds["regular"] == 0 {
		t.Errorf("%v", kinds)
	}
	report, err := b.PruneCache(t.Context(), Prune{Filters: map[string][]string{"type": {"exec.cachemount"}}})
	if err != nil || len(report.CachesDeleted) != 1 || report.SpaceReclaimed == 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if report, err := b.PruneCache(t.Context(), Prune{All: true, Filters: map[string][]string{"until": {"1h"}}}); err != nil || len(report.CachesDeleted) != 0 {
		t.Errorf("younger than an hour: %+v, %v", report, err)
	}
	if report, err := b.PruneCache(t.Context(), Prune{All: true}); err != nil || len(report.CachesDeleted) == 0 {
		t.Errorf("%+v, %v", report, err)
	}
	if list, err := b.CacheUsage(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, filters := range []map[string][]string{{"until": {"yesterday"}}, {"odd": {"x"}}} {
		if _, err := b.PruneCache(t.Context(), Prune{Filters: filters}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", filters, err)
		}
	}
}

// TestBuildEnds ends a build by its ID and by the client's leaving. Nothing of it stays.
func TestBuildEnds(t *testing.T) {
	b := newBuilder(t)
	for _, by := range []string{"id", "client"} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan answer)
		go func() {
			ended <- b.post(ctx, "buildid="+by, contextOf(t, onBox("RUN echo begun "+by+" && sleep 1000")))
		}()
		eventually(t, "the step runs", func() bool { return b.steps() == 1 })
		if by == "id" {
			if err := b.CancelBuild(by); err != nil {
				t.Error(err)
			}
		} else {
			cancel()
		}
		select {
		case a := <-ended:
			if by == "id" && !strings.Contains(a.err, "cancelled") {
				t.Errorf("%+v", a)
			}
		case <-time.After(limit):
			t.Fatal("the build does not end")
		}
		eventually(t, "the step is gone", func() bool { return b.steps() == 0 && len(b.running.m) == 0 && b.stepMounts() == 0 })
	}
	if err := b.CancelBuild("nothing"); err != nil {
		t.Errorf("one that does not run: %v", err)
	}
	if err := b.CancelBuild(""); !fault.Is(err, fault.Invalid) {
		t.Errorf("no ID: %v", err)
	}
}

// steps counts the steps that run.
func (b *builder) steps() int {
	runners, err := filepath.Glob(filepath.Join(b.machine.Dir(), "run", "r", "build-*"))
	if err != nil {
		b.t.Fatal(err)
	}
	return len(runners)
}

// stepMounts counts the roots of steps that are mounted.
func (b *builder) stepMounts() int {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		b.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, b.machine.Dir()) && strings.Contains(line, "buildkit-mount") {
			n++
		}
	}
	return n
}

// eventually waits until ok, looking often.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not true: %s", what)
		}
	}
}

// TestMain silences what BuildKit and containerd log of their own.
func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}
