package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner/oom"
)

// OOM returns what counts the out-of-memory kills of the group.
func (g *Group) OOM() *oom.Counter {
	var files []string
	if dir := g.dirs["memory"]; dir != "" { // v1
		files = append(files, filepath.Join(dir, "memory.oom_control"))
	}
	if dir := g.Dir(); dir != "" {
		files = append(files, filepath.Join(dir, "memory.events"))
	}
	return oom.Open(files...)
}

// WatchOOM calls f at each out-of-memory kill from now on, until the group is
// removed or, on v2, empty. A group without a limit of its own is not watched.
func (g *Group) WatchOOM(kills *oom.Counter, f func()) {
	g.mu.Lock()
	limited := g.limits.Memory > 0
	g.mu.Unlock()
	if !limited || !kills.Counts() {
		return
	}
	watch := watchV2
	dir := g.Dir()
	if v1 := g.dirs["memory"]; v1 != "" {
		watch, dir = watchV1, v1
	}
	notifications, err := watch(dir)
	if err != nil {
		return // the exit still tells
	}
	go kills.Follow(notifications, f)
}

// watchV1 has the kernel write to an eventfd what happens in memory.oom_control
// (cgroup-v1/memory.rst, 9), also that the group is removed.
func watchV1(dir string) (<-chan struct{}, error) {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	event := os.NewFile(uintptr(fd), "eventfd")
	register := filepath.Join(dir, "cgroup.event_control")
	if err := os.WriteFile(register, fmt.Appendf(nil, "%d %d", fd, control.Fd()), 0); err != nil {
		return nil, errors.Join(err, event.Close(), control.Close())
	}
	notifications := make(chan struct{})
	go func() {
		defer close(notifications)
		defer control.Close()
		defer event.Close()
		for count := make([]byte, 8); ; {
			if _, err := event.Read(count); err != nil {
				return
			}
			if _, err := os.Lstat(register); err != nil {
				return // removed
			}
			notifications <- struct{}{}
		}
	}()
	return notifications, nil
}

// watchV2 follows memory.events. That the group is removed no file tells, but
// cgroup.events that it is empty.
func watchV2(dir string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	changes := os.NewFile(uintptr(fd), "inotify")
	memory, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "memory.events"), unix.IN_MODIFY)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY)
	}
	if err != nil {
		return nil, errors.Join(err, changes.Close())
	}
	notifications := make(chan struct{})
	go func() {
		defer close(notifications)
		defer changes.Close()
		for buf := make([]byte, 4096); ; {
			n, err := changes.Read(buf)
			if err != nil {
				return
			}
			for at := 0; at+unix.SizeofInotifyEvent <= n; {
				ev := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
				at += unix.SizeofInotifyEvent + int(ev.Len)
				if int(ev.Wd) == memory {
					notifications <- struct{}{}
				} else if said, err := os.ReadFile(filepath.Join(dir, "cgroup.events")); err != nil || strings.Contains(string(said), "populated 0") {
					return
				}
			}
		}
	}()
	return notifications, nil
}
