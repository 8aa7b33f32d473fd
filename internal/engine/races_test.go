package engine_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/fault"
)

func recordOf(m *enginetest.Machine, kind, id string) string {
	return filepath.Join(m.Dir(), "engine", kind, id+".json")
}

// TestStartUnrecorded: a start that cannot be recorded is taken back, and the
// end of what was to run counts once.
func TestStartUnrecorded(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	pod, err := m.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: "p", PID: engine.ModeContainer})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 { // who is first to tell of the end is chance
		c, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "c", Image: enginetest.Busybox, Command: []string{"sleep", "1000"}})
		if err != nil {
			t.Fatal(err)
		}
		inTheWay := recordOf(m, "containers", c.ID) + ".new"
		if err := os.Mkdir(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := m.StartContainer(ctx, c.ID); err == nil {
			t.Error("the start succeeded")
		}
		if got, err := m.Wait(ctx, c.ID); err != nil || got.ExitCode == 0 || got.Reason != engine.ReasonStartError {
			t.Errorf("exit %d, %s, %v", got.ExitCode, got.Reason, err)
		}
		if err := os.Remove(inTheWay); err != nil {
			t.Fatal(err)
		}
		if err := m.StartContainer(ctx, c.ID); err != nil {
			t.Errorf("the next start: %v", err)
		}
		if err := m.RemoveContainer(ctx, c.ID, true); err != nil {
			t.Error(err)
		}
	}
}

// TestFrozenUnrecorded: the daemon is killed after it froze or thawed a
// container and before it said so.
func TestFrozenUnrecorded(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	_, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"sleep", "1000"}})
	record := recordOf(m, "containers", c.ID)
	running, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	left, cancel := context.WithCancel(ctx)
	cancel()
	if err := m.Pause(left, c.ID); err != nil {
		t.Fatalf("pause for a caller who has left: %v", err)
	}
	paused, err := os.ReadFile(record)
	if err != nil || bytes.Equal(paused, running) {
		t.Fatalf("the record of a paused one: %s, %v", paused, err)
	}
	again := func(record string, old []byte) {
		m.Stop()
		if err := os.WriteFile(record, old, 0o600); err != nil {
			t.Fatal(err)
		}
		m.Start()
	}
	again(record, running)
	if got, err := m.Container(ctx, c.ID); err != nil || got.State != engine.StatePaused {
		t.Errorf("frozen, recorded as running: %s, %v", got.State, err)
	}
	if err := m.Resume(left, c.ID); err != nil {
		t.Fatal(err)
	}
	again(record, paused)
	if got, err := m.Container(ctx, c.ID); err != nil || got.State != engine.StateRunning {
		t.Errorf("thawed, recorded as paused: %s, %v", got.State, err)
	}
	if code, err := m.Exec(ctx, c.ID, engine.ExecSpec{Args: []string{"true"}}, engine.Streams{}); err != nil || code != 0 {
		t.Errorf("exec: %d, %v", code, err)
	}
}

// TestRemovedStaysRemoved: who changes a container or a pod while it is removed
// does not write its record again.
func TestRemovedStaysRemoved(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	for range 5 {
		pod, err := m.CreatePod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: "p", StopWhenIdle: true, PID: engine.ModeContainer, Network: engine.ModePod})
		if err != nil {
			t.Fatal(err)
		}
		c, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "c", Image: enginetest.Busybox, Command: []string{"true"}})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		changes := func(change func() error) {
			all.Go(func() {
				for end := time.Now().Add(time.Minute); time.Now().Before(end); {
					if err := change(); fault.Is(err, fault.NotFound) {
						return
					} else if err != nil {
						t.Error(err)
					}
				}
				t.Error("it is not removed")
			})
		}
		for range 3 {
			changes(func() error { return m.UpdateContainer(ctx, c.ID, engine.Resources{}) })
			changes(func() error { return m.AmendContainer(ctx, c.ID, "d", nil) })
			changes(func() error { return m.Rename(ctx, pod.ID, "a", "b") })
			all.Go(func() {
				if err := m.RemovePod(ctx, pod.ID); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, dir := range []string{"containers", "pods"} {
			left, err := os.ReadDir(filepath.Join(m.Dir(), "engine", dir))
			for _, entry := range left {
				if strings.HasPrefix(entry.Name(), pod.ID) || strings.HasPrefix(entry.Name(), c.ID) {
					t.Errorf("left in %s: %s", dir, entry.Name())
				}
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// TestCreateInRemovedPod: of a pod that is removed while a container is made in
// it, no container is left, nor what one takes.
func TestCreateInRemovedPod(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	refused := 0
	for i := range 100 {
		pod, err := m.CreatePod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: "p", PID: engine.ModeContainer, StopWhenIdle: true})
		if err != nil {
			t.Fatal(err)
		}
		made := make(chan error, 1)
		go func() {
			_, err := m.CreateContainer(ctx, pod.ID, engine.ContainerSpec{Name: "c", Image: enginetest.Busybox, Command: []string{"true"}})
			made <- err
		}()
		time.Sleep(time.Duration(i) * 100 * time.Microsecond) // who is first is chance
		if err := m.RemovePod(ctx, pod.ID); err != nil {
			t.Fatal(err)
		}
		switch err := <-made; {
		case fault.Is(err, fault.NotFound):
			refused++
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Logf("%d of 100 were refused", refused)
	for _, c := range m.Containers(ctx, "") {
		t.Errorf("container %s is left", c.ID)
	}
	if left, err := os.ReadDir(filepath.Join(m.Dir(), "engine", "containers")); err != nil || len(left) > 0 {
		t.Errorf("records are left: %v, %v", left, err)
	}
}
