package engine

import (
	"io"
	"net/netip"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
)

// Owners of pods. Each client of the engine lists and touches only its own.
const (
	OwnerCRI    = "cri"
	OwnerDocker = "docker"
)

// NamespaceMode says whose namespace a pod or container lives in.
type NamespaceMode string

// The modes. ModePod is the zero value: the pod's own.
const (
	ModePod       NamespaceMode = ""
	ModeHost      NamespaceMode = "host"
	ModeContainer NamespaceMode = "container" // PID: one for each container; network: that of another, NetworkOf
	ModeNone      NamespaceMode = "none"      // network only: loopback alone
)

// Link gives a container more names in /etc/hosts of another.
type Link struct {
	Container string   `json:"container"` // its ID
	Names     []string `json:"names"`
}

// PodSpec is what a pod is made from. It is written to disk as it is and never
// changes after RunPod, but for Networks.
type PodSpec struct {
	Owner       string            `json:"owner"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Attempt     uint32            `json:"attempt,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// LogDir is joined before the containers' relative LogPath.
	LogDir string `json:"logDir,omitempty"`
	// CgroupParent is the cgroup the pod's containers are placed below, an
	// absolute cgroup path. Empty: the engine's own parent.
	CgroupParent string        `json:"cgroupParent,omitempty"`
	Network      NamespaceMode `json:"network,omitempty"` // ModePod, ModeHost, ModeNone or ModeContainer
	// NetworkOf is the container whose network namespace, and whose files about
	// names, the pod shares.
	NetworkOf string `json:"networkOf,omitempty"`
	// Networks are those a pod of ModePod is on: nil is the node's own alone, an
	// empty list none. Networks change by Connect, Disconnect and Rename. Links
	// are for the node's own, which has no names.
	Networks []network.EndpointSpec `json:"networks"`
	Links    []Link                 `json:"links,omitempty"`
	PID      NamespaceMode          `json:"pid,omitempty"`    // ModePod shares one among the containers, ModeContainer, ModeHost
	IPC      NamespaceMode          `json:"ipc,omitempty"`    // ModePod or ModeHost
	UTS      NamespaceMode          `json:"uts,omitempty"`    // ModePod or ModeHost
	DNS      *network.DNSConfig     `json:"dns,omitempty"`    // nil: the host's, for containers
	Domain   string                 `json:"domain,omitempty"` // follows the host name in /etc/hosts
	Hosts    []network.HostEntry    `json:"hosts,omitempty"`  // more lines of /etc/hosts
	Ports    []network.PortMapping  `json:"ports,omitempty"`
	Sysctls  map[string]string      `json:"sysctls,omitempty"`
	ShmSize  int64                  `json:"shmSize,omitempty"` // bytes of /dev/shm; 0: 64 MiB
	// Users are the ids of the pod's user namespace; nil: the host's. AutoUsers
	// has the engine choose a range that no other pod has.
	Users     *Users `json:"users,omitempty"`
	AutoUsers bool   `json:"autoUsers,omitempty"`
	// RuntimeHandler is the RuntimeClass handler as given; only "" is known.
	RuntimeHandler string `json:"runtimeHandler,omitempty"`
	// StopWhenIdle stops the pod once its last container has exited, as a
	// Docker container gives back its network.
	StopWhenIdle bool `json:"stopWhenIdle,omitempty"`
	// Single is a pod of one container, which has the pod's ID: a Docker
	// container and what is named after it (its host name, say) have one ID.
	Single bool `json:"single,omitempty"`
	// Extra is opaque to the engine: its owner keeps what it must give back (docker's HostConfig, say).
	Extra []byte `json:"extra,omitempty"`
}

// PodState is whether a pod's namespaces and runner exist.
type PodState string

// The pod states.
const (
	PodReady    PodState = "ready"
	PodNotReady PodState = "notready"
)

// Pod is a snapshot of a pod's state.
type Pod struct {
	ID        string
	Spec      PodSpec
	State     PodState
	CreatedAt time.Time
	IPs       []netip.Addr // empty for host network
	Ports     []network.PortMapping
	Endpoints []network.Endpoint // as long as it is ready; the last ones afterwards
	NetnsPath string             // "" for host network
}

// MountKind is where a mount's content comes from.
type MountKind string

// The mount kinds.
const (
	MountBind  MountKind = "bind"  // Source is a path on the host
	MountTmpfs MountKind = "tmpfs" // Options as for mount(8); containers share one of the same Source, a file name
	MountImage MountKind = "image" // Source is an image or artifact reference, always read-only
)

// Mount is one mount inside a container.
type Mount struct {
	Kind        MountKind `json:"kind"`
	Source      string    `json:"source,omitempty"`
	Destination string    `json:"destination"`
	SubPath     string    `json:"subPath,omitempty"` // within Source, not of a tmpfs
	ReadOnly    bool      `json:"readOnly,omitempty"`
	// Recursive makes ReadOnly hold for the mounts below Source too.
	Recursive   bool   `json:"recursive,omitempty"`
	Propagation string `json:"propagation,omitempty"` // "", "rprivate", "rslave", "rshared"
	// IDMap shows the files of a bind under the ids of the pod's user namespace:
	// what is root's on disk is root's inside. Without it they are nobody's.
	IDMap   bool     `json:"idMap,omitempty"`
	Options []string `json:"options,omitempty"`
}

// Device is a host device given to a container.
type Device struct {
	HostPath      string `json:"hostPath"`
	ContainerPath string `json:"containerPath"`
	Permissions   string `json:"permissions"` // of "rwm"
}

// Resources are a container's limits. Zero fields are no limit.
type Resources struct {
	CPUShares  int64  `json:"cpuShares,omitempty"`
	CPUQuota   int64  `json:"cpuQuota,omitempty"`  // microseconds in each period
	CPUPeriod  int64  `json:"cpuPeriod,omitempty"` // microseconds
	CpusetCPUs string `json:"cpusetCpus,omitempty"`
	CpusetMems string `json:"cpusetMems,omitempty"`
	Memory     int64  `json:"memory,omitempty"`     // bytes
	MemorySwap int64  `json:"memorySwap,omitempty"` // bytes, memory included; 0: not limited apart, -1: without limit
	Pids       int64  `json:"pids,omitempty"`
	// MemoryReservation is what is left of it when memory is short, in bytes.
	MemoryReservation int64               `json:"memoryReservation,omitempty"`
	MemorySwappiness  *uint64             `json:"memorySwappiness,omitempty"` // percent; v1 only
	OOMKillDisable    bool                `json:"oomKillDisable,omitempty"`   // v1 only
	BlockIO           *specs.LinuxBlockIO `json:"blockIO,omitempty"`
	OOMScoreAdj       *int                `json:"oomScoreAdj,omitempty"`
	HugePages         map[string]uint64   `json:"hugePages,omitempty"` // page size ("2MB") to bytes
	Unified           map[string]string   `json:"unified,omitempty"`   // cgroup v2 files
}

// Rlimit is a resource limit of a container's processes, Type without "RLIMIT_".
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// SeccompKind selects a seccomp filter.
type SeccompKind string

// The seccomp kinds. The zero value is Docker's default profile.
const (
	SeccompDefault    SeccompKind = ""
	SeccompUnconfined SeccompKind = "unconfined"
	SeccompLocalhost  SeccompKind = "localhost" // Security.SeccompProfile holds the JSON
)

// Security is what a container may do.
type Security struct {
	Privileged bool `json:"privileged,omitempty"`
	// User is "user", "uid", "user:group" or "uid:gid" and is looked up in the
	// container's own /etc/passwd and /etc/group. Empty: the image's.
	User               string   `json:"user,omitempty"`
	SupplementalGroups []uint32 `json:"supplementalGroups,omitempty"`
	// GroupNames are more of them, looked up in the container's /etc/group.
	GroupNames []string `json:"groupNames,omitempty"`
	// StrictGroups leaves out the groups that /etc/group of the image gives the user.
	StrictGroups    bool        `json:"strictGroups,omitempty"`
	AddCaps         []string    `json:"addCaps,omitempty"` // "NET_ADMIN", "CAP_NET_ADMIN" or "ALL"
	DropCaps        []string    `json:"dropCaps,omitempty"`
	ReadonlyRootfs  bool        `json:"readonlyRootfs,omitempty"`
	NoNewPrivileges bool        `json:"noNewPrivileges,omitempty"`
	Seccomp         SeccompKind `json:"seccomp,omitempty"`
	SeccompProfile  []byte      `json:"seccompProfile,omitempty"`
	// AppArmor is a profile that the kernel has loaded, or AppArmorUnconfined;
	// empty: Docker's default profile, where there is AppArmor.
	AppArmor string `json:"appArmor,omitempty"`
	// MaskedPaths and ReadonlyPaths replace the defaults unless nil; empty masks nothing.
	MaskedPaths   []string `json:"maskedPaths"`
	ReadonlyPaths []string `json:"readonlyPaths"`
}

// DefaultStopGrace is how long a container gets between its stop signal and
// SIGKILL where nothing else is said: Docker's.
const DefaultStopGrace = 10 * time.Second

// ContainerSpec is what a container is made from. It is written to disk as it
// is; only Resources change later, by UpdateContainer, and what its owner keeps,
// by AmendContainer.
type ContainerSpec struct {
	Name        string            `json:"name"`
	Attempt     uint32            `json:"attempt,omitempty"`
	Image       string            `json:"image"` // reference, digest or ID; must be in the store
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Command replaces the image's entrypoint and, then, its cmd; Args replaces its cmd.
	Command    []string `json:"command,omitempty"`
	Args       []string `json:"args,omitempty"`
	Env        []string `json:"env,omitempty"` // "K=V", over the image's; "K" takes the image's away
	WorkingDir string   `json:"workingDir,omitempty"`
	Mounts     []Mount  `json:"mounts,omitempty"`
	Devices    []Device `json:"devices,omitempty"`
	// LogPath is the CRI-format log file, relative to the pod's LogDir. Empty: no log.
	LogPath     string  `json:"logPath,omitempty"`
	LogMaxBytes int64   `json:"logMaxBytes,omitempty"` // rotate at this size; 0: the owner rotates
	LogMaxFiles int     `json:"logMaxFiles,omitempty"`
	TTY         bool    `json:"tty,omitempty"`
	ConsoleSize [2]uint `json:"consoleSize,omitzero"` // columns, rows of the terminal at first
	Stdin       bool    `json:"stdin,omitempty"`
	StdinOnce   bool    `json:"stdinOnce,omitempty"`
	StopSignal  string  `json:"stopSignal,omitempty"` // empty: the image's, else SIGTERM
	// StopGrace is how long StopAll waits after the stop signal: nil is
	// DefaultStopGrace, less than 0 as long as StopAll may.
	StopGrace *time.Duration `json:"stopGrace,omitempty"`
	Resources Resources      `json:"resources,omitzero"`
	Rlimits   []Rlimit       `json:"rlimits,omitempty"`
	Security  Security       `json:"security,omitzero"`
	// PID overrides the pod's mode; PIDTarget is the container whose PID
	// namespace to join (kubectl debug --target).
	PID       NamespaceMode `json:"pid,omitempty"`
	PIDTarget string        `json:"pidTarget,omitempty"`
	// IPCTarget is the container whose IPC namespace and /dev/shm to share.
	IPCTarget string `json:"ipcTarget,omitempty"`
	NoShm     bool   `json:"noShm,omitempty"` // no /dev/shm
	// CgroupNS is ModeHost or ModeContainer; ModePod: of its own under cgroups v2.
	CgroupNS   NamespaceMode `json:"cgroupNS,omitempty"`
	Domainname string        `json:"domainname,omitempty"` // NIS
	// Init runs the program as the child of a process 1 that reaps.
	Init bool `json:"init,omitempty"`
	// DeviceRules are of the devices cgroup, beside those of Devices.
	DeviceRules []specs.LinuxDeviceCgroup `json:"deviceRules,omitempty"`
	CDIDevices  []string                  `json:"cdiDevices,omitempty"` // names as of engine/cdi
	Extra       []byte                    `json:"extra,omitempty"`      // as PodSpec.Extra
}

// ContainerState is a step in a container's life.
type ContainerState string

// The states: created → running ⇄ paused → exited.
const (
	StateCreated ContainerState = "created"
	StateRunning ContainerState = "running"
	StatePaused  ContainerState = "paused"
	StateExited  ContainerState = "exited"
)

// Container is a snapshot of a container's state.
type Container struct {
	ID         string
	PodID      string
	Spec       ContainerSpec
	ImageID    string // config digest
	ImageRef   string // manifest digest reference, what CRI calls image_ref
	State      ContainerState
	PID        int // 0 unless running or paused
	CreatedAt  time.Time
	StartedAt  time.Time // zero until started
	FinishedAt time.Time // zero until exited
	ExitCode   int
	Reason     string // "Completed", "Error", "OOMKilled", ReasonStartError
	Message    string // why it could not start
	LogPath    string // absolute, "" if none
	Path       string // the program, after merging with the image
	Args       []string
}

// ReasonStartError is the Reason of a container whose program could not be started.
const ReasonStartError = "StartError"

// EventType names what happened.
type EventType string

// The event types.
const (
	EventCreated EventType = "created"
	EventStarted EventType = "started"
	EventExited  EventType = "exited"
	EventOOM     EventType = "oom"
	EventPaused  EventType = "paused"
	EventResumed EventType = "resumed"
	EventDeleted EventType = "deleted"
	EventPodUp   EventType = "pod-ready"
	EventPodDown EventType = "pod-notready"
	EventPodGone EventType = "pod-deleted"
)

// Event is one change of a pod or container; Container is nil for pod events.
type Event struct {
	Type      EventType
	Time      time.Time
	Pod       Pod
	Container *Container
}

// ExecSpec is one more process in a running container.
type ExecSpec struct {
	Args       []string
	Env        []string
	WorkingDir string
	User       string // as Security.User; empty: the container's
	TTY        bool
	// ConsoleSize is the columns and rows of the terminal at first.
	ConsoleSize [2]uint
	Privileged  bool
	// Detached lets the process outlive its caller, and the daemon.
	Detached bool
	// OnStart, if set, is called with an id that ResizeExec takes, once the process runs.
	OnStart func(execID string)
}

// Streams connect a caller to a process. Nil streams are not connected.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan [2]uint // columns, rows
}

// Stats is a container's usage at a moment.
type Stats struct {
	Time             time.Time
	CPUNanos         uint64 // since start
	MemoryUsage      uint64 // bytes, page cache included
	MemoryWorkingSet uint64
	MemoryRSS        uint64
	MemoryLimit      uint64 // 0: none
	PageFaults       uint64
	MajorPageFaults  uint64
	Pids             uint64
	RootfsBytes      uint64 // of the writable layer
	RootfsInodes     uint64
	// Detail is for who shows all there is; the sums above are of it.
	Detail Detail
}

// Detail is what a container's cgroup tells beyond the sums.
type Detail = runner.Detail

// IO is a count of a block device, part of a Detail.
type IO = runner.IO
