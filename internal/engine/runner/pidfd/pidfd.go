// Package pidfd waits for processes as for sockets: os/exec's own wait holds a
// thread for each.
package pidfd

import (
	"os"

	"golang.org/x/sys/unix"
)

// Wait returns once the process of a non-blocking pidfd has ended. It is not
// reaped by that.
func Wait(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}
