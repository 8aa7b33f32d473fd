package engine_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// TestForkBomb: a limit of processes keeps a fork bomb to its own container, and
// all of it dies at the stop.
func TestForkBomb(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	const limit = 40
	_, bomb := m.Run(engine.ContainerSpec{Name: "bomb", Command: []string{"sh", "-c", `bomb() { sleep 1000 & bomb & bomb & wait; }; bomb 2>/dev/null & exec sleep 1000`},
		Resources: engine.Resources{Pids: limit}})
	eventually(t, "the bomb to go off", func() bool {
		s, err := m.Stats(ctx, bomb.ID)
		return err == nil && s.Pids > limit/2
	})
	for range 5 {
		s, err := m.Stats(ctx, bomb.ID)
		if err != nil || s.Pids > limit {
			t.Errorf("%d processes, %v; the limit is %d", s.Pids, err, limit)
		}
		_, c := m.Run(engine.ContainerSpec{Name: "beside", Command: []string{"echo", "fine"}})
		if out := logOf(t, m, c); out != "fine\n" {
			t.Errorf("a container beside it says %q", out)
		}
	}
	pids, err := m.Processes(ctx, bomb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StopContainer(ctx, bomb.ID, 0); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		// The number may be another process's by now, but not in this container.
		groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
		if err == nil && strings.Contains(string(groups), bomb.ID) && lives(pid) {
			t.Errorf("process %d of it lives on", pid)
		}
	}
}

// TestOutOfMemory: who was killed for memory says so, be it the main process or
// another, as Docker and Kubernetes have it; who was killed otherwise does not.
func TestOutOfMemory(t *testing.T) {
	m := enginetest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := m.Subscribe(ctx)
	const eat = "dd if=/dev/zero of=/dev/null bs=256M count=1 2>/dev/null"
	small := engine.Resources{Memory: 24 << 20, MemorySwap: 24 << 20}
	told := map[string]string{}
	for _, c := range []struct {
		name, script, reason string
		code                 int
	}{
		{"main", "exec " + eat, "OOMKilled", 137},
		{"child", eat + "; exit 3", "OOMKilled", 3},
		{"killed", "kill -9 $$; sleep 1; exit 5", "Error", 5}, // process 1 cannot kill itself
		{"modest", "exit 0", "Completed", 0},
	} {
		_, ctr := m.Run(engine.ContainerSpec{Name: c.name, Command: []string{"sh", "-c", c.script}, Resources: small})
		got, err := m.Wait(ctx, ctr.ID)
		if err != nil || got.Reason != c.reason || got.ExitCode != c.code {
			t.Errorf("%s: %s, code %d, %v; want %s, %d", c.name, got.Reason, got.ExitCode, err, c.reason, c.code)
		}
		if c.reason == "OOMKilled" {
			told[ctr.ID] = c.name
		}
	}
	_, c := m.Run(engine.ContainerSpec{Name: "stopped", Command: []string{"sleep", "1000"}, Resources: small})
	if err := m.StopContainer(ctx, c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Container(ctx, c.ID); err != nil || got.Reason != "Error" || got.ExitCode != 137 {
		t.Errorf("stopped: %s, code %d, %v", got.Reason, got.ExitCode, err)
	}
	limit := time.After(10 * time.Second)
	for len(told) > 0 {
		select {
		case ev := <-events:
			if ev.Type == engine.EventOOM {
				if told[ev.Container.ID] == "" {
					t.Errorf("out of memory is told of %s", ev.Container.Spec.Name)
				}
				delete(told, ev.Container.ID)
			}
		case <-limit:
			t.Fatalf("no event of %v", told)
		}
	}
}

// TestIgnoresStopSignal: who does not end at its signal ends after its grace.
func TestIgnoresStopSignal(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	_, c := m.Run(engine.ContainerSpec{Name: "deaf", Command: []string{"sh", "-c", "trap 'echo heard' TERM; trap '' HUP INT; echo ready; while true; do sleep 0.1; done"}})
	eventually(t, "the trap", func() bool {
		log, err := os.ReadFile(c.LogPath)
		return err == nil && strings.Contains(string(log), "ready")
	})
	const grace = 700 * time.Millisecond
	begin := time.Now()
	if err := m.StopContainer(ctx, c.ID, grace); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < grace {
		t.Errorf("it was killed after %v of %v", took, grace)
	}
	got, err := m.Container(ctx, c.ID)
	if err != nil || got.State != engine.StateExited || got.ExitCode != 137 || got.Reason != "Error" {
		t.Errorf("after the stop: %+v, %v", got, err)
	}
	if out := logOf(t, m, c); out != "ready\nheard\n" {
		t.Errorf("it printed:\n%s", out)
	}
}

// TestLogFlood: a container prints as fast as it can; no line is lost, and
// neither the daemon nor the runner grows.
func TestLogFlood(t *testing.T) {
	m := enginetest.New(t)
	const lines, passes = 100_000, 30 // cat writes faster than any program makes lines
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_, c := m.Run(engine.ContainerSpec{Name: "flood", Command: []string{"sh", "-c",
		fmt.Sprintf("seq 1 %d > /lines; echo; for i in $(seq 1 %d); do cat /lines; done; echo the end; sleep 1000", lines, passes)}})
	eventually(t, "the first line", func() bool { st, err := os.Stat(c.LogPath); return err == nil && st.Size() > 0 })
	begin := time.Now()
	eventually(t, "the last line", func() bool {
		f, err := os.Open(c.LogPath)
		if err != nil {
			return false
		}
		defer f.Close()
		end := make([]byte, 64)
		st, err := f.Stat()
		if err != nil || st.Size() < int64(len(end)) {
			return false
		}
		_, err = f.ReadAt(end, st.Size()-int64(len(end)))
		return err == nil && strings.HasSuffix(string(end), " the end\n")
	})
	t.Logf("%d lines a millisecond", lines*passes/max(1, int(time.Since(begin).Milliseconds())))
	const most = 48 << 10 // kilobytes, of which the program itself is a part
	if rss := residentKB(t, runnerOf(t, c)); rss > most {
		t.Errorf("the runner holds %d kB", rss)
	}
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the daemon's side grew by %d bytes", grown)
	}
	log, err := os.Open(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	scan, n := bufio.NewScanner(log), 0
	for scan.Scan() {
		_, line, _ := strings.Cut(scan.Text(), " stdout F ")
		switch want := strconv.Itoa((n-1)%lines + 1); {
		case n == 0 && line == "", n == lines*passes+1 && line == "the end", line == want:
		default:
			t.Fatalf("line %d is %q", n, scan.Text())
		}
		n++
	}
	if scan.Err() != nil || n != lines*passes+2 {
		t.Errorf("%d lines of %d, %v", n, lines*passes+2, scan.Err())
	}
	if err := m.StopContainer(t.Context(), c.ID, 0); err != nil {
		t.Fatal(err)
	}
}

func residentKB(t *testing.T, pid int) (kb int) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}
