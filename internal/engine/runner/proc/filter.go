package proc

// #cgo pkg-config: libseccomp
import "C"

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// filterCache keeps compiled seccomp programs in files, by profile. Compiling
// Docker's default profile takes libseccomp 17 ms at each start, reading it back
// a fraction of one.
//
// libcontainer offers no place to hand over a compiled program, so the linker
// wraps the calls into libseccomp (filter.c; the flags are in runnertest.Build and the Makefile) and the file travels to the
// container's first step as descriptor 3, closed before the program runs.
type filterCache struct{ dir string }

// filterDir is where the runners of one daemon share their programs.
func filterDir(dir string) string { return filepath.Join(dir, "..", "..", "seccomp") }

// filterFile is the file of one start. A nil one is that of a container without a filter.
type filterFile struct {
	file *os.File
	path string // "" once the program is kept there
}

// open returns the profile's file, an unnamed empty one if it is not known yet.
func (c filterCache) open(profile *configs.Seccomp) (*filterFile, error) {
	if profile == nil {
		return nil, nil
	}
	key, err := filterKey(profile)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.dir, key)
	f, err := os.Open(path)
	if err == nil {
		return &filterFile{file: f}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("seccomp programs: %w", err)
	}
	fd, err := unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	return &filterFile{file: os.NewFile(uintptr(fd), path), path: path}, nil
}

// filterKey names a profile as this very program would compile it: libseccomp is linked into it.
func filterKey(profile *configs.Seccomp) (string, error) {
	text, err := json.Marshal(profile)
	if err != nil {
		return "", err
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	st := self.Sys().(*syscall.Stat_t)
	h := sha256.New()
	h.Write(text)
	fmt.Fprint(h, st.Ino, st.Size, st.Mtim)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// keep names the file once a start has succeeded, and so filled it.
func (f *filterFile) keep() {
	if f == nil || f.path == "" {
		return
	}
	st, err := f.file.Stat()
	if err != nil || st.Size() == 0 {
		return
	}
	// Another start may have been first; its program is the same.
	from := fmt.Sprintf("/proc/self/fd/%d", f.file.Fd())
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, f.path, unix.AT_SYMLINK_FOLLOW); err != nil && !errors.Is(err, unix.EEXIST) {
		fmt.Fprintln(os.Stderr, "keep seccomp program:", err)
		return
	}
	f.path = ""
}

func (f *filterFile) close() {
	if f != nil {
		f.file.Close()
	}
}
