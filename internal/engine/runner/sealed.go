package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// VersionEnv is the variable that tells a runner which program it is, for what
// it keeps for others of the same program.
const VersionEnv = "FERRY_RUNNER_VERSION"

// sealed is a program in memory that nobody can change.
type sealed struct {
	file    *os.File
	path    string // of file, in this process
	version string // of what it was copied from
}

// sealedCopies are the programs of this process by their paths; they stay.
var sealedCopies struct {
	mu     sync.Mutex
	byPath map[string]sealed
}

// sealedCopy returns a program's copy in memory, made at the first call. A
// container can reach the runner's program by /proc/self/exe, where it is told to
// execute that, and could write the file once it is not executed any more
// (CVE-2019-5736). The pages are shared by all runners.
func sealedCopy(path string) (sealed, error) {
	c := &sealedCopies
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(path)
	if err != nil {
		return sealed{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	version := fmt.Sprintf("%x-%x-%x", st.Ino, st.Size, st.Mtim.Nano())
	if s, ok := c.byPath[path]; ok && s.version == version {
		return s, nil
	}
	file, err := sealProgram(path)
	if err != nil {
		return sealed{}, fmt.Errorf("copy %s into memory: %w", path, err)
	}
	s := sealed{file: file, path: fmt.Sprintf("/proc/self/fd/%d", file.Fd()), version: version}
	if c.byPath == nil {
		c.byPath = map[string]sealed{}
	}
	c.byPath[path] = s
	return s, nil
}

func sealProgram(path string) (*os.File, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("ferry-runner", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("ferry-runner", flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	out := os.NewFile(uintptr(fd), "ferry-runner")
	if _, err = io.Copy(out, in); err == nil {
		_, err = unix.FcntlInt(out.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}
