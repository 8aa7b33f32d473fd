package engine_test

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/fault"
)

// runnerOf returns the process id of a running container's runner.
func runnerOf(t *testing.T, c engine.Container) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID))
	if err != nil {
		t.Fatal(err)
	}
	var state string
	var parent int
	rest := stat[bytes.LastIndexByte(stat, ')')+2:]
	if _, err := fmt.Sscanf(string(rest), "%s %d", &state, &parent); err != nil {
		t.Fatalf("%v: %s", err, stat)
	}
	return parent
}

// lives reports a process that has not ended. A zombie waits for the machine's
// init and is none of ours.
func lives(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// TestRunnerDoesNotAnswer: that the daemon gets no answer says nothing of the
// containers. They are left alone until there is one, or somebody ends them.
func TestRunnerDoesNotAnswer(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	_, kept := m.Run(engine.ContainerSpec{Name: "kept", Command: []string{"sleep", "1000"}})
	doomed, removed := m.Run(engine.ContainerSpec{Name: "removed", Command: []string{"sleep", "1000"}})
	runners := []int{runnerOf(t, kept), runnerOf(t, removed)}
	m.Stop()
	for _, pid := range runners {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	goOn := func() {
		for _, pid := range runners {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "ferry-runner\n" {
				syscall.Kill(pid, syscall.SIGCONT)
			}
		}
	}
	defer goOn()
	late := time.AfterFunc(time.Minute, goOn) // should the engine wait for them
	m.Start()
	if !late.Stop() {
		t.Error("the start waited for runners that did not answer")
	}
	for _, c := range []engine.Container{kept, removed} {
		if got, err := m.Container(ctx, c.ID); err != nil || got.State != engine.StateRunning || !lives(c.PID) {
			t.Errorf("%s: %+v, %v", c.Spec.Name, got, err)
		}
		if err := m.StopContainer(ctx, c.ID, 0); !fault.Is(err, fault.Unavailable) {
			t.Errorf("stop %s: %v", c.Spec.Name, err)
		}
		if err := m.RemoveContainer(ctx, c.ID, true); !fault.Is(err, fault.Unavailable) {
			t.Errorf("remove %s: %v", c.Spec.Name, err)
		}
	}
	if err := m.RemovePod(ctx, doomed.ID); err != nil {
		t.Error(err)
	}
	if lives(removed.PID) || lives(runners[1]) {
		t.Error("the removed pod lives on")
	}
	goOn()
	eventually(t, "the runner to be taken up", func() bool {
		code, err := m.Exec(ctx, kept.ID, engine.ExecSpec{Args: []string{"true"}}, engine.Streams{})
		return err == nil && code == 0
	})
	if got, err := m.Container(ctx, kept.ID); err != nil || got.State != engine.StateRunning || got.PID != kept.PID {
		t.Errorf("after all: %+v, %v", got, err)
	}
	if err := m.StopContainer(ctx, kept.ID, 0); err != nil {
		t.Error(err)
	}
}
