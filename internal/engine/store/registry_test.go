package store_test

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// TestAuth: both ways in which registries ask, with the credential of the
// request or the one that the store knows itself.
func TestAuth(t *testing.T) {
	for name, token := range map[string]bool{"basic": false, "token": true} {
		t.Run(name, func(t *testing.T) {
			f := newRegistry(t)
			f.user, f.password, f.token = "me", "secret", token
			f.image("v1", "amd64", gzipLayer(t, tarOf(t, entry{name: "a"})))
			image := f.host + "/app:v1"
			good := store.Auth{Username: "me", Password: "secret"}
			s := open(t, t.TempDir())
			if err := s.Login(t.Context(), f.host, good); err != nil {
				t.Errorf("log in: %v", err)
			}
			if err := s.Login(t.Context(), "http://"+f.host+"/v2/", store.Auth{Username: "me", Password: "wrong"}); !fault.Is(err, fault.Denied) {
				t.Errorf("log in with a wrong password: %v", err)
			}
			for _, bad := range []store.Auth{{}, {Username: "me", Password: "wrong"}} {
				if _, err := s.Pull(t.Context(), image, store.TransferOptions{Auth: bad}); !fault.Is(err, fault.Denied) {
					t.Errorf("pull with %v: %v", bad, err)
				}
			}
			if _, err := s.Pull(t.Context(), image, store.TransferOptions{Auth: good}); err != nil {
				t.Errorf("pull: %v", err)
			}
			desc, platforms, err := s.Remote(t.Context(), image, good)
			if err != nil || desc.Digest != f.tags["v1"] || len(platforms) != 1 || platforms[0].Architecture != "amd64" {
				t.Errorf("%+v, %+v, %v", desc, platforms, err)
			}
			knows := openWith(t, store.Options{Root: t.TempDir(), Credential: func(host string) (string, string) {
				if host == f.host {
					return "me", "secret"
				}
				return "", ""
			}})
			if _, err := knows.Pull(t.Context(), image, store.TransferOptions{}); err != nil {
				t.Errorf("with what the store knows: %v", err)
			}
			if !token {
				return
			}
			if _, err := open(t, t.TempDir()).Pull(t.Context(), image, store.TransferOptions{Auth: store.Auth{RegistryToken: "opensesame"}}); err != nil {
				t.Errorf("with a token: %v", err)
			}
			if _, err := s.Pull(t.Context(), image, store.TransferOptions{Auth: store.Auth{RegistryToken: "x"}}); !fault.Is(err, fault.Denied) {
				t.Errorf("with a wrong token: %v", err)
			}
		})
	}
}

// TestMirrors: they are asked in their order, passed over where they cannot
// help, and not shown what is the registry's alone.
func TestMirrors(t *testing.T) {
	layer := gzipLayer(t, tarOf(t, entry{name: "a", data: "x"}))
	first, second, origin := newRegistry(t), newRegistry(t), newRegistry(t)
	for _, f := range []*fakeRegistry{second, origin} {
		f.image("v1", "amd64", layer)
	}
	origin.image("v2", "amd64", gzipLayer(t, tarOf(t, entry{name: "a", data: "only here"})))
	leaked := false
	second.set(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		leaked = leaked || r.Header.Get("Authorization") != ""
		return false
	})
	origin.user, origin.password = "me", "secret"
	s := openWith(t, store.Options{Root: t.TempDir(), RetryPause: time.Millisecond, Registries: []store.Registry{
		{Host: origin.host, Mirrors: []string{"http://127.0.0.1:1", "http://" + first.host, "http://" + second.host}}}})
	auth := store.Auth{Username: "me", Password: "secret"}
	if _, err := s.Pull(t.Context(), origin.host+"/team/app:v1", store.TransferOptions{Auth: auth}); err != nil {
		t.Fatal(err)
	}
	if first.requests("HEAD") == 0 || second.requests("/blobs/") == 0 || origin.requests("") != 0 {
		t.Errorf("first %q\nsecond %q\norigin %q", first.asked, second.asked, origin.asked)
	}
	if leaked {
		t.Error("a mirror was shown the registry's credential")
	}
	if _, err := s.Pull(t.Context(), origin.host+"/team/app:v2", store.TransferOptions{Auth: auth}); err != nil {
		t.Errorf("only the registry has it: %v", err)
	}
	// A mirror that has the image's manifest and then lets it down.
	third := newRegistry(t)
	third.image("v1", "amd64", layer)
	third.set(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	s = openWith(t, store.Options{Root: t.TempDir(), Registries: []store.Registry{{Host: origin.host, Mirrors: []string{"http://" + third.host}}}})
	if _, err := s.Pull(t.Context(), origin.host+"/team/app:v1", store.TransferOptions{Auth: auth}); err != nil {
		t.Errorf("a mirror without blobs: %v", err)
	}
}

// TestTLS: a registry's certificate is verified, by the authority given if one is.
func TestTLS(t *testing.T) {
	f := newRegistry(t)
	f.image("v1", "amd64", gzipLayer(t, tarOf(t, entry{name: "a"})))
	server := httptest.NewTLSServer(f)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := t.TempDir()
	dir := filepath.Join(hosts, strings.Replace(host, ":", "_", 1)+"_")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := "server = \"https://" + host + "\"\nca = \"" + ca + "\"\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		opt  store.Options
		good bool
	}{
		"its authority":       {store.Options{Registries: []store.Registry{{Host: host, CA: ca}}}, true},
		"not verified":        {store.Options{Registries: []store.Registry{{Host: host, SkipVerify: true}}}, true},
		"hosts.toml":          {store.Options{HostsDir: hosts}, true},
		"a missing authority": {store.Options{Registries: []store.Registry{{Host: host, CA: ca + ".none"}}}, false},
	} {
		tt.opt.Root = t.TempDir()
		s := openWith(t, tt.opt)
		if _, err := s.Pull(t.Context(), host+"/app:v1", store.TransferOptions{}); (err == nil) != tt.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Away from loopback, TLS is not left out: the name is another of the same server.
	s := openWith(t, store.Options{Root: t.TempDir(), Registries: []store.Registry{{Host: host, CA: otherCA(t)}}})
	if _, err := s.Pull(t.Context(), host+"/app:v1", store.TransferOptions{}); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("another's authority: %v", err)
	}
}

// otherCA is a PEM file of a certificate that signed nothing here.
func otherCA(t *testing.T) string {
	t.Helper()
	for _, file := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		block, _ := pem.Decode(data)
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "other.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Fatal("the machine has no authorities")
	return ""
}
