package dockercontext

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/fault"
)

func TestContext(t *testing.T) {
	dir := t.TempDir()
	if Has(dir, "ferry") {
		t.Error("there is one before")
	}
	for range 2 { // a second `ferry up`
		if err := Add(dir, "ferry", "/run/ferry/docker.sock"); err != nil {
			t.Fatal(err)
		}
	}
	if !Has(dir, "ferry") || Has(dir, "other") {
		t.Error("it is not found")
	}
	if docker, err := exec.LookPath("docker"); err == nil {
		cmd := exec.Command(docker, "context", "ls", "--format", "{{.Name}} {{.DockerEndpoint}} {{.Current}}")
		cmd.Env = []string{"DOCKER_CONFIG=" + dir}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "ferry unix:///run/ferry/docker.sock false\n") {
			t.Errorf("docker context ls: %v\n%s", err, out)
		}
	}
	for range 2 {
		if err := Remove(dir, "ferry"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "contexts", "meta")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestContextOfSomebodyElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dirOf(dir, "ferry"), "meta.json")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, theirs := range []string{`{"Name":"ferry","Metadata":{},"Endpoints":{"docker":{"Host":"ssh://elsewhere"}}}`, `not JSON`} {
		if err := os.WriteFile(path, []byte(theirs), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Add(dir, "ferry", "/run/ferry/docker.sock"); !fault.Is(err, fault.Conflict) {
			t.Errorf("add over %s: %v", theirs, err)
		}
		if err := Remove(dir, "ferry"); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != theirs {
			t.Errorf("%s became %s, %v", theirs, data, err)
		}
	}
}

func TestDir(t *testing.T) {
	env := func(pairs map[string]string) func(string) string { return func(k string) string { return pairs[k] } }
	if dir, err := Dir(env(map[string]string{"HOME": "/h"})); err != nil || dir != "/h/.docker" {
		t.Error(dir, err)
	}
	if dir, err := Dir(env(map[string]string{"HOME": "/h", "DOCKER_CONFIG": "/c"})); err != nil || dir != "/c" {
		t.Error(dir, err)
	}
	if _, err := Dir(env(nil)); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
