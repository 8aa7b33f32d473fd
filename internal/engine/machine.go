package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/engine/runner"
)

// machine is what the engine finds out once about where it runs.
type machine struct {
	caps      []string // capabilities this process holds in its bounding set
	minOOMAdj int      // the lowest oom_score_adj it may set
	cgroupV2  bool
	hugetlb   bool // limits of huge pages can be set
}

func inspectMachine() machine {
	m := machine{minOOMAdj: -1000}
	for i, name := range runner.Capabilities { // their index is the kernel's number
		if held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && held == 1 {
			m.caps = append(m.caps, name)
		}
	}
	if v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil || v != 1 {
		m.minOOMAdj = ownOOMAdj()
	}
	m.cgroupV2 = cgroups.Unified()
	// The kubelet sends limits of zero to every container whether or not it is there.
	m.hugetlb = cgroups.Has("hugetlb")
	return m
}

func ownOOMAdj() int {
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return v
}

func modeOf(mode uint32) os.FileMode { return os.FileMode(mode & 0o777) }

// hostDevices lists every device node below dir except terminals and mounts of
// their own, which each container has for itself.
func hostDevices(dir string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	skip := map[string]bool{"pts": true, "shm": true, "fd": true, "mqueue": true, "console": true, ".lxc": true, ".lxd-mounts": true, ".udev": true}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if skip[d.Name()] && filepath.Dir(path) == dir {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type()&fs.ModeDevice == 0 {
			return nil
		}
		node, err := hostDevice(path, path)
		if err != nil {
			return nil // gone since the listing
		}
		out = append(out, node)
		return nil
	})
	return out, err
}
