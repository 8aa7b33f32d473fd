// Package initproc is process 1 of a container with --init: it runs the
// container's program as its child, hands signals on to it, waits for every
// process that is left to it, and ends as the program does.
//
// Only cmd/ferry-init imports it. It imports nothing of the module: it runs
// among a container's own processes, and stays small.
package initproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes for a program that could not be run, as a shell has them.
const (
	codeUsage     = 1
	codeCannotRun = 126
	codeNotFound  = 127
	codeSignal    = 128 // and the signal's number
)

// Main runs the program that args name, after the program's own name and "--",
// and returns its exit code.
func Main(args []string, stderr io.Writer) int {
	if len(args) < 3 || args[1] != "--" {
		fmt.Fprintln(stderr, "usage: docker-init -- PROGRAM [ARGUMENT]...")
		return codeUsage
	}
	runtime.GOMAXPROCS(1) // each thread counts against the container's limit of processes
	// Before the program runs, or a signal that comes early would be lost.
	signals := make(chan os.Signal, 128)
	signal.Notify(signals)
	child, err := start(args[2:])
	if err != nil {
		fmt.Fprintf(stderr, "docker-init: %v\n", err)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			return codeNotFound
		}
		return codeCannotRun
	}
	for s := range signals {
		switch s {
		case unix.SIGCHLD:
			if code, ended := reap(child); ended {
				return code
			}
		case unix.SIGURG: // Go's runtime sends it to itself
		default:
			_ = unix.Kill(child, s.(syscall.Signal)) // it may have ended; reap tells
		}
	}
	return codeCannotRun // not reached: the channel is never closed
}

// start runs the program in a process group of its own, to which a terminal is
// given: what is typed there is for the program.
func start(argv []string) (pid int, err error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, err
	}
	attr := &syscall.SysProcAttr{Setpgid: true}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		attr.Foreground, attr.Ctty = true, 0
	}
	return syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attr})
}

// reap takes leave of every process that has ended, and reports whether child
// is among them. One signal may stand for several.
func reap(child int) (code int, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || pid == 0:
			return code, ended
		case pid == child && status.Signaled():
			code, ended = codeSignal+int(status.Signal()), true
		case pid == child && status.Exited():
			code, ended = status.ExitStatus(), true
		}
	}
}
