package dockerconfig

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCredential(t *testing.T) {
	dir := t.TempDir()
	// A helper as docker calls it: `get` with the server on its input.
	helper := `#!/bin/sh
read server
case "$server" in
helped.test) echo '{"ServerURL":"helped.test","Username":"helped","Secret":"s1"}' ;;
token.test) echo '{"ServerURL":"token.test","Username":"<token>","Secret":"s2"}' ;;
broken.test) echo "no agent"; exit 1 ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-ferrytest"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	path := filepath.Join(dir, "config.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"auths": {"https://index.docker.io/v1/": {"auth": "aHViOnB3"}, "plain.test:5000": {"username": "u", "password": "p"},
	  "https://url.test/v2/": {"auth": "dTp4Onk="}, "id.test": {"identitytoken": "tok"}, "odd.test": {"auth": "?"}, "empty.test": {}},
	  "credHelpers": {"helped.test": "ferrytest", "token.test": "ferrytest", "broken.test": "ferrytest", "gone.test": "nosuchhelper"}}`)
	for _, tt := range []struct {
		host, user, secret string
		fails              bool
	}{
		{host: "docker.io", user: "hub", secret: "pw"},
		{host: "registry-1.docker.io", user: "hub", secret: "pw"},
		{host: "plain.test:5000", user: "u", secret: "p"},
		{host: "plain.test"},
		{host: "url.test", user: "u", secret: "x:y"},
		{host: "id.test", secret: "tok"},
		{host: "empty.test"},
		{host: "unknown.test"},
		{host: "odd.test", fails: true},
		{host: "helped.test", user: "helped", secret: "s1"},
		{host: "token.test", secret: "s2"},
		{host: "broken.test", fails: true},
		{host: "gone.test", fails: true},
	} {
		user, secret, err := Credential(path, tt.host)
		if user != tt.user || secret != tt.secret || (err != nil) != tt.fails {
			t.Errorf("%s: %q %q %v", tt.host, user, secret, err)
		}
	}
	write(`{"auths": {"file.test": {"auth": "ZmlsZTpwdw=="}}, "credsStore": "ferrytest"}`)
	if user, secret, err := Credential(path, "helped.test"); user != "helped" || secret != "s1" || err != nil {
		t.Errorf("credsStore: %q %q %v", user, secret, err)
	}
	if user, secret, err := Credential(path, "file.test"); user != "file" || secret != "pw" || err != nil {
		t.Errorf("in the file, with a credsStore that does not know it: %q %q %v", user, secret, err)
	}
	write(`{`)
	if _, _, err := Credential(path, "x"); err == nil {
		t.Error("a broken file passes")
	}
	if user, secret, err := Credential(filepath.Join(dir, "none.json"), "x"); user != "" || secret != "" || err != nil {
		t.Errorf("no file: %q %q %v", user, secret, err)
	}
}
