package proc

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

// sharedNamespaces are those of the pod. IPC and UTS are held by a thread of
// the runner, PID by a process, see holder.go; that holds all of them where
// they belong to a user namespace.
type sharedNamespaces struct {
	paths    runner.Namespaces
	users    *runner.Users // of the user namespace, if there is one
	release  chan struct{}
	holder   *exec.Cmd
	holderIn io.Closer // closing it ends the holder
}

func makeNamespaces(r runner.SetupRequest) (*sharedNamespaces, error) {
	s := &sharedNamespaces{users: r.Users, release: make(chan struct{})}
	if r.Users != nil {
		if r.HostIPC || r.HostUTS {
			return nil, fault.New(fault.Invalid, "a pod with a user namespace has IPC and UTS namespaces of its own")
		}
		if err := s.startHolder(r); err != nil {
			return nil, fmt.Errorf("pod's user namespace: %w", err)
		}
		return s, nil
	}
	if !r.HostIPC || !r.HostUTS {
		if err := s.hold(r); err != nil {
			return nil, fmt.Errorf("pod namespaces: %w", err)
		}
	}
	if r.SharePID {
		if err := s.startHolder(r); err != nil {
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

// startHolder starts the holder and returns once it is confined.
func (s *sharedNamespaces) startHolder(r runner.SetupRequest) (err error) {
	in, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		w.Close()
		return err
	}
	defer ready.Close()
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET}
	if r.SharePID {
		attr.Cloneflags |= unix.CLONE_NEWPID
	}
	uid, gid := uint32(nobody), uint32(nobody)
	if u := r.Users; u != nil {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings = sysMaps(u.UIDs), sysMaps(u.GIDs)
		attr.GidMappingsEnableSetgroups = true
		attr.Credential = &syscall.Credential{}
		uid, gid = lastOf(u.UIDs), lastOf(u.GIDs)
	}
	cmd := exec.Command("/proc/self/exe", "hold", r.Hostname, strconv.Itoa(int(uid)), strconv.Itoa(int(gid)))
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, readyW, os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = attr
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		w.Close()
		return err
	}
	s.holder, s.holderIn = cmd, w
	var one [1]byte
	if _, err := ready.Read(one[:]); err != nil {
		s.endHolder()
		return errors.New("its holder did not start, see the runner's log")
	}
	dir := fmt.Sprintf("/proc/%d/ns/", cmd.Process.Pid)
	if r.SharePID {
		s.paths.PID = dir + "pid"
	}
	if r.Users != nil {
		s.paths.User, s.paths.Net, s.paths.IPC, s.paths.UTS = dir+"user", dir+"net", dir+"ipc", dir+"uts"
	}
	return nil
}

func sysMaps(in []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range in {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

// lastOf is nobody's id if it is mapped, else the last that is.
func lastOf(in []specs.LinuxIDMapping) uint32 {
	var last uint32
	for _, m := range in {
		if m.ContainerID <= nobody && nobody-m.ContainerID < m.Size {
			return nobody
		}
		last = max(last, m.ContainerID+cmp.Or(m.Size, 1)-1)
	}
	return last
}

func (s *sharedNamespaces) endHolder() {
	s.holderIn.Close()
	_ = s.holder.Wait()
}

func (s *sharedNamespaces) close() {
	close(s.release)
	if s.holder != nil {
		s.endHolder()
	}
}
