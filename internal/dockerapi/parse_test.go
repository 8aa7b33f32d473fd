package dockerapi

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/dockerapi/volume"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

func request(query string) *http.Request { return httptest.NewRequest("GET", "/?"+query, nil) }

func TestParseBind(t *testing.T) {
	bind := func(m engine.Mount) engine.Mount { m.Kind, m.Recursive = engine.MountBind, true; return m }
	for spec, want := range map[string]engine.Mount{
		"/a:/b":              bind(engine.Mount{Source: "/a", Destination: "/b"}),
		"/a/../x/:/b/./c/":   bind(engine.Mount{Source: "/x", Destination: "/b/c"}),
		"/a:/b:ro":           bind(engine.Mount{Source: "/a", Destination: "/b", ReadOnly: true}),
		"/a:/b:rw,z,cached":  bind(engine.Mount{Source: "/a", Destination: "/b"}),
		"/a:/b:shared,ro":    bind(engine.Mount{Source: "/a", Destination: "/b", ReadOnly: true, Propagation: "rshared"}),
		"/a:/b:rslave":       bind(engine.Mount{Source: "/a", Destination: "/b", Propagation: "rslave"}),
		"/a":                 bind(engine.Mount{Destination: "/a"}),
		"name:/b/":           bind(engine.Mount{Source: "name", Destination: "/b"}),
		"name:/b:nocopy,ro":  bind(engine.Mount{Source: "name", Destination: "/b", ReadOnly: true}),
		"/with space:/b c:Z": bind(engine.Mount{Source: "/with space", Destination: "/b c"}),
	} {
		got, req, err := parseBind(spec)
		if err != nil || cmp.Diff(want, got) != "" || req.noCopy != strings.Contains(spec, "nocopy") {
			t.Errorf("%s: %v\n%s", spec, err, cmp.Diff(want, got))
		}
	}
	for spec, kind := range map[string]fault.Kind{
		"": fault.Invalid, "a": fault.Invalid, "a:/b": fault.Invalid, "./a:/b": fault.Invalid, "/a:": fault.Invalid, ":/b": fault.Invalid,
		"name:/b:rshared": fault.Invalid, "/a:/b:nocopy": fault.Invalid,
		"/a:/b:": fault.Invalid, "/a:/b:ro:rw": fault.Invalid, "/a:/b:readonly": fault.Invalid, "/a:/b:ro,": fault.Invalid,
	} {
		if got, _, err := parseBind(spec); !fault.Is(err, kind) {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "10b": 10, "2k": 2048, "2KB": 2048, "3m": 3 << 20, "1g": 1 << 30, "1Gb": 1 << 30, "8589934591g": 8589934591 << 30, "5000000000": 5e9} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "k", "1t", "1.5m", "1mk", "1bb", "8589934592g", "99999999999999999999"} {
		if got, err := parseSize(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

func TestParseTime(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	for s, want := range map[string]time.Time{
		"": {}, "0": {}, "2026-01-02T03:04:05.0000006Z": at, "2026-01-02T04:04:05.0000006+01:00": at, "1767323045.0000006": at, "1767323045": at.Truncate(time.Second),
		"1.5": time.Unix(1, 5e8), "-1": time.Unix(-1, 0), "1.0000000019": time.Unix(1, 1),
	} {
		if got, err := parseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if got, err := parseTime("90m"); err != nil || time.Since(got) < 90*time.Minute || time.Since(got) > 91*time.Minute {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"x", "1.x", "1.-5", "2026-01-02", "1e3", " 1"} {
		if got, err := parseTime(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
}

func TestParseFilters(t *testing.T) {
	for raw, want := range map[string]filters{
		"": nil, "{}": {}, `{"name":["a","b"]}`: {"name": {"a", "b"}}, `{"name":{"a":true,"b":false}}`: {"name": {"a"}}, `{"name":[]}`: {"name": {}},
	} {
		got, err := parseFilters(request("filters="+url.QueryEscape(raw)), "name")
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%s: %v\n%s", raw, err, cmp.Diff(want, got))
		}
	}
	for _, raw := range []string{"{", "7", `"x"`, `{"name":"a"}`, `{"name":[1]}`, `{"other":["a"]}`} {
		if got, err := parseFilters(request("filters="+url.QueryEscape(raw)), "name"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, %v", raw, got, err)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]syscall.Signal{"KILL": 9, "sigterm": 15, "SIGUSR1": 10, "9": 9, "64": 64, "RTMIN+3": 37, "SIGRTMIN+3": 37} {
		if got, err := parseSignal(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "0", "-1", "65", "SIGSIGTERM", "nothing"} {
		if got, err := parseSignal(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
}

// TestStatus: the words are Docker's, for people's scripts look for them.
func TestStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ago, want := range map[time.Duration]string{
		0: "Less than a second", time.Second: "1 second", 59 * time.Second: "59 seconds", time.Minute: "About a minute", 59 * time.Minute: "59 minutes",
		time.Hour: "About an hour", 90 * time.Minute: "2 hours", 47 * time.Hour: "47 hours", 72 * time.Hour: "3 days", 15 * 24 * time.Hour: "2 weeks",
		90 * 24 * time.Hour: "3 months", 900 * 24 * time.Hour: "2 years",
	} {
		for c, format := range map[engine.ContainerState]string{engine.StateRunning: "Up " + want, engine.StatePaused: "Up " + want + " (Paused)", engine.StateExited: "Exited (2) " + want + " ago"} {
			if got := status(engine.Container{State: c, StartedAt: now.Add(-ago), FinishedAt: now.Add(-ago), ExitCode: 2}, nil, now); got != format {
				t.Errorf("%v: %q, want %q", ago, got, format)
			}
		}
	}
	for health, want := range map[container.HealthStatus]string{"starting": "Up 1 second (health: starting)", "healthy": "Up 1 second (healthy)", "unhealthy": "Up 1 second (unhealthy)"} {
		if got := status(engine.Container{State: engine.StateRunning, StartedAt: now.Add(-time.Second)}, &container.Health{Status: health}, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := status(engine.Container{State: stateRestarting, ExitCode: 1, FinishedAt: now.Add(-time.Second)}, nil, now); got != "Restarting (1) 1 second ago" {
		t.Errorf("%q", got)
	}
	if got := status(engine.Container{State: engine.StateCreated}, nil, now); got != "Created" {
		t.Errorf("%q", got)
	}
}

func TestSmallParsers(t *testing.T) {
	for value, want := range map[string]bool{"": false, "0": false, "no": false, "False": false, " none ": false, "1": true, "true": true, "yes": true, "2": true} {
		if got := flag(request("f="+url.QueryEscape(value)), "f"); got != want {
			t.Errorf("flag %q: %v", value, got)
		}
	}
	for ref, want := range map[string]string{"a": "a:latest", "a:v1": "a:v1", "h:5000/a": "h:5000/a:latest", "h:5000/a:v1": "h:5000/a:v1", "a@sha256:00": "a@sha256:00"} {
		if got := withTag(ref); got != want {
			t.Errorf("withTag %s: %s", ref, got)
		}
	}
	for msg, want := range map[string]int{`exec: "x": executable file not found in $PATH`: 127, "stat /x: no such file or directory": 127,
		"exec /x: permission denied": 126, "exec format error": 126, `exec: "/etc": is a directory`: 126, "something else": 128} {
		if got := engine.StartCode(errors.New(msg)); got != want {
			t.Errorf("startCode %s: %d", msg, got)
		}
	}
	for _, v := range [][2]string{{"1.9", "1.10"}, {"1.51", "2.0"}, {"0.99", "1.0"}} {
		if !versionLess(v[0], v[1]) || versionLess(v[1], v[0]) || versionLess(v[0], v[0]) {
			t.Errorf("versionLess %v", v)
		}
	}
}

func TestRegistryAuth(t *testing.T) {
	header := func(json string) *http.Request {
		r := request("")
		r.Header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString([]byte(json)))
		return r
	}
	if got, err := registryAuth(header(`{"username":"u","password":"p?>"}`)); err != nil || got != (store.Auth{Username: "u", Password: "p?>"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, empty := range []string{"{}", "null"} {
		if got, err := registryAuth(header(empty)); err != nil || got != (store.Auth{}) {
			t.Errorf("%s: %+v, %v", empty, got, err)
		}
	}
	if got, err := registryAuth(header(`{"identitytoken":"t"}`)); err != nil || got != (store.Auth{IdentityToken: "t"}) {
		t.Errorf("token: %+v, %v", got, err)
	}
	// The built-in registry is shown what the daemon has, not what a client kept of another.
	s := New(Options{OwnRegistry: func(host string) bool { return host == "localhost:5000" }})
	for name, want := range map[string]store.Auth{"localhost:5000/x:v1": {}, "localhost:5000/x": {}, "localhost:5001/x": {Username: "u"}, "x": {Username: "u"}} {
		if got, err := s.authFor(header(`{"username":"u"}`), name); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"{", "7"} {
		if _, err := registryAuth(header(bad)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	r := request("")
	r.Header.Set("X-Registry-Auth", "!")
	if _, err := registryAuth(r); !fault.Is(err, fault.Invalid) {
		t.Errorf("not base64: %v", err)
	}
}

// FuzzCreate: whatever the body, it is a plan or the client's fault.
func FuzzCreate(f *testing.F) {
	for _, body := range []string{`{}`, `{"Image":"a","HostConfig":{"Binds":["/a:/b:ro"],"Tmpfs":{"/t":"size=1m"},"Memory":67108864,"NanoCpus":1e9}}`,
		`{"Image":"a","HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/a","TmpfsOptions":{"Options":[["uid","5"]]}}],"Init":false,"MemorySwappiness":-1}}`,
		`{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"::","HostPort":"80"}],"53/udp":null},"PublishAllPorts":true},"ExposedPorts":{"90":{}}}`,
		`{"Image":"a","HostConfig":{"LogConfig":{"Config":{"max-size":"1g"}},"SecurityOpt":["seccomp={}","no-new-privileges:true"],"Ulimits":[null]}}`,
		`{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"bridge":null}},"Healthcheck":{"Test":["NONE"]},"HostConfig":{"Dns":["1.1.1.1"],"Devices":[{}]}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := parseCreate(body)
		if err == nil && req.Config != nil && req.HostConfig != nil {
			var p plan
			p, err = makePlan(req, "name", dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Cmd: []string{"sh"}, ExposedPorts: map[string]struct{}{"1/tcp": {}}}}, netip.MustParseAddr("10.0.0.1"))
			for _, m := range p.container.Mounts {
				if err == nil && (!path.IsAbs(m.Destination) || m.Destination == "/") {
					t.Errorf("%s: mount %+v", body, m)
				}
			}
		}
		if err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v", body, err)
		}
	})
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"name":["a"],"status":{"exited":true},"exited":["1"],"label":["a=b"]}`)
	f.Fuzz(func(t *testing.T, raw string) {
		match, err := parseFilters(request("filters="+url.QueryEscape(raw)), "name", "status", "exited", "label", "id", "ancestor")
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", raw, err)
		}
		match.container(engine.Container{ID: "0123456789ab", Spec: engine.ContainerSpec{Name: "a", Labels: map[string]string{"a": "b"}}})
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "1.5", "10m", "/a:/b:ro", "1g", "SIGTERM"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := parseTime(s); err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("time %q: %v", s, err)
		}
		if n, err := parseSize(s); err == nil && n <= 0 {
			t.Errorf("size %q: %d", s, n)
		}
		if m, _, err := parseBind(s); err == nil && !path.IsAbs(m.Source) && m.Source != "" && volume.CheckName(m.Source) != nil {
			t.Errorf("bind %q: %+v", s, m)
		}
		if sig, err := parseSignal(s); err == nil && (sig < 1 || sig > 64) {
			t.Errorf("signal %q: %d", s, sig)
		}
	})
}
