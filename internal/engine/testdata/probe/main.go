// Command probe says what a process may do where it runs: its namespaces,
// capabilities and filter, the system calls and files that are closed to it.
// isolation_test.go compares its words with what they should be.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	for _, kind := range []string{"user", "pid", "net", "ipc", "uts", "mnt", "cgroup"} {
		ns, _ := os.Readlink("/proc/self/ns/" + kind)
		fmt.Printf("namespace %s %s\n", kind, ns)
	}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}, name) {
			fmt.Println("status", name, strings.Join(strings.Fields(value), " "))
		}
	}
	fmt.Println("umask", fmt.Sprintf("%03o", syscall.Umask(0o22)))
	descriptors()
	for _, c := range calls {
		fmt.Println("call", c.name, try(c))
	}
	devices()
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/sys/firmware", "/proc/acpi", "/proc/scsi",
		"/sys/devices/virtual/powercap"} {
		fmt.Println("read", path, read(path))
	}
	for _, path := range []string{"/x", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom", "/proc/sysrq-trigger",
		"/proc/sys/net/ipv4/ip_forward", "/sys/kernel/uevent_helper", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/cgroup.procs", "/dev/x", "/dev/shm/x", "/etc/hosts"} {
		fmt.Println("write", path, write(path))
	}
	for _, dir := range []string{"/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/sys"} {
		fmt.Println("writable below", dir, writable(dir))
	}
}

// descriptors lists what is open beside standard input, output and error.
func descriptors() {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		fmt.Println("descriptors", err)
		return
	}
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		target, _ := os.Readlink("/proc/self/fd/" + name)
		if name > "2" || len(name) > 1 {
			ours := strings.HasSuffix(target, "/fd")
			runtime := strings.HasPrefix(target, "anon_inode:") || slices.Contains([]string{"cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max"}, filepath.Base(target))
			if !ours && !runtime {
				fmt.Println("descriptor", name, target)
			}
		}
	}
}

// call is a system call with arguments that do nothing even where it is allowed,
// or nothing but to this process. The kernel must get as far as to ask whether
// it is: some calls look at their arguments first.
type call struct {
	name string
	nr   uintptr
	args [5]uintptr
}

const (
	bad = ^uintptr(0)  // no descriptor, no address
	cwd = ^uintptr(99) // AT_FDCWD
)

// noFile is a well-formed handle of no file.
var noFile = struct {
	bytes uint32
	kind  int32
	data  [8]byte
}{bytes: 8, kind: 1}

var calls = []call{
	{"mount", unix.SYS_MOUNT, [5]uintptr{}}, {"umount2", unix.SYS_UMOUNT2, [5]uintptr{}}, {"pivot_root", unix.SYS_PIVOT_ROOT, [5]uintptr{}},
	{"fsopen", unix.SYS_FSOPEN, [5]uintptr{}}, {"open_tree", unix.SYS_OPEN_TREE, [5]uintptr{bad}}, {"move_mount", unix.SYS_MOVE_MOUNT, [5]uintptr{bad, 0, bad}},
	{"mount_setattr", unix.SYS_MOUNT_SETATTR, [5]uintptr{bad}}, {"unshare(user)", unix.SYS_UNSHARE, [5]uintptr{unix.CLONE_NEWUSER}},
	{"unshare(mount)", unix.SYS_UNSHARE, [5]uintptr{unix.CLONE_NEWNS}}, {"setns", unix.SYS_SETNS, [5]uintptr{bad}},
	{"init_module", unix.SYS_INIT_MODULE, [5]uintptr{}}, {"finit_module", unix.SYS_FINIT_MODULE, [5]uintptr{bad}}, {"delete_module", unix.SYS_DELETE_MODULE, [5]uintptr{}},
	{"kexec_load", unix.SYS_KEXEC_LOAD, [5]uintptr{bad, bad}}, {"reboot", unix.SYS_REBOOT, [5]uintptr{}}, {"swapon", unix.SYS_SWAPON, [5]uintptr{}},
	{"iopl", unix.SYS_IOPL, [5]uintptr{3}}, {"ioperm", unix.SYS_IOPERM, [5]uintptr{0x80, 1, 1}}, {"acct", unix.SYS_ACCT, [5]uintptr{bad}},
	{"settimeofday", unix.SYS_SETTIMEOFDAY, [5]uintptr{bad}}, {"clock_settime", unix.SYS_CLOCK_SETTIME, [5]uintptr{0, bad}},
	{"syslog", unix.SYS_SYSLOG, [5]uintptr{10}}, {"bpf", unix.SYS_BPF, [5]uintptr{bad}}, {"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [5]uintptr{bad}},
	{"userfaultfd", unix.SYS_USERFAULTFD, [5]uintptr{bad}}, {"io_uring_setup", unix.SYS_IO_URING_SETUP, [5]uintptr{0, bad}},
	{"keyctl", unix.SYS_KEYCTL, [5]uintptr{0xffff}}, {"add_key", unix.SYS_ADD_KEY, [5]uintptr{}}, {"request_key", unix.SYS_REQUEST_KEY, [5]uintptr{}},
	{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [5]uintptr{cwd, uintptr(unsafe.Pointer(&noFile))}}, {"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, [5]uintptr{bad}},
	{"process_vm_readv", unix.SYS_PROCESS_VM_READV, [5]uintptr{1, bad, 1, bad, 1}}, {"kcmp", unix.SYS_KCMP, [5]uintptr{1, 1, 99}},
	{"ptrace(1)", unix.SYS_PTRACE, [5]uintptr{unix.PTRACE_SEIZE, uintptr(0x7ffffffe)}}, {"pidfd_getfd", unix.SYS_PIDFD_GETFD, [5]uintptr{bad}},
	{"fanotify_init", unix.SYS_FANOTIFY_INIT, [5]uintptr{bad}}, {"quotactl", unix.SYS_QUOTACTL, [5]uintptr{bad}}, {"personality", unix.SYS_PERSONALITY, [5]uintptr{0x0400000}},
	{"mbind", unix.SYS_MBIND, [5]uintptr{0, 0, 99}}, {"move_pages", unix.SYS_MOVE_PAGES, [5]uintptr{0x7ffffffe, 1, bad}}, {"vhangup", unix.SYS_VHANGUP, [5]uintptr{}},
	{"socket(AF_VSOCK)", unix.SYS_SOCKET, [5]uintptr{unix.AF_VSOCK, 99}}, {"clone(user)", unix.SYS_CLONE, [5]uintptr{unix.CLONE_NEWUSER | unix.CLONE_FS}},
	{"chroot", unix.SYS_CHROOT, [5]uintptr{}}, {"mknod(fifo)", unix.SYS_MKNOD, [5]uintptr{0, unix.S_IFIFO}}, {"setuid(-1)", unix.SYS_SETUID, [5]uintptr{bad}},
}

// try makes a call and says whether it is closed: EPERM is the filter or a
// lacking capability, ENOSYS a filter that plays an older kernel, EACCES a
// security module or one of the kernel's settings.
func try(c call) string {
	if c.name == "vhangup" && slices.Contains(os.Args[1:], "privileged") {
		return "not tried" // it would work
	}
	_, _, errno := unix.Syscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], 0)
	switch errno {
	case unix.EPERM, unix.ENOSYS, unix.EACCES:
		return unix.ErrnoName(errno)
	}
	return "open"
}

func devices() {
	_ = filepath.WalkDir("/dev", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode()&fs.ModeDevice != 0 {
			st := info.Sys().(*syscall.Stat_t)
			fmt.Println("device", path, info.Mode(), unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		return nil
	})
	// The machine's disk, its kernel's messages and FUSE, made by hand.
	for _, dev := range []struct {
		name         string
		kind         uint32
		major, minor int
	}{{"disk", unix.S_IFBLK, diskMajor(), 0}, {"kmsg", unix.S_IFCHR, 1, 11}, {"fuse", unix.S_IFCHR, 10, 229}} {
		path := "/" + dev.name
		err := unix.Mknod(path, dev.kind|0o600, int(unix.Mkdev(uint32(dev.major), uint32(dev.minor))))
		if err != nil {
			fmt.Println("made device", dev.name, "mknod", word(err))
			continue
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			unix.Close(fd)
		}
		os.Remove(path)
		fmt.Println("made device", dev.name, word(err))
	}
}

func diskMajor() (major int) {
	table, _ := os.ReadFile("/proc/partitions")
	for line := range strings.Lines(string(table)) {
		var minor int
		if n, _ := fmt.Sscan(line, &major, &minor); n == 2 {
			return major
		}
	}
	return 8
}

func word(err error) string {
	if err == nil {
		return "open"
	}
	if errno, ok := err.(syscall.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// read says whether there is anything to be read.
func read(path string) string {
	if entries, err := os.ReadDir(path); err == nil {
		if len(entries) > 0 {
			return "open"
		}
		return "empty"
	}
	f, err := os.Open(path)
	if err != nil {
		return word(err.(*fs.PathError).Err)
	}
	defer f.Close()
	if n, _ := f.Read(make([]byte, 1)); n > 0 {
		return "open"
	}
	return "empty"
}

// write opens a file to be written, and writes nothing.
func write(path string) string {
	_, err := os.Lstat(path)
	f, openErr := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if openErr != nil {
		return word(openErr.(*fs.PathError).Err)
	}
	f.Close()
	if os.IsNotExist(err) {
		os.Remove(path)
	}
	return "open"
}

// writable counts the files that can be opened to be written.
func writable(dir string) string {
	n, first := 0, ""
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err == nil {
			unix.Close(fd)
			if n++; first == "" {
				first = path
			}
		}
		return nil
	})
	if n == 0 {
		return "none"
	}
	return "some"
}
