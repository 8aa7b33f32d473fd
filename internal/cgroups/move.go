package cgroups

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Mover makes the next move of a process into a cgroup fast.
//
// The first move on the machine waits until every processor has passed through
// the scheduler (an RCU grace period, 6 to 15 ms), and those that follow within
// about as long do not. Who knows that a move is to come has something else
// wait in the meantime.
type Mover struct {
	path string // this process's cgroup.procs in a hierarchy; "" where none is known
	mu   sync.Mutex
}

// NewMover returns a Mover for this process.
func NewMover() *Mover { return &Mover{path: ownProcs()} }

// Expect begins the wait, in the background, by moving this process to where it
// is; nothing changes by that. It does nothing while another Expect is under way.
func (m *Mover) Expect() {
	if m.path == "" || !m.mu.TryLock() {
		return
	}
	go func() { // ends within a grace period
		defer m.mu.Unlock()
		// A hint: should it fail, the move itself waits.
		_ = os.WriteFile(m.path, []byte(strconv.Itoa(os.Getpid())), 0)
	}()
}

// ownProcs finds the file with this process's cgroup's processes: that of v2,
// or of the hierarchy of v1 that has pids.
func ownProcs() string {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 3) // ID:controllers:path
		if len(fields) != 3 {
			continue
		}
		base := root
		switch {
		case Unified() && fields[0] == "0":
		case !Unified() && fields[1] == "pids":
			base = filepath.Join(root, "pids")
		default:
			continue
		}
		path := filepath.Join(base, fields[2], "cgroup.procs")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
