package chaos

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// TestKillRunner kills the process that a container hangs on: the container is
// dead with a reason, whoever was connected to it is told, and nobody else
// notices.
func TestKillRunner(t *testing.T) {
	f := newFerry(t)
	before := f.Inventory()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	other, err := f.start(ctx, "other", "sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func(id string){
		"while connected":       nil,
		"while frozen":          func(id string) { f.must(f.ContainerPause(ctx, id, client.ContainerPauseOptions{})) },
		"while the daemon away": func(string) { f.mustNot(f.Kill()) },
	} {
		t.Run(name, func(t *testing.T) { f.killRunner(ctx, t, prepare) })
	}
	if out, code, err := f.exec(ctx, other, "echo", "well"); err != nil || code != 0 || out != "well\n" {
		t.Errorf("the other container: %q, %d, %v", out, code, err)
	}
	if err := f.discard(ctx, other); err != nil {
		t.Error(err)
	}
	f.settled(before)
}

func (f *ferry) must(_ any, err error) { f.t.Helper(); f.mustNot(err) }
func (f *ferry) mustNot(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// killRunner kills the runner of a container of its own.
func (f *ferry) killRunner(ctx context.Context, t *testing.T, prepare func(id string)) {
	id, err := f.start(ctx, "victim", "echo begun; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	s, err := f.state(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	runner, err := parent(s.Pid)
	if err != nil {
		t.Fatal(err)
	}
	connected := f.connect(ctx, t, id)
	if prepare != nil {
		prepare(id)
	}
	if err := unix.Kill(runner, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.up()
	for what, ended := range connected {
		select {
		case <-ended:
		case <-ctx.Done():
			t.Fatalf("%s hangs", what)
		}
	}
	until(t, "the container to be dead", func() error {
		s, err = f.state(ctx, id)
		if err == nil && s.Running {
			err = fmt.Errorf("it is %s", s.Status)
		}
		return err
	})
	if s.ExitCode != 137 || !strings.Contains(s.Error, "runner") {
		t.Errorf("exit code %d, reason %q; want 137 and that the runner ended", s.ExitCode, s.Error)
	}
	if text, err := f.logs(ctx, id); err != nil || text != "begun\n" {
		t.Errorf("log: %q, %v", text, err)
	}
	// It is as any that has ended: it can be started again.
	if _, err := f.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Error(err)
	} else if out, _, err := f.exec(ctx, id, "echo", "again"); err != nil || out != "again\n" {
		t.Errorf("after another start: %q, %v", out, err)
	}
	if err := f.discard(ctx, id); err != nil {
		t.Error(err)
	}
}

// connect opens what clients keep open; each channel is closed once that ends.
func (f *ferry) connect(ctx context.Context, t *testing.T, id string) map[string]<-chan struct{} {
	t.Helper()
	out := map[string]<-chan struct{}{}
	follow := func(what string, r io.ReadCloser) {
		ended := make(chan struct{})
		out[what] = ended
		go func() {
			defer close(ended)
			_, _ = io.Copy(io.Discard, r) // however it ends
			r.Close()
		}()
	}
	logs, err := f.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	follow("logs -f", logs)
	attached, err := f.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	follow("attach", attached.Conn)
	made, err := f.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: []string{"sleep", "1000"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	execed, err := f.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	follow("exec", execed.Conn)
	waited, wait := make(chan struct{}), f.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	out["wait"] = waited
	go func() {
		defer close(waited)
		select {
		case <-wait.Result:
		case <-wait.Error:
		}
	}()
	time.Sleep(200 * time.Millisecond) // all of it under way
	return out
}

// parent is a process's parent.
func parent(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fmt.Errorf("process %d has no parent", pid)
}
