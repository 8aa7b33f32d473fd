package dockerapi

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}

// subscriptions counts the engine's subscribers, by their goroutines.
func subscriptions(t *testing.T) int {
	t.Helper()
	var dump bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&dump, 2); err != nil {
		t.Fatal(err)
	}
	n := 0
	for stack := range strings.SplitSeq(dump.String(), "\n\n") {
		if strings.Contains(stack, "(*broadcaster).subscribe.func") {
			n++
		}
	}
	return n
}

// TestAttachedReadsNoEvents attaches to a container that runs, and to one that
// is started again.
func TestAttachedReadsNoEvents(t *testing.T) {
	m := enginetest.New(t)
	s := New(Options{Engine: m.Engine, Socket: filepath.Join(m.Dir(), "docker.sock"), LogDir: m.Dir(), Root: m.Dir(), Log: slog.New(slog.DiscardHandler)})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Stop(t.Context())
	docker, err := client.New(client.WithHost("unix://" + s.opt.Socket))
	if err != nil {
		t.Fatal(err)
	}
	defer docker.Close()
	before := subscriptions(t)
	c, err := docker.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: enginetest.Busybox,
		Config: &container.Config{Cmd: []string{"cat"}, OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := docker.ContainerStart(t.Context(), c.ID, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, again := range []bool{false, true} {
		conn, err := docker.ContainerAttach(t.Context(), c.ID, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		if again {
			if _, err := docker.ContainerStart(t.Context(), c.ID, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(conn.Conn, "hello\n"); err != nil {
			t.Fatal(err)
		}
		conn.Conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if said, err := io.ReadAll(io.LimitReader(conn.Reader, 8+6)); err != nil || !strings.HasSuffix(string(said), "hello\n") {
			t.Errorf("again %v: %q, %v", again, said, err)
		}
		if n := subscriptions(t); n != before {
			t.Errorf("again %v: %d subscriptions while attached, %d before", again, n, before)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn.Reader); err != nil {
			t.Errorf("again %v: %v", again, err)
		}
		conn.Close()
		for m.Pods(t.Context(), engine.OwnerDocker)[0].State == engine.PodReady { // idle, and on its way down
			time.Sleep(time.Millisecond)
		}
	}
}
