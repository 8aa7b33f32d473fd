package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// orphanTime is how long killed orphans get to be gone.
const orphanTime = 5 * time.Second

// KillOrphans kills what runs in a container's cgroup after its runner is gone
// and removes the cgroup, in every hierarchy. path is the cgroup's absolute
// path. Idempotent.
func KillOrphans(path string) error {
	if path == "" || filepath.Clean(path) == "/" {
		return nil
	}
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + filepath.Clean(path))
	if err != nil {
		return err
	}
	dirs = append(dirs, filepath.Join("/sys/fs/cgroup", path)) // v2 alone
	for _, dir := range dirs {
		if err := emptyCgroup(dir); err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
	}
	return nil
}

func emptyCgroup(dir string) error {
	deadline := time.Now().Add(orphanTime)
	for {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(procs)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL) // what is left keeps the cgroup from going, below
			}
		}
		// A frozen process of cgroup v1 dies only once thawed.
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		err = os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
