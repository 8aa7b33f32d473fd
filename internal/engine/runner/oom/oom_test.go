package oom

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// control writes what memory.oom_control says.
func control(t *testing.T, path string, disabled, out, kills int) {
	t.Helper()
	text := fmt.Sprintf("oom_kill_disable %d\nunder_oom %d\noom_kill %d\n", disabled, out, kills)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.oom_control")
	for _, tt := range []struct {
		name   string
		kernel func(c *Counter) // what the notification comes of
		want   int
	}{
		{"the cgroup is removed", func(c *Counter) { c.file.Close() }, 0},
		{"and before it was asked for its kills", func(c *Counter) { c.Kills() }, 0},
		{"a kill", func(*Counter) { control(t, path, 0, 0, 1) }, 1},
		{"a kill that is counted later", func(*Counter) {
			control(t, path, 0, 1, 0)
			time.AfterFunc(20*time.Millisecond, func() { control(t, path, 0, 0, 1) })
		}, 1},
		{"the last kill, the cgroup being gone", func(c *Counter) { control(t, path, 0, 0, 1); c.Kills() }, 1},
		{"nobody is killed", func(*Counter) { control(t, path, 1, 1, 0) }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			control(t, path, 0, 0, 0)
			c := Open(filepath.Join(t.TempDir(), "none"), path)
			defer c.file.Close()
			tt.kernel(c)
			notifications := make(chan struct{}, 1)
			notifications <- struct{}{}
			close(notifications)
			got := 0
			c.Follow(notifications, func() { got++ })
			if got != tt.want {
				t.Errorf("told %d times, want %d", got, tt.want)
			}
		})
	}
}

// TestOnce: what a kill was told of for, the removal is not.
func TestOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory.oom_control")
	control(t, path, 0, 0, 1)
	c := Open(path)
	notifications := make(chan struct{})
	told := make(chan int)
	go func() {
		n := 0
		c.Follow(notifications, func() { n++ })
		told <- n
	}()
	notifications <- struct{}{} // the kill
	time.Sleep(20 * time.Millisecond)
	if n := c.Kills(); n != 1 {
		t.Errorf("%d kills", n)
	}
	notifications <- struct{}{} // the removal
	close(notifications)
	if n := <-told; n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestWithoutController(t *testing.T) {
	c := Open(filepath.Join(t.TempDir(), "none"))
	if c.Counts() || c.Kills() != 0 {
		t.Error("it counts in nothing")
	}
}
