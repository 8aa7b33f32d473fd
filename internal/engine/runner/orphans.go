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
	deadline := time.Now().Add(orphanTime)
	for {
		left, err := emptyCgroups(dirs)
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroups %s do not get empty", strings.Join(left, " "))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// emptyCgroups kills what runs in one cgroup, given by its directories in the
// hierarchies, and removes those that are empty. It returns the others: a
// frozen process dies only once the freezer's has thawed it, whichever it is
// found in first.
func emptyCgroups(dirs []string) (left []string, err error) {
	for _, dir := range dirs {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", dir, err)
		}
		for _, field := range strings.Fields(string(procs)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL) // what is left keeps the cgroup from going, below
			}
		}
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0) // where it is the freezer's
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			left = append(left, dir)
		}
	}
	return left, nil
}
