package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ferryos/ferry/internal/fault"
	"golang.org/x/sys/unix"
)

// onOwnThread runs f on an OS thread that nothing else uses and that ends with
// it, so f may move the thread to another namespace and leave it there.
//
// The process' first thread cannot end and lends its namespaces to
// /proc/self, so f never runs on it: when the scheduler picks it, it is held
// while another thread does the work.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- onOwnThread(f)
			return
		}
		done <- f() // the lock is kept: the runtime ends the thread with the goroutine
	}()
	return <-done
}

// inNetns runs f on a thread inside the namespace that path is bound to.
func inNetns(path string, f func() error) error {
	return onOwnThread(func() error {
		if err := enterNetns(path); err != nil {
			return err
		}
		return f()
	})
}

func enterNetns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// bindNetns keeps the calling thread's network namespace alive at path.
func bindNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// removeNetns lets go of the namespace at path. It lives on while a process is
// inside. Idempotent.
func removeNetns(path string) error {
	// EINVAL: a plain file, from a crash between creating it and mounting.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	return nil
}

// isNetns reports whether a namespace is bound to path. After a reboot the
// file, if it is there at all, is an ordinary one.
func isNetns(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.NSFS_MAGIC
}

// writeSysctls writes settings of the calling thread's network namespace.
func writeSysctls(settings map[string]string) error {
	for name, value := range settings {
		if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
			kind := fault.Invalid
			switch {
			case errors.Is(err, fs.ErrNotExist):
				kind = fault.Unsupported
			case errors.Is(err, fs.ErrPermission):
				kind = fault.Denied
			}
			return fault.New(kind, "set sysctl %s to %q: %w", name, value, err)
		}
	}
	return nil
}

// sysctlPath accepts both spellings of sysctl(8): dots, or slashes where a
// part of the name holds a dot.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	return filepath.Join("/proc/sys", name)
}

// DialPod connects to addr as a process inside the namespace at netnsPath
// would. The host of addr is an IP address or "localhost", which tries
// 127.0.0.1 and then ::1. The connection outlives ctx and the namespace's file.
func (n *Network) DialPod(ctx context.Context, netnsPath, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fault.New(fault.Invalid, "dial %s in a pod: %w", addr, err)
	}
	hosts := []string{host}
	if host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	} else if _, err := netip.ParseAddr(host); err != nil {
		// A name would be looked up, and then dialled, on threads outside the namespace.
		return nil, fault.New(fault.Invalid, "dial %s in a pod: the host is not an IP address", addr)
	}
	var conn net.Conn
	err = inNetns(netnsPath, func() error {
		var errs []error
		for _, h := range hosts {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, net.JoinHostPort(h, port))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s in pod: %w", addr, err)
	}
	return conn, nil
}
