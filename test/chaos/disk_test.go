package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/test/machine"
)

// diskSize is that of the data directory's disk: Kubernetes' database takes most.
const diskSize = "size=700m"

// TestDiskFull fills the disk under everything that Ferry keeps, logs included,
// as containers run: they go on, what cannot be done says so, and of what ended
// meanwhile the exit code is known, also after the daemon's own end.
func TestDiskFull(t *testing.T) {
	f := newFerry(t, func(m *machine.Machine) {
		if err := errors.Join(os.MkdirAll(m.DataDir, 0o711), unix.Mount("tmpfs", m.DataDir, "tmpfs", 0, diskSize+",mode=711")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // before its removal, which looks for mounts
			tellLog(t, m)
			if _, err := m.Run("ferry", "down"); err != nil {
				t.Error(err)
			}
			if err := unix.Unmount(m.DataDir, 0); err != nil {
				t.Error(err)
			}
		})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	const ticks = "trap 'exit 5' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1 & wait $!; done"
	for name, script := range map[string]string{"ticking": ticks, "waiting": "trap 'exit 9' TERM; echo up; sleep 100000 & wait"} {
		if _, err := f.start(ctx, name, script); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.create(ctx, "made", "exit 3"); err != nil {
		t.Fatal(err)
	}
	until(t, "both to write", func() error { return f.says(ctx, "tick 3\n", "ticking", "waiting") })
	fill := filepath.Join(f.DataDir, "fill")
	filled := fillDisk(t, fill)
	t.Logf("%d MB filled the disk", filled>>20)

	// One ends while nothing can be written about it.
	if err := f.signal(ctx, "waiting"); err != nil {
		t.Errorf("stop one on a full disk: %v", err)
	}
	until(t, "the exit of one on a full disk", func() error { return f.exited(ctx, "waiting", 9) })
	// Nothing new can be made, which is said, and the daemon is none the worse for it.
	// What had room all the same has run to its end.
	_, err := f.start(ctx, "new", "exit 4")
	f.startedOrFull(ctx, "new", 4, err)
	_, err = f.ContainerStart(ctx, "made", client.ContainerStartOptions{})
	f.startedOrFull(ctx, "made", 3, err)
	list, err := f.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil || len(list.Items) < 3 {
		t.Errorf("containers on a full disk: %d, %v", len(list.Items), err)
	}
	if out, code, err := f.exec(ctx, "ticking", "echo", "well"); err != nil || code != 0 || out != "well\n" {
		t.Errorf("exec on a full disk: %q, %d, %v", out, code, err)
	}
	if err := f.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	f.up()
	if err := f.exited(ctx, "waiting", 9); err != nil {
		t.Errorf("after the daemon's end: %v", err)
	}
	if _, err := f.ContainerStart(ctx, "made", client.ContainerStartOptions{}); err != nil {
		t.Errorf("start once there is room: %v", err)
	}
	until(t, "the exit of the one that was made before", func() error { return f.exited(ctx, "made", 3) })
	// The other one has not noticed, and its log goes on.
	was, err := f.logs(ctx, "ticking")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the log to go on", func() error {
		now, err := f.logs(ctx, "ticking")
		if err == nil && len(now) <= len(was) {
			err = errors.New("nothing more is written")
		}
		return err
	})
	if err := f.signal(ctx, "ticking"); err != nil {
		t.Error(err)
	}
	until(t, "the exit of the other", func() error { return f.exited(ctx, "ticking", 5) })
	for _, name := range []string{"ticking", "waiting", "made", "new"} {
		_ = f.discard(ctx, name) // new may not be there
	}
	if _, err := f.Run("ferry", "run", "--rm", "box", "true"); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

// fillDisk writes a file until the disk has no byte left.
func fillDisk(t *testing.T, path string) (written int64) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		n, err := file.Write(block)
		written += int64(n)
		if err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			block = block[:len(block)/2] // the last bytes, too
		}
	}
	return written
}

// startedOrFull: a container was started on a full disk, which has failed because
// of that and left it at rest, or it runs to its end.
func (f *ferry) startedOrFull(ctx context.Context, name string, code int, err error) {
	f.t.Helper()
	f.t.Logf("start %s on a full disk: %v", name, err)
	if err == nil {
		until(f.t, "the exit of "+name+" on a full disk", func() error { return f.exited(ctx, name, code) })
		return
	}
	if !strings.Contains(err.Error(), "no space left") {
		f.t.Errorf("start %s on a full disk: %v", name, err)
	}
	if s, err := f.state(ctx, name); err == nil && s.Running { // it may not be there
		f.t.Errorf("%s runs, though its start has failed", name)
	}
}

// says is an error unless the first container's log has the text, and the others' any.
func (f *ferry) says(ctx context.Context, text string, names ...string) error {
	for i, name := range names {
		log, err := f.logs(ctx, name)
		if err != nil {
			return err
		}
		if i == 0 && !strings.Contains(log, text) || log == "" {
			return fmt.Errorf("log of %s: %q", name, log)
		}
	}
	return nil
}

func (f *ferry) signal(ctx context.Context, name string) error {
	_, err := f.ContainerKill(ctx, name, client.ContainerKillOptions{Signal: "TERM"})
	return err
}

// exited is an error unless a container has ended with the code.
func (f *ferry) exited(ctx context.Context, name string, code int) error {
	s, err := f.state(ctx, name)
	if err == nil && (s.Running || s.ExitCode != code) {
		err = fmt.Errorf("%s is %s, exit code %d, want %d; %q", name, s.Status, s.ExitCode, code, s.Error)
	}
	return err
}
