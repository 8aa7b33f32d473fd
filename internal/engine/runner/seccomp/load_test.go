//go:build cgo

package seccomp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const loadVariable = "FERRY_TEST_LOAD_SECCOMP"

func TestMain(m *testing.M) {
	if dir := os.Getenv(loadVariable); dir != "" {
		if err := loadAndCall(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// loadAndCall is the process that the kernel filters. It prints what a few
// system calls fail with.
func loadAndCall(dir string) error {
	runtime.LockOSThread() // the filter is this thread's
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var p Program
	if err := p.UnmarshalBinary(data); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(p.Filter)), Filter: &p.Filter[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(p.Flags), uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(&p)
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	mkdir := unix.Errno(0)
	if err := unix.Mkdirat(unix.AT_FDCWD, dir+"/made", 0o700); err != nil && !errors.As(err, &mkdir) {
		return err
	}
	_, _, keyctl := unix.RawSyscall(unix.SYS_KEYCTL, 0, 0, 0)
	_, _, newest := unix.RawSyscall(9999, 0, 0, 0)
	_, err = fmt.Printf("mkdirat %d keyctl %d newest %d", mkdir, keyctl, newest)
	return err
}

func TestLoad(t *testing.T) {
	deny := profile(specs.ActAllow, x86s, specs.LinuxSyscall{Names: []string{"mkdir", "mkdirat", "keyctl"}, Action: specs.ActErrno, ErrnoRet: errno(99)})
	for name, tt := range map[string]struct {
		profile *specs.LinuxSeccomp
		want    string
	}{
		"deny":   {deny, "mkdirat 99 keyctl 99 newest 38"},
		"docker": {dockerProfile(t), "mkdirat 0 keyctl 1 newest 38"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a wrong filter kills single threads of it
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), loadVariable+"="+t.TempDir())
			cmd.Stdin = bytes.NewReader(marshal(t, compile(t, tt.profile)))
			cmd.Stderr = t.Output()
			out, err := cmd.Output()
			if err != nil || string(out) != tt.want {
				t.Errorf("got %q, %v; want %q", out, err, tt.want)
			}
		})
	}
}
