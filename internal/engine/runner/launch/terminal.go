package launch

import (
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal: ours is the side that controls it.
type terminal struct{ ours, theirs *os.File }

// openTerminal makes a terminal in a mount of devpts, or in this machine's if
// that is -1. uid is who will use it.
func openTerminal(pts, uid int, size *specs.Box) (_ *terminal, err error) {
	name := "ptmx"
	if pts < 0 {
		pts, name = unix.AT_FDCWD, "/dev/ptmx"
	}
	// Non-blocking, so that reading it parks a goroutine and not a thread, and Close ends the read.
	fd, err := unix.Openat(pts, name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	t := &terminal{ours: os.NewFile(uintptr(fd), "terminal")}
	defer func() {
		if err != nil {
			t.close()
			err = fmt.Errorf("terminal: %w", err)
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, os.NewSyscallError("unlock", err)
	}
	theirs, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, os.NewSyscallError("open its other side", errno)
	}
	t.theirs = os.NewFile(theirs, "terminal")
	if size != nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(size.Width), Row: uint16(size.Height)})
	}
	return t, errors.Join(err, t.theirs.Chown(uid, -1))
}

func (t *terminal) close() {
	for _, f := range []*os.File{t.ours, t.theirs} {
		if f != nil {
			f.Close()
		}
	}
}
