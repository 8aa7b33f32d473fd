package proc

// #cgo pkg-config: libseccomp
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/fault"
)

// filterCache keeps compiled seccomp programs in files, by profile. Compiling
// Docker's default profile takes libseccomp 17 ms at each start, reading it back
// a fraction of one.
//
// libcontainer offers no place to hand over a compiled program, so the linker
// wraps the calls into libseccomp (filter.c; the flags are in runnertest.Build and the Makefile) and the file travels to the
// container's first step as descriptor 3, closed before the program runs.
type filterCache struct{ dir string }

// filterFile is the file of one start, and what libcontainer is told of the
// profile. A nil one is that of a container without a filter.
type filterFile struct {
	file   *os.File
	config *configs.Seccomp
	path   string // "" once the program is kept there
}

const trimmedSuffix = ".json"

// self tells programs that another ferry-runner compiled, with another libseccomp, from ours.
var self = sync.OnceValues(func() (string, error) {
	info, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%x-%x-%x", st.Ino, st.Size, st.Mtim.Nano()), nil
})

// open returns the file of a profile by its name, an unnamed empty one if the
// program is not known yet.
func (c filterCache) open(name string) (_ *filterFile, err error) {
	if name == "" {
		return nil, nil
	}
	version, err := self()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.dir, name+"-"+version)
	f, err := os.Open(path)
	if err == nil {
		config := new(configs.Seccomp)
		if err := readJSON(path+trimmedSuffix, config); err != nil {
			return nil, errors.Join(fmt.Errorf("seccomp program: %w", err), f.Close())
		}
		return &filterFile{file: f, config: config}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	var profile specs.LinuxSeccomp
	if err := readJSON(filepath.Join(c.dir, name), &profile); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	config, err := specconv.SetupSeccomp(&profile)
	if err != nil {
		return nil, fault.New(fault.Invalid, "seccomp profile: %w", err)
	}
	if config == nil {
		return nil, nil // says nothing
	}
	fd, err := unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	return &filterFile{file: os.NewFile(uintptr(fd), path), config: config, path: path}, nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// keep names the file once a start has succeeded, and so filled it.
func (f *filterFile) keep() {
	if f == nil || f.path == "" {
		return
	}
	if err := f.name(); err != nil {
		fmt.Fprintln(os.Stderr, "keep seccomp program:", err)
	}
}

func (f *filterFile) name() error {
	st, err := f.file.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	config, err := trimmed(f.config)
	if err != nil {
		return err
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteShared(f.path+trimmedSuffix, data, 0o600); err != nil {
		return err
	}
	// Another start may have been first; its program is the same.
	from := fmt.Sprintf("/proc/self/fd/%d", f.file.Fd())
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, f.path, unix.AT_SYMLINK_FOLLOW); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	f.path = ""
	return nil
}

// trimmed is a profile with no more rules than libcontainer looks at where the
// program is known: with each architecture's last system call, which decides
// from where on ENOSYS is the answer (patchbpf), and all if it asks an agent.
func trimmed(full *configs.Seccomp) (*configs.Seccomp, error) {
	if slices.ContainsFunc(full.Syscalls, func(s *configs.Syscall) bool { return s.Action == configs.Notify }) {
		return full, nil
	}
	native, err := libseccomp.GetNativeArch()
	if err != nil {
		return nil, err
	}
	archs := []libseccomp.ScmpArch{native}
	for _, name := range full.Architectures {
		arch, err := libseccomp.GetArchFromString(name)
		if err != nil {
			return nil, err
		}
		archs = append(archs, arch)
	}
	out := *full
	out.Syscalls = nil
	for _, arch := range archs {
		if last := lastRule(full.Syscalls, arch); last != nil && !slices.Contains(out.Syscalls, last) {
			out.Syscalls = append(out.Syscalls, last)
		}
	}
	return &out, nil
}

// lastRule is a rule on the system call with the highest number; nil if there is none.
func lastRule(rules []*configs.Syscall, arch libseccomp.ScmpArch) (last *configs.Syscall) {
	var most libseccomp.ScmpSyscall
	for _, rule := range rules {
		if n, err := libseccomp.GetSyscallFromNameByArch(rule.Name, arch); err == nil && n > most {
			most, last = n, rule
		}
	}
	return last
}

// profile is what libcontainer is told of the profile, nil without one.
func (f *filterFile) profile() *configs.Seccomp {
	if f == nil {
		return nil
	}
	return f.config
}

func (f *filterFile) close() {
	if f != nil {
		f.file.Close()
	}
}
