package instance

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func running(t *testing.T, dir string, want bool) {
	t.Helper()
	if got, err := Running(dir); err != nil || got != want {
		t.Errorf("running: %v, %v; want %v", got, err, want)
	}
}

func TestOneAtATime(t *testing.T) {
	dir := t.TempDir()
	running(t, dir, false)
	first, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	running(t, dir, true)
	if _, err := Lock(dir); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("second lock: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	running(t, dir, false)
	again, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestLookingKeepsNobodyOut has somebody look at the very moment of the start.
func TestLookingKeepsNobodyOut(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		look, err := os.Create(filepath.Join(dir, LockName))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(look.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(lockPause+lockPause/2, func() { look.Close() })
		f, err := Lock(dir)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	})
}
