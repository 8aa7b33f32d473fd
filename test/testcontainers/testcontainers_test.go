// Package testcontainers drives Ferry with Testcontainers for Go, as projects
// that test with containers do. It is a module of its own, so that Ferry's does
// not depend on the library: scripts/clients compiles it, and the end-to-end
// script of its name runs it. The image "box" must be there, with a shell and
// httpd.
package testcontainers

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

func TestContainer(t *testing.T) {
	ctx := t.Context()
	c, err := testcontainers.Run(ctx, "box", testcontainers.WithCmd("sh", "-c", "mkdir -p /www && echo served > /www/index.html && echo ready; exec httpd -f -h /www"),
		testcontainers.WithExposedPorts("80/tcp"), testcontainers.WithWaitStrategy(wait.ForLog("ready"), wait.ForListeningPort("80/tcp"), wait.ForHTTP("/")))
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := c.Endpoint(ctx, "http")
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body := read(t, res.Body); body != "served\n" {
		t.Errorf("%q", body)
	}
	code, out, err := c.Exec(ctx, []string{"sh", "-c", "echo hello; exit 3"})
	if err != nil || code != 3 || !strings.Contains(read(t, out), "hello") {
		t.Errorf("exit code %d, %v", code, err)
	}
	if err := c.CopyToContainer(ctx, []byte("copied"), "/www/copied", 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := c.CopyFileFromContainer(ctx, "/www/copied")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := read(t, f); got != "copied" {
		t.Errorf("%q", got)
	}
	logs, err := c.Logs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	if got := read(t, logs); !strings.Contains(got, "ready") {
		t.Errorf("%q", got)
	}
}

// TestBuild makes an image of a Dockerfile, which goes with its container.
func TestBuild(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM box\nARG WHO\nRUN echo hello $WHO > /hi\nCMD [\"cat\", \"/hi\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	who := "testcontainers"
	c, err := testcontainers.GenericContainer(t.Context(), testcontainers.GenericContainerRequest{Started: true, ContainerRequest: testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{Context: dir, BuildArgs: map[string]*string{"WHO": &who}}, WaitingFor: wait.ForExit()}})
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := c.Logs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	if got := read(t, logs); !strings.Contains(got, "hello testcontainers") {
		t.Errorf("%q", got)
	}
}

// TestNetwork has two containers find each other by name.
func TestNetwork(t *testing.T) {
	ctx := t.Context()
	n, err := network.New(ctx)
	testcontainers.CleanupNetwork(t, n)
	if err != nil {
		t.Fatal(err)
	}
	server, err := testcontainers.Run(ctx, "box", testcontainers.WithCmd("httpd", "-f", "-p", "8080", "-h", "/bin"), network.WithNetwork([]string{"server"}, n))
	testcontainers.CleanupContainer(t, server)
	if err != nil {
		t.Fatal(err)
	}
	client, err := testcontainers.Run(ctx, "box", testcontainers.WithCmd("sh", "-c", "until wget -q -O /dev/null http://server:8080/busybox; do sleep 0.1; done; echo found"),
		network.WithNetwork(nil, n), testcontainers.WithWaitStrategy(wait.ForLog("found")))
	testcontainers.CleanupContainer(t, client)
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
