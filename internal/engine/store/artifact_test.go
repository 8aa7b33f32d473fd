package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWriteFileReplaces: what an artifact's earlier layer put in a file's place
// is not opened, for it may be a pipe or a device.
func TestWriteFileReplaces(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(outside, filepath.Join(dir, "device")); err != nil { // as good as one: written to, it changes elsewhere
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "device", "new/file", "../escaped"} {
		done := make(chan error, 1)
		go func() { done <- writeFile(dir, name, strings.NewReader("data")) }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: writing hangs", name)
		}
		path := filepath.Join(dir, filepath.Clean("/"+name))
		if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, st, err)
		} else if data, err := os.ReadFile(path); err != nil || string(data) != "data" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if data, _ := os.ReadFile(outside); string(data) != "untouched" {
		t.Errorf("the other file holds %q", data)
	}
}
