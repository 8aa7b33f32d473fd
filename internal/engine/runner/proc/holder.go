package proc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// nobody is the user the holder runs as.
const nobody = 65534

// holdNamespaces is the holder: a process whose namespaces are the pod's. In a
// PID namespace it is process 1 and reaps orphans. It ends with the runner,
// whose end of the pipe on standard input then closes.
//
// Containers see it where they share its PID namespace, and one with
// CAP_SYS_PTRACE can make it do anything. So it gives up all it has before any
// container is there: its root, its capabilities, its user.
func holdNamespaces(hostname, uid, gid string) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	if hostname != "" {
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	if err := confine(uid, gid); err != nil {
		return fmt.Errorf("confine the holder: %w", err)
	}
	if _, err := os.Stdout.Write([]byte{'1'}); err != nil {
		return err
	}
	os.Stdout.Close()
	go reap(child)
	_, _ = io.Copy(io.Discard, os.Stdin) // the pipe's end, however it comes
	return nil
}

// reap waits for orphans; it ends with the process.
func reap(child <-chan os.Signal) {
	for range child {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 && err != unix.EINTR {
				break
			}
		}
	}
}

// confine leaves the process an empty root that cannot be written and the
// rights of a user that owns nothing.
func confine(uid, gid string) error {
	u, uidErr := strconv.Atoi(uid)
	g, gidErr := strconv.Atoi(gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return err
	}
	const dir = "/proc" // there is one on every machine
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("empty", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k,mode=555"); err != nil {
		return fmt.Errorf("mount an empty root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	// The C library changes all threads; the capabilities go with the user.
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	if err := syscall.Setresgid(g, g, g); err != nil {
		return fmt.Errorf("drop group: %w", err)
	}
	if err := syscall.Setresuid(u, u, u); err != nil {
		return fmt.Errorf("drop user: %w", err)
	}
	return nil
}
