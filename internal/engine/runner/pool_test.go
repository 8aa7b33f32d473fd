package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// newPool starts a pool and returns it with its directory; its Stop must leave nothing there.
func newPool(t *testing.T, size int) (*runner.Pool, string) {
	t.Helper()
	runnertest.NeedRoot(t)
	dir, err := os.MkdirTemp("", "fp") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := runner.NewPool(runner.PoolOptions{Binary: runnertest.Build(t), Dir: dir, Size: size, Log: slog.New(slog.DiscardHandler)})
	p.Start(t.Context())
	return p, dir
}

// spares waits until n runners wait in dir, one more being offered at most.
func spares(t *testing.T, dir string, n int) []string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		socks, err := filepath.Glob(filepath.Join(dir, "spare-*", "sock"))
		if err != nil {
			t.Fatal(err)
		}
		if len(socks) >= n {
			return socks
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d runners wait, not %d", len(socks), n)
		}
	}
}

// use has a runner do something, from its directory, and ends it.
func use(t *testing.T, c *runner.Client, dir string) {
	t.Helper()
	again, err := runner.Dial(t.Context(), dir)
	if err != nil {
		t.Fatalf("the runner is not found where it was asked for: %v", err)
	}
	defer again.Close()
	if again.PID() != c.PID() {
		t.Errorf("runner %d in %s, not %d", again.PID(), dir, c.PID())
	}
	if _, err := c.Setup(t.Context(), runner.SetupRequest{Hostname: "x"}); err != nil {
		t.Error(err)
	}
	if err := c.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPool(t *testing.T) {
	p, dir := newPool(t, 2)
	spares(t, dir, 3)
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		own := filepath.Join(dir, name)
		c, err := p.Launch(t.Context(), own)
		if err != nil {
			t.Fatal(err)
		}
		use(t, c, own)
	}
	p.Stop(t.Context())
	if left, err := filepath.Glob(filepath.Join(dir, "spare-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestPoolKilled has somebody kill the runners that wait.
func TestPoolKilled(t *testing.T) {
	p, dir := newPool(t, 2)
	for _, sock := range spares(t, dir, 3) {
		c, err := runner.Dial(t.Context(), filepath.Dir(sock))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := syscall.Kill(c.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for syscall.Kill(c.PID(), 0) == nil { // until it is reaped
			time.Sleep(5 * time.Millisecond)
		}
	}
	own := filepath.Join(dir, "a")
	c, err := p.Launch(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	use(t, c, own)
	p.Stop(t.Context())
}

func TestPoolOfNone(t *testing.T) {
	p, dir := newPool(t, 0)
	own := filepath.Join(dir, "a")
	c, err := p.Launch(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	use(t, c, own)
	p.Stop(t.Context())
}

// TestPoolGivesUp: a runner that could not be handed out is ended, though who
// asked for it has left, and found by its directory as long as it lives.
func TestPoolGivesUp(t *testing.T) {
	p, dir := newPool(t, 1)
	pids := map[string]int{}
	for _, sock := range spares(t, dir, 2) {
		c, err := runner.Dial(t.Context(), filepath.Dir(sock))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		pids[filepath.Dir(sock)] = c.PID()
	}
	taken := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(taken, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	left, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Launch(left, taken); err == nil {
		t.Error("a runner was launched in a directory that is there already")
	}
	gone := 0
	for dir, pid := range pids {
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		gone++
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(stat, []byte(") Z ")) {
			t.Errorf("runner %d lives without its directory", pid)
		}
	}
	if gone != 1 {
		t.Errorf("%d of the runners that waited are gone, not 1", gone)
	}
	p.Stop(t.Context())
}
