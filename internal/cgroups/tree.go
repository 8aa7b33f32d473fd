package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirs are the directories of the cgroup with this absolute path: one, or on v1
// one in each hierarchy. They need not exist.
func dirs(path string) ([]string, error) {
	if Unified() {
		return []string{filepath.Join(root, path)}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		hierarchy := filepath.Join(root, e.Name())
		if mounted(hierarchy, unix.CGROUP_SUPER_MAGIC) || mounted(hierarchy, unix.CGROUP2_SUPER_MAGIC) {
			list = append(list, filepath.Join(hierarchy, path))
		}
	}
	return list, nil
}

// tree lists a cgroup's directory and those below it, inner ones first.
func tree(dir string) ([]string, error) {
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // gone since it was listed
			return nil
		}
		if err == nil && d.IsDir() {
			list = append(list, path)
		}
		return err
	})
	slices.Reverse(list)
	return list, err
}

// Remove removes the cgroup with this path and those below it, in every
// hierarchy. It fails if a process is in one of them. Idempotent.
func Remove(path string) error {
	tops, err := dirs(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, top := range tops {
		errs = append(errs, remove(top))
	}
	return errors.Join(errs...)
}

func remove(top string) error {
	list, err := tree(top)
	errs := []error{err}
	for _, dir := range list {
		if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Kill ends what runs in the cgroup with this path and in those below it and
// removes them, in every hierarchy. The processes get this long to be gone.
// Idempotent.
func Kill(path string, patience time.Duration) error {
	tops, err := dirs(path)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		// All hierarchies in each turn: a frozen process dies only once the
		// freezer's has thawed it, whichever it is found in first.
		var errs []error
		for _, top := range tops {
			errs = append(errs, kill(top))
		}
		for _, top := range tops {
			errs = append(errs, remove(top))
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s does not get empty: %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// kill sends SIGKILL to the processes of a cgroup and of those below it.
func kill(top string) error {
	// v2 from Linux 5.14 on misses none that forks. Elsewhere the next look finds it.
	_ = os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0)
	list, err := tree(top)
	if err != nil {
		return err
	}
	for _, dir := range list {
		pids, err := processes(dir)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // what is left keeps the cgroup from going
		}
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0) // where it is v1's freezer
	}
	return nil
}

// processes are those in a cgroup itself; none if there is no such cgroup.
func processes(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // ENODEV: removed while it was read
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %w", dir, err)
		}
		if pid > 0 { // 0 is one of another PID namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// CheckParent is an error if cgroups with limits cannot be made below parent, an
// absolute path: v2 allows none below a cgroup that has processes of its own,
// but for the machine's root.
func CheckParent(parent string) error {
	if !Unified() {
		return nil
	}
	dir := root
	for _, name := range append([]string{""}, strings.Split(strings.Trim(filepath.Clean(parent), "/"), "/")...) {
		dir = filepath.Join(dir, name)
		kind, err := os.ReadFile(filepath.Join(dir, "cgroup.type"))
		if errors.Is(err, fs.ErrNotExist) { // the machine's root has no type; what is missing is made
			continue
		}
		if err != nil {
			return err
		}
		shown := "/" + strings.TrimPrefix(strings.TrimPrefix(dir, root), "/")
		if k := strings.TrimSpace(string(kind)); k != "domain" {
			return fmt.Errorf("cgroup %s is of the type %q, below which there are no limits of memory", shown, k)
		}
		pids, err := processes(dir)
		if err != nil {
			return err
		}
		if len(pids) > 0 {
			return fmt.Errorf("cgroup %s has processes of its own (%d), so that cgroup v2 allows no limits below it", shown, pids[0])
		}
	}
	return nil
}

// ParentRemedy is what to do where CheckParent fails.
const ParentRemedy = "set cgroupParent to a cgroup without processes; in a container, move those of the root, " +
	"/sys/fs/cgroup/cgroup.procs, into a cgroup of their own before the start"
