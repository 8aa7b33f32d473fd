// Package runnertest builds ferry-runner and small root file systems for the
// tests of the packages that need one. Only tests import it.
package runnertest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// The flags of the Makefile's ferry-runner.
const (
	tags    = "netgo osusergo"
	ldflags = `-s -w -linkmode external -extldflags "-static"`
)

// programsEnv names a directory with what Build and Program would build, for a
// machine without Go.
const programsEnv = "FERRY_TEST_PROGRAMS"

var build = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(programsEnv); dir != "" {
		return filepath.Join(dir, "ferry-runner"), nil
	}
	dir, err := os.MkdirTemp("", "ferry-runner-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "ferry-runner")
	cmd := exec.Command("go", "build", "-tags", tags, "-ldflags", ldflags, "-o", path, "github.com/ferryos/ferry/cmd/ferry-runner")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), errors.Join(err, os.RemoveAll(dir))
	}
	cmd = exec.Command("go", "build", "-o", filepath.Join(dir, "ferry-init"), "github.com/ferryos/ferry/cmd/ferry-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs where there are no libraries
	if out, err := cmd.CombinedOutput(); err != nil {
		return string(out), errors.Join(err, os.RemoveAll(dir))
	}
	return path, nil
})

// Build returns the path of ferry-runner, built once a process. Call Clean at
// the end of TestMain.
func Build(tb testing.TB) string {
	tb.Helper()
	path, err := build()
	if err != nil {
		tb.Fatalf("build ferry-runner: %v\n%s", err, path)
	}
	return path
}

// Init returns the path of ferry-init, built with ferry-runner.
func Init(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(filepath.Dir(Build(tb)), "ferry-init")
}

// Program builds the Go program, static, in a directory of the package under
// test, testdata/x, and returns where it is.
func Program(tb testing.TB, source string) string {
	tb.Helper()
	if dir := os.Getenv(programsEnv); dir != "" {
		return filepath.Join(dir, filepath.Base(source))
	}
	path := filepath.Join(tb.TempDir(), filepath.Base(source))
	build := exec.Command("go", "build", "-o", path, "./"+source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", source, err, out)
	}
	return path
}

// Clean removes what Build built.
func Clean() {
	if os.Getenv(programsEnv) != "" {
		return
	}
	if path, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // below the system's directory for such
	}
}

// Patience is how many times longer than on a usual machine tests wait for
// something to happen: FERRY_TEST_PATIENCE, for slow machines.
func Patience() int {
	if n, err := strconv.Atoi(os.Getenv("FERRY_TEST_PATIENCE")); err == nil && n > 1 {
		return n
	}
	return 1
}

// NeedRoot skips a test that only root can run.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: it runs containers")
	}
}

// Busybox is the static busybox of Debian's and Ubuntu's busybox-static.
const Busybox = "/bin/busybox"

// Rootfs makes a root file system of busybox and its usual names.
func Rootfs(tb testing.TB) string {
	tb.Helper()
	root := tb.TempDir()
	data, err := os.ReadFile(Busybox)
	if err != nil {
		tb.Fatalf("install busybox-static: %v", err)
	}
	for _, dir := range []string{"bin", "proc", "sys", "dev", "etc", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), data, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "echo", "sleep", "true", "false", "id", "ls", "mkdir", "mount", "hostname",
		"ps", "kill", "stty", "head", "unshare", "ipcs", "env", "dd", "sync", "wc", "stat", "tty", "mknod", "sort", "chown", "readlink", "grep", "tr", "find", "seq", "printf", "test", "touch", "rm", "yes"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			tb.Fatal(err)
		}
	}
	return root
}
