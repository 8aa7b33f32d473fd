package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/fault"
)

func start(t *testing.T, root string, port int) *Registry {
	t.Helper()
	r := New(Options{Root: root, Gateway: netip.MustParseAddr("127.0.0.2"), Port: port, Log: slog.New(slog.DiscardHandler)})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func stop(t *testing.T, r *Registry) {
	t.Helper()
	if err := r.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func do(t *testing.T, method, url, password, kind string, body []byte) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Accept", kind)
	if password != "" {
		req.SetBasicAuth(username, password)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

func TestPushAsksForTheCredentialAndAnybodyPulls(t *testing.T) {
	root, port := t.TempDir(), freePort(t)
	r := start(t, root, port)
	base := fmt.Sprintf("http://127.0.0.1:%d/v2/models/digits", port)
	blob := []byte("{}")
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(blob))
	for _, wrong := range []string{"", "guess"} {
		if res, text := do(t, "POST", base+"/blobs/uploads/", wrong, "", nil); res.StatusCode != 401 || !strings.Contains(text, "UNAUTHORIZED") || res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("password %q: %d %s", wrong, res.StatusCode, text)
		}
	}
	// Who logs in is told at once what pushing would tell.
	for wrong, want := range map[string]int{"": 200, "guess": 401} {
		if res, text := do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/v2/", port), wrong, "", nil); res.StatusCode != want {
			t.Errorf("login with %q: %d %s", wrong, res.StatusCode, text)
		}
	}
	_, password := r.Credential()
	res, _ := do(t, "POST", base+"/blobs/uploads/", password, "", nil)
	location := res.Header.Get("Location")
	if res.StatusCode != 202 || !strings.HasPrefix(location, "/") {
		t.Fatalf("upload: %d, location %q", res.StatusCode, location)
	}
	host := fmt.Sprintf("http://127.0.0.1:%d", port)
	if res, text := do(t, "PUT", host+location+"&digest="+digest, password, "application/octet-stream", blob); res.StatusCode != 201 {
		t.Fatalf("blob: %d %s", res.StatusCode, text)
	}
	const kind = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.cncf.model.manifest.v1+json",
"config":{"mediaType":"application/vnd.cncf.model.config.v1+json","digest":%q,"size":2},"layers":[],"annotations":{"accuracy":"0.98"}}`, kind, digest)
	if res, text := do(t, "PUT", base+"/manifests/v1", password, kind, manifest); res.StatusCode != 201 {
		t.Fatalf("manifest: %d %s", res.StatusCode, text)
	}
	stop(t, r)
	again := start(t, root, port)
	defer stop(t, again)
	if _, now := again.Credential(); now != password {
		t.Error("the credential changed with a restart")
	}
	// On the bridge's address, without a credential, byte for byte.
	if res, text := do(t, "GET", fmt.Sprintf("http://127.0.0.2:%d/v2/models/digits/manifests/v1", port), "", kind, nil); res.StatusCode != 200 || text != string(manifest) {
		t.Errorf("pull: %d %s", res.StatusCode, text)
	}
}

func TestPortTakenAndDockerConfig(t *testing.T) {
	port := freePort(t)
	r := start(t, t.TempDir(), port)
	defer stop(t, r)
	other := New(Options{Root: t.TempDir(), Gateway: netip.MustParseAddr("127.0.0.2"), Port: port, Log: slog.New(slog.DiscardHandler)})
	if err := other.Start(t.Context()); !fault.Is(err, fault.Unavailable) || fault.HintOf(err) == "" {
		t.Errorf("second start: %v", err)
	}
	data, err := r.DockerConfig()
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Auths map[string]struct{ Password string }
	}
	if err := json.Unmarshal(data, &config); err != nil || config.Auths[fmt.Sprintf("127.0.0.2:%d", port)].Password != r.password {
		t.Errorf("docker config: %s, %v", data, err)
	}
}

// TestStopDoesNotWaitForAPush stops the registry while a client has sent half a
// blob and neither sends more nor goes away.
func TestStopDoesNotWaitForAPush(t *testing.T) {
	port := freePort(t)
	r := start(t, t.TempDir(), port)
	_, password := r.Credential()
	res, _ := do(t, "POST", fmt.Sprintf("http://127.0.0.1:%d/v2/models/digits/blobs/uploads/", port), password, "", nil)
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The server asks for the body when the handler reads it.
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: ferry\r\nAuthorization: Basic %s\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
		res.Header.Get("Location"), base64.StdEncoding.EncodeToString([]byte(username+":"+password)))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}
