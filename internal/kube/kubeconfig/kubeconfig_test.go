package kubeconfig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const ours = `apiVersion: v1
kind: Config
clusters: [{name: ferry, cluster: {server: "https://127.0.0.1:6443"}}]
contexts: [{name: ferry, context: {cluster: ferry, user: ferry}}]
users: [{name: ferry, user: {client-key-data: a2V5}}]
current-context: ferry
`

const theirs = `apiVersion: v1
kind: Config
preferences: {colors: true}
clusters: [{name: prod, cluster: {server: "https://prod"}}]
contexts: [{name: prod, context: {cluster: prod, user: me, namespace: web}}]
users: [{name: me, user: {token: secret}}]
current-context: prod
`

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMergeAndRemoveLeaveTheRest(t *testing.T) {
	from, path := write(t, "admin", ours), write(t, "config", theirs)
	before, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is the same
		if err := Merge(path, "ferry", from); err != nil {
			t.Fatal(err)
		}
	}
	merged, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(merged["contexts"].([]any)) != 2 || merged["current-context"] != "prod" || !Has(path, "ferry") || !Has(path, "prod") {
		t.Errorf("merged: %v", merged)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o640 {
		t.Errorf("mode = %v", st.Mode())
	}
	if err := Remove(path, "ferry"); err != nil {
		t.Fatal(err)
	}
	after, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	for key := range before {
		if !equal(before[key], after[key]) {
			t.Errorf("%s: %v became %v", key, before[key], after[key])
		}
	}
}

func equal(a, b any) bool {
	var sb, sa strings.Builder
	return print(&sa, a) == print(&sb, b)
}

func print(w *strings.Builder, v any) string {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			print(w, e)
		}
	case map[string]any:
		for _, key := range []string{"name", "cluster", "context", "user", "server", "namespace", "token", "colors"} {
			print(w, v[key])
		}
	case string:
		w.WriteString(v + ";")
	}
	return w.String()
}

func TestNewFileComesAndGoes(t *testing.T) {
	from := write(t, "admin", ours)
	path := filepath.Join(t.TempDir(), "sub", "config")
	if err := Merge(path, "ferry", from); err != nil {
		t.Fatal(err)
	}
	if config, err := read(path); err != nil || config["current-context"] != "ferry" {
		t.Errorf("%v, %v", config, err)
	}
	for range 2 {
		if err := Remove(path, "ferry"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the file is left: %v", err)
	}
}

// TestOwner works as root in somebody's home, as `sudo -E ferry up` does.
func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: gives files away")
	}
	const user, group = 12345, 23456
	check := func(path string, mode os.FileMode) {
		t.Helper()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != user || sys.Gid != group || st.Mode().Perm() != mode {
			t.Errorf("%s: owner %d:%d, mode %v; want %d:%d, %v", path, sys.Uid, sys.Gid, st.Mode().Perm(), user, group, mode)
		}
	}
	defer syscall.Umask(syscall.Umask(0o077))
	home, from := t.TempDir(), write(t, "admin", ours)
	if err := os.Chown(home, user, group); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, "a", ".kube", "config")
	if err := Merge(path, "ferry", from); err != nil {
		t.Fatal(err)
	}
	check(filepath.Join(home, "a"), 0o700)
	check(filepath.Join(home, "a", ".kube"), 0o700)
	check(path, 0o600)

	theirs := write(t, "config", theirs) // in a directory of root's
	if err := errors.Join(os.Chmod(theirs, 0o664), os.Chown(theirs, user, group)); err != nil {
		t.Fatal(err)
	}
	// What a run that was killed has left, or somebody has put there.
	victim := write(t, "victim", "")
	if err := os.Symlink(victim, theirs+".ferry-new"); err != nil {
		t.Fatal(err)
	}
	for _, change := range []func() error{
		func() error { return Merge(theirs, "ferry", from) },
		func() error { return Remove(theirs, "ferry") },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		check(theirs, 0o664)
	}
	if data, err := os.ReadFile(victim); err != nil || len(data) > 0 {
		t.Errorf("another file was written: %q, %v", data, err)
	}
}

func TestBrokenFileIsLeftAlone(t *testing.T) {
	for _, broken := range []string{"a: [", "clusters: 3\n"} {
		from, path := write(t, "admin", ours), write(t, "config", broken)
		if err := Merge(path, "ferry", from); err == nil {
			t.Errorf("%q: no error", broken)
		}
		if data, _ := os.ReadFile(path); string(data) != broken {
			t.Errorf("%q became %q", broken, data)
		}
	}
}
