// Package proc is ferry-runner: the parent of one pod's containers. It is the
// other side of package runner's socket.
//
// Only cmd/ferry-runner imports it. There is a runner for every pod, and every
// process of a container begins as a copy of it: the program must be small. A
// runner knows nothing of images, pods or networks; it is given OCI
// specs whose root is mounted, and it outlives the daemon that launched it.
//
//	ferry-runner serve   the runner; its working directory is the pod's
//	ferry-runner hold    the holder of namespaces that containers share
//	ferry-runner compile a compiler of one seccomp profile
package proc

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/cgroup"
)

// Main runs the program and returns its exit code.
func Main(args []string, stderr io.Writer) int {
	var err error
	switch {
	case len(args) == 1 && args[0] == "serve":
		err = serveHere()
	case len(args) == 4 && args[0] == "hold":
		err = holdNamespaces(args[1], args[2], args[3])
	case len(args) == 2 && args[0] == "compile":
		err = compileProfile(args[1])
	default:
		fmt.Fprintln(stderr, "ferry-runner is started by ferryd and has no use by hand")
		return 2
	}
	if err != nil {
		fmt.Fprintln(stderr, "ferry-runner:", err)
		return 1
	}
	return 0
}

// readyFD is where the runner says, with one byte, that it listens.
const readyFD = 3

// serveHere runs a runner for the working directory until it is shut down.
func serveHere() error {
	// A runner idles for most of its life: keep its heap, and with it what each pod costs, small.
	debug.SetGCPercent(50)
	surviveSignals()
	// It was executed by a descriptor, whose number the kernel has made its name.
	_ = os.WriteFile("/proc/self/comm", []byte("ferry-runner"), 0)
	ready := os.NewFile(readyFD, "ready")
	unix.CloseOnExec(readyFD)
	s, err := newServer(".")
	if err != nil {
		return err
	}
	if _, err := ready.Write([]byte{'1'}); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	ready.Close()
	go s.warmUp()
	return s.serve()
}

// warmUp does, while the runner waits for its first request, what the first of
// each costs once: encoding/json studies a type, and all it refers to, when it
// first meets it.
func (s *server) warmUp() {
	_ = json.Unmarshal([]byte("{}"), new(runner.CreateRequest)) // cannot fail
	cgroup.Prepare()
	s.launcher.WarmUp()
}

// surviveSignals drops what the terminal or init system of the daemon's user
// sends: it is not meant for containers. The signals are caught and not
// ignored, for an ignored one stays so in the programs of containers, whose
// shells then cannot trap it.
func surviveSignals() {
	dropped := make(chan os.Signal, 1)
	signal.Notify(dropped, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	go func() { // ends with the process
		for range dropped {
		}
	}()
	resetIgnored()
}

// sigaction is the kernel's struct sigaction (rt_sigaction(2)), not the C library's.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const lastSignal = 64

// resetIgnored gives the signals that this process was born ignoring their
// default again. The C library's posix_spawn, with which make starts programs,
// leaves signal 32 ignored, which os/signal does not know.
func resetIgnored() {
	const ignore = 1 // SIG_IGN
	for n := uintptr(1); n <= lastSignal; n++ {
		var now sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, 0, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now.mask), 0, 0)
		if errno != 0 || now.handler != ignore {
			continue
		}
		var standard sigaction // SIG_DFL
		// It fails for none that can be ignored.
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&standard)), 0, unsafe.Sizeof(now.mask), 0, 0)
	}
}
