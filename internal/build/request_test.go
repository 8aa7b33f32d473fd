package build

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/session/auth"

	"github.com/ferryos/ferry/internal/fault"
)

const testGateway = "10.1.2.1"

// TestParseRequest reads what docker 28 and docker-py send.
func TestParseRequest(t *testing.T) {
	always := map[string]string{"filename": "Dockerfile", "image-resolve-mode": "local"}
	for _, tt := range []struct {
		query string
		attrs map[string]string
		tags  []string
	}{
		{"", always, nil},
		{"t=app&t=localhost:5000/app:v1&t=app:latest&t=&rm=1&forcerm=1&version=1&buildargs=null&labels=null&cachefrom=null&ulimits=null&remote=",
			always, []string{"docker.io/library/app:latest", "localhost:5000/app:v1"}},
		{"dockerfile=sub%2F..%2Fsub%2FDockerfile.dev", map[string]string{"filename": "sub/Dockerfile.dev"}, nil},
		{"dockerfile=%2Fabsolute", map[string]string{"filename": "absolute"}, nil},
		{"pull=1&nocache=1&target=last&platform=linux%2Farm64", map[string]string{"image-resolve-mode": "pull", "no-cache": "", "target": "last", "platform": "linux/arm64"}, nil},
		{`buildargs={"A":"b","C":null}&labels={"l":"v"}`, map[string]string{"build-arg:A": "b", "label:l": "v"}, nil},
		{"extrahosts=a:1.2.3.4&extrahosts=b:host-gateway&extrahosts=c:[::1]", map[string]string{"add-hosts": "a=1.2.3.4,b=" + testGateway + ",c=::1"}, nil},
		{"memory=16777216&memswap=-1&cpushares=5&cpuperiod=100000&cpuquota=50000&cpusetcpus=0-1&cpusetmems=0&shmsize=1024",
			map[string]string{"memory": "16777216", "memswap": "-1", "cpushares": "5", "cpuperiod": "100000", "cpuquota": "50000", "cpusetcpus": "0-1", "cpusetmems": "0", "shm-size": "1024"}, nil},
		{`ulimits=[{"Name":"nofile","Hard":20,"Soft":10}]`, map[string]string{"ulimit": "nofile=10:20"}, nil},
		{"networkmode=host", map[string]string{"force-network-mode": "host"}, nil},
		{"networkmode=none", map[string]string{"force-network-mode": "none"}, nil},
		{"networkmode=default&memory=0&cpuquota=0", always, nil},
		{"remote=https://example.org/x.git%23main", map[string]string{"context": "https://example.org/x.git#main"}, nil},
	} {
		q, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		r, err := parseRequest(q, nil, testGateway)
		want := maps.Clone(always)
		maps.Copy(want, tt.attrs)
		if err != nil || !maps.Equal(r.attrs, want) || !slices.Equal(r.tags, tt.tags) {
			t.Errorf("%s: %v, %v, %v; want %v, %v", tt.query, r.attrs, r.tags, err, want, tt.tags)
		}
		if r.export == nil || r.export.Type != mobyExporter || r.export.Attrs["name"] != strings.Join(tt.tags, ",") {
			t.Errorf("%s: export %v", tt.query, r.export)
		}
		if (len(r.allowed) > 0) != strings.Contains(tt.query, "networkmode=host") {
			t.Errorf("%s: allowed %v", tt.query, r.allowed)
		}
	}
	r, err := parseRequest(url.Values{"session": {"s"}, "remote": {"client-session"}, "version": {"2"}, "outputs": {`[{"Type":"local","Attrs":{"dest":"x"}}]`},
		"cachefrom": {`["app:cache"]`}, "buildargs": {`{"BUILDKIT_INLINE_CACHE":"1"}`}}, nil, testGateway)
	if err != nil || !r.traces || r.export.Type != "local" || r.export.Attrs["dest"] != "x" || len(r.cache.Imports) != 1 || r.cache.Imports[0].Attrs["ref"] != "app:cache" ||
		len(r.cache.Exports) != 1 || r.cache.Exports[0].Type != "inline" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := parseRequest(url.Values{"outputs": {`[{"Type":"cacheonly"}]`}}, nil, testGateway); err != nil || r.export != nil {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestParseRequestRefused(t *testing.T) {
	for query, want := range map[string]struct {
		kind fault.Kind
		says string
	}{
		"dockerfile=../Dockerfile":                  {fault.Invalid, "forbidden path outside the build context: ../Dockerfile"},
		"dockerfile=a/../../etc/passwd":             {fault.Invalid, "forbidden path"},
		"dockerfile=/../etc/passwd":                 {fault.Invalid, "forbidden path"},
		"dockerfile=/":                              {fault.Invalid, "the build context itself"},
		"dockerfile=.":                              {fault.Invalid, "the build context itself"},
		"version=3":                                 {fault.Invalid, "builder version"},
		"squash=1":                                  {fault.Unsupported, "squash"},
		`securityopt=["seccomp=x"]`:                 {fault.Unsupported, "security options"},
		"isolation=hyperv":                          {fault.Unsupported, "isolation"},
		"cgroupparent=/x":                           {fault.Unsupported, "cgroup"},
		"networkmode=mine":                          {fault.Unsupported, "network mode"},
		"networkmode=container:x":                   {fault.Unsupported, "network mode"},
		"remote=file:///etc":                        {fault.Invalid, "remote"},
		"remote=/etc":                               {fault.Invalid, "remote"},
		"remote=client-session":                     {fault.Invalid, "without a session"},
		"t=UPPER":                                   {fault.Invalid, "UPPER"},
		"t=app@sha256:" + strings.Repeat("a", 64):   {fault.Invalid, "digest reference"},
		"buildargs=x":                               {fault.Invalid, "buildargs"},
		`labels=["x"]`:                              {fault.Invalid, "labels"},
		"cachefrom={}":                              {fault.Invalid, "cachefrom"},
		"ulimits=[{}]":                              {fault.Invalid, "ulimit"},
		"memory=much":                               {fault.Invalid, `memory="much"`},
		"memory=-1":                                 {fault.Invalid, `memory="-1"`},
		"platform=a/b/c/d":                          {fault.Invalid, "platform"},
		"extrahosts=x":                              {fault.Invalid, "extra host"},
		"extrahosts=x:y":                            {fault.Invalid, "extra host"},
		"extrahosts=a,b:1.2.3.4":                    {fault.Invalid, "extra host"},
		`outputs=[{"Type":"local"}]`:                {fault.Invalid, "there is none"},
		`outputs=[{"Type":"moby"},{"Type":"moby"}]`: {fault.Invalid, "multiple outputs"},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRequest(q, nil, testGateway); !fault.Is(err, want.kind) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v, want %v %q", query, err, want.kind, want.says)
		}
	}
}

func TestRegistryConfig(t *testing.T) {
	text := `{"https://index.docker.io/v1/":{"username":"u","password":"p"},"localhost:5000":{"identitytoken":"t"}}`
	for _, encoding := range []*base64.Encoding{base64.URLEncoding, base64.RawURLEncoding} {
		auths, err := registryConfig(http.Header{"X-Registry-Config": {encoding.EncodeToString([]byte(text))}})
		if err != nil || len(auths) != 2 {
			t.Fatalf("%v, %v", auths, err)
		}
		c := credentials{known: auths}
		for host, want := range map[string][2]string{"registry-1.docker.io": {"u", "p"}, "localhost:5000": {"", "t"}, "other": {"", ""}} {
			if res, err := c.Credentials(t.Context(), &auth.CredentialsRequest{Host: host}); err != nil || res.Username != want[0] || res.Secret != want[1] {
				t.Errorf("%s: %v, %v", host, res, err)
			}
		}
	}
	for _, bad := range []string{"%", base64.URLEncoding.EncodeToString([]byte("{"))} {
		if _, err := registryConfig(http.Header{"X-Registry-Config": {bad}}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzParseRequest: whatever is accepted names a Dockerfile in the context, and
// allows the host's network only if that was asked for.
func FuzzParseRequest(f *testing.F) {
	f.Add("t=app&dockerfile=a/../b&buildargs=%7B%7D", "")
	f.Add("networkmode=host&ulimits=[{}]&extrahosts=a:b", "e30=")
	f.Fuzz(func(t *testing.T, query, config string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		r, err := parseRequest(q, http.Header{"X-Registry-Config": {config}}, testGateway)
		if err != nil {
			if fault.KindOf(err) == fault.Internal {
				t.Errorf("%s: %v", query, err)
			}
			return
		}
		if r.dockerfile == "" || strings.HasPrefix(r.dockerfile, "/") || slices.Contains(strings.Split(r.dockerfile, "/"), "..") {
			t.Errorf("%s: Dockerfile %q", query, r.dockerfile)
		}
		if len(r.allowed) > 0 && q.Get("networkmode") != "host" {
			t.Errorf("%s: allowed %v", query, r.allowed)
		}
	})
}
