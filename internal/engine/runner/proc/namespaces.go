package proc

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// sharedNamespaces are those of the pod: IPC and UTS are held by a thread of
// the runner, PID by a process of its own.
type sharedNamespaces struct {
	paths    runner.Namespaces
	release  chan struct{}
	reaper   *exec.Cmd
	reaperIn io.Closer // closing it ends the reaper
}

func makeNamespaces(r runner.SetupRequest) (*sharedNamespaces, error) {
	s := &sharedNamespaces{release: make(chan struct{})}
	if !r.HostIPC || !r.HostUTS {
		if err := s.hold(r); err != nil {
			return nil, fmt.Errorf("pod namespaces: %w", err)
		}
	}
	if r.SharePID {
		if err := s.startReaper(); err != nil {
			close(s.release)
			return nil, fmt.Errorf("pod's PID namespace: %w", err)
		}
	}
	return s, nil
}

// hold unshares on a thread that stays, for /proc/PID/task/TID/ns names
// namespaces only as long as their thread lives.
func (s *sharedNamespaces) hold(r runner.SetupRequest) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		flags := 0
		dir := fmt.Sprintf("/proc/%d/task/%d/ns/", os.Getpid(), unix.Gettid())
		if !r.HostIPC {
			flags |= unix.CLONE_NEWIPC
			s.paths.IPC = dir + "ipc"
		}
		if !r.HostUTS {
			flags |= unix.CLONE_NEWUTS
			s.paths.UTS = dir + "uts"
		}
		err := unix.Unshare(flags)
		if err == nil && !r.HostUTS && r.Hostname != "" {
			err = unix.Sethostname([]byte(r.Hostname))
		}
		result <- err
		if err == nil {
			<-s.release
		}
	}()
	return <-result
}

func (s *sharedNamespaces) startReaper() error {
	in, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.Command("/proc/self/exe", "reap")
	cmd.Stdin = in
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	s.reaper, s.reaperIn = cmd, w
	s.paths.PID = fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid)
	return nil
}

func (s *sharedNamespaces) close() {
	close(s.release)
	if s.reaper != nil {
		s.reaperIn.Close()
		_ = s.reaper.Wait()
	}
}
