package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
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
