package dockerapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/registry"
)

// builtIn starts the built-in registry and returns its host and its password.
func builtIn(t *testing.T) (host, password string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	r := registry.New(registry.Options{Root: t.TempDir(), Gateway: netip.MustParseAddr("127.0.0.2"), Port: port, Log: slog.New(slog.DiscardHandler)})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	_, password = r.Credential()
	return fmt.Sprintf("127.0.0.1:%d", port), password
}

// TestRegistry is docker with the built-in registry: it wants to know who pushes,
// and all tags of a repository go and come at once.
func TestRegistry(t *testing.T) {
	a := newAPI(t)
	docker := dockerCommand(t, a)
	host, password := builtIn(t)
	repo := host + "/team/app"
	docker("login -u ferry -p wrong "+host, ".*failed with status: 401 Unauthorized.*", 1)
	docker("login -u other -p "+password+" "+host, ".*failed with status: 401 Unauthorized.*", 1)
	docker("push -a "+repo, ".*An image does not exist locally with the tag: "+repo+".*", 1)
	docker("pull -a "+repo, ".*no such repository.*", 1)
	for _, tag := range []string{"v1", "v2", "latest"} {
		docker("tag IMAGE "+repo+":"+tag, "", 0)
	}
	docker("tag IMAGE "+repo+"lication:v1", "", 0)
	docker("push -a "+repo, ".*credential.*", 1)
	docker("login -u ferry -p "+password+" "+host, ".*Login Succeeded.*", 0)
	docker("push -a "+repo, ".*The push refers to repository \\["+repo+"\\].*latest: digest: sha256:.*v1: digest: .*v2: digest: .*", 0)
	docker("pull "+repo+"lication:v1", ".*not found.*", 1)
	docker("rmi "+repo+":v1 "+repo+":v2 "+repo+":latest", ".*", 0)
	docker("logout "+host, ".*", 0)
	docker("pull -a "+repo, ".*latest: Pulling from team/app.*v1: Pulling from team/app.*v2: Pulling from team/app.*", 0)
	docker("images --format '{{.Tag}}' "+repo, "latest\nv1\nv2\n|v2\nv1\nlatest\n", 0)
}

// TestTagsInPages: a registry that has many tags names where there are more.
func TestTagsInPages(t *testing.T) {
	a := newAPI(t)
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RequestURI())
		switch r.URL.RequestURI() {
		case "/v2/app/tags/list":
			w.Header().Set("Link", `</v2/app/tags/list?last=v1>; rel="next"`)
			fmt.Fprint(w, `{"name":"app","tags":["v1"]}`)
		case "/v2/app/tags/list?last=v1":
			fmt.Fprint(w, `{"name":"app","tags":["v2"]}`)
		case "/v2/odd/tags/list":
			fmt.Fprint(w, `{"tags":["../x"]}`)
		case "/v2/none/tags/list":
			fmt.Fprint(w, `{"tags":null}`)
		case "/v2/closed/tags/list":
			w.WriteHeader(http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	for name, want := range map[string]struct {
		status int
		says   string
	}{
		"app":    {404, host + "/app:v1"}, // its manifests are not there
		"odd":    {503, `"../x" is none`},
		"none":   {404, "no tags"},
		"closed": {403, "403 Forbidden"},
		"nobody": {404, "no such repository"},
	} {
		if got := a.do("POST", "/images/create?fromImage="+host+"/"+name, ""); got.status != want.status || !strings.Contains(got.message, want.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if all := strings.Join(asked, " "); !strings.Contains(all, "/v2/app/tags/list /v2/app/tags/list?last=v1 /v2/app/manifests/v1") {
		t.Errorf("asked for %s", all)
	}
}
