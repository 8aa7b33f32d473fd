// Package runner is the client of ferry-runner, the small program that is the
// parent of one pod's containers: it reaps them, owns their pipes, terminals
// and logs, and remembers their exits while the daemon is away.
//
// The engine alone imports it. runner/proc is
// the other side of the socket.
//
// # Wire
//
// The runner listens on the unix socket "sock" in its directory; only root may
// connect. A connection carries one call: a request frame, then the answer. A
// frame is one byte of type, four bytes of length (big-endian) and the payload:
//
//	R request  {"version":1,"op":…,"body":…}      O result   JSON of the operation
//	E error    {"kind":…,"message":…}             S started  an attached stream is in place
//	V event    Event                              0 stdin  1 stdout  2 stderr  bytes
//	C stdin has ended                             W resize   [columns, rows]
package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/fault"
)

// LaunchOptions say how to start a runner.
type LaunchOptions struct {
	Binary string // path of ferry-runner
	Dir    string // private directory, made 0700; at most 80 bytes
	Log    *slog.Logger
}

// SetupRequest is what a pod's containers share.
type SetupRequest struct {
	Hostname string `json:"hostname,omitempty"`
	HostIPC  bool   `json:"hostIPC,omitempty"`
	HostUTS  bool   `json:"hostUTS,omitempty"`
	// SharePID makes a PID namespace whose process 1 is a reaper of ours.
	SharePID bool `json:"sharePID,omitempty"`
	// Users makes a user namespace, which owns the others and a network
	// namespace beside them.
	Users *Users `json:"users,omitempty"`
}

// Users are the ids of a user namespace.
type Users struct {
	UIDs []specs.LinuxIDMapping `json:"uids"`
	GIDs []specs.LinuxIDMapping `json:"gids"`
}

// Capabilities are those of capabilities(7), of Linux 5.9 and later, each at its number.
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// UID is this machine's id of a container's user; without a user namespace, a
// nil Users, the same. An id without one is nobody's.
func (u *Users) UID(id int) int {
	if u == nil {
		return id
	}
	return hostID(u.UIDs, id)
}

// GID is UID of a group.
func (u *Users) GID(id int) int {
	if u == nil {
		return id
	}
	return hostID(u.GIDs, id)
}

// overflow is the id of those without one in a mapping; user_namespaces(7).
const overflow = 65534

func hostID(maps []specs.LinuxIDMapping, id int) int {
	for _, m := range maps {
		if first := int(m.ContainerID); id >= first && id < first+int(m.Size) {
			return int(m.HostID) + id - first
		}
	}
	return overflow
}

// Namespaces are files to join a pod's namespaces by; "" is the host's (IPC,
// UTS) or none shared (PID). They are valid as long as the runner lives.
type Namespaces struct {
	IPC string `json:"ipc,omitempty"`
	UTS string `json:"uts,omitempty"`
	PID string `json:"pid,omitempty"`
	// User and Net are there with SetupRequest.Users alone. Net has no interface but lo.
	User string `json:"user,omitempty"`
	Net  string `json:"net,omitempty"`
}

// CreateRequest describes a container. Its root is mounted already.
type CreateRequest struct {
	ID          string      `json:"id"`
	Spec        *specs.Spec `json:"spec"`
	Profile     string      `json:"profile,omitempty"`     // set by Create: where the spec's seccomp profile is, see ProfileDir
	LogPath     string      `json:"logPath,omitempty"`     // CRI log format; "" keeps none
	LogMaxBytes int64       `json:"logMaxBytes,omitempty"` // rotate beyond; 0: never
	LogMaxFiles int         `json:"logMaxFiles,omitempty"` // files kept, the current one included
	TTY         bool        `json:"tty,omitempty"`
	Stdin       bool        `json:"stdin,omitempty"`
	StdinOnce   bool        `json:"stdinOnce,omitempty"` // the first attacher's end of input is the container's
}

// ExecRequest describes one more process in a container.
type ExecRequest struct {
	ContainerID string `json:"containerID"`
	// Detached lets the process run on when the caller hangs up.
	Detached bool           `json:"detached,omitempty"`
	ExecID   string         `json:"execID"`
	Process  *specs.Process `json:"process"`
	TTY      bool           `json:"tty,omitempty"`
	Stdin    bool           `json:"stdin,omitempty"`
}

// Streams connect a caller to a process; nil ones are not connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan [2]uint // columns, rows
	// Started, if set, is called when the streams are in place (Attach) or the
	// process runs (Exec), from another goroutine.
	Started func()
}

// Status is a container's state as its runner knows it.
type Status string

// The states of a container.
const (
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusPaused  Status = "paused"
	StatusExited  Status = "exited"
)

// Exit is how a container ended.
type Exit struct {
	Code       int       `json:"code"` // 128 + the signal's number if one ended it
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt"`
	Error      string    `json:"error,omitempty"`
}

// State is a container as List and Events show it.
type State struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	PID    int    `json:"pid,omitempty"`
	Exit   *Exit  `json:"exit,omitempty"` // once exited
}

// EventType names an event.
type EventType string

// The event types.
const (
	EventStart EventType = "start"
	EventExit  EventType = "exit"
	EventOOM   EventType = "oom"
)

// Event is something that happened to a container. Exits of the past are sent
// again at the beginning of every Events call.
type Event struct {
	Type EventType `json:"type"`
	ID   string    `json:"id"`
	Exit Exit      `json:"exit,omitzero"`
}

// Stats is a container's usage, from its cgroup.
type Stats struct {
	CPUNanos         uint64 `json:"cpuNanos"`
	MemoryUsage      uint64 `json:"memoryUsage"` // bytes, page cache included
	MemoryWorkingSet uint64 `json:"memoryWorkingSet"`
	MemoryRSS        uint64 `json:"memoryRSS"`
	MemoryLimit      uint64 `json:"memoryLimit,omitempty"` // 0: none
	PageFaults       uint64 `json:"pageFaults"`
	MajorPageFaults  uint64 `json:"majorPageFaults"`
	Pids             uint64 `json:"pids"`
	Detail
}

// Detail is what the cgroup tells beyond the sums.
type Detail struct {
	CPUUser          uint64            `json:"cpuUser,omitempty"` // nanoseconds, as all of CPU
	CPUKernel        uint64            `json:"cpuKernel,omitempty"`
	CPUs             []uint64          `json:"cpus,omitempty"` // of each processor; v1 only
	Periods          uint64            `json:"periods,omitempty"`
	ThrottledPeriods uint64            `json:"throttledPeriods,omitempty"`
	ThrottledNanos   uint64            `json:"throttledNanos,omitempty"`
	MemoryMax        uint64            `json:"memoryMax,omitempty"`    // the most there ever was
	MemoryFailed     uint64            `json:"memoryFailed,omitempty"` // times the limit was hit
	Memory           map[string]uint64 `json:"memory,omitempty"`       // memory.stat
	PidsLimit        uint64            `json:"pidsLimit,omitempty"`    // 0: none
	IOBytes          []IO              `json:"ioBytes,omitempty"`
	IOOps            []IO              `json:"ioOps,omitempty"`
}

// IO is a count of a block device.
type IO struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"` // "read", "Write", …: as the cgroup version spells it
	Value uint64 `json:"value"`
}

// Files in a runner's directory.
const (
	socketName = "sock"
	exitSuffix = ".exit.json"
)

// SocketPath is where the runner of a directory listens.
func SocketPath(dir string) string { return filepath.Join(dir, socketName) }

// ContainersDir is where a runner has a directory for each container, by its id,
// from before there is any of it until it is deleted.
func ContainersDir(dir string) string { return filepath.Join(dir, "containers") }

// ReadExit returns what a runner wrote of a container's exit, NotFound if the
// container has not ended under its eyes. It needs no running runner.
func ReadExit(dir, id string) (Exit, error) {
	var x Exit
	data, err := os.ReadFile(filepath.Join(dir, id+exitSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return x, fault.New(fault.NotFound, "no exit of container %s", id)
	}
	if err == nil {
		err = json.Unmarshal(data, &x)
	}
	if err != nil {
		return x, fmt.Errorf("exit of container %s: %w", id, err)
	}
	return x, nil
}

// WriteExit is the runner's side of ReadExit.
func WriteExit(dir, id string, x Exit) error {
	data, err := json.Marshal(x)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, id+exitSuffix)
	return atomicfile.Write(path, data, 0o600)
}

// RemoveExit forgets a container's exit.
func RemoveExit(dir, id string) error {
	if err := os.Remove(filepath.Join(dir, id+exitSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
