package launch

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/seccomp"
	"github.com/ferryos/ferry/internal/fault"
)

// program is what a process runs: a path in the container, and variables.
type program struct {
	path string
	env  []string
}

// rlimits are the limits of getrlimit(2) by their OCI names.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// capBits is a set of capabilities as the kernel has it. Those that this kernel
// does not know are left out.
func capBits(names []string, last int) (bits uint64) {
	for i, name := range runner.Capabilities {
		if i <= last && slices.Contains(names, name) {
			bits |= 1 << i
		}
	}
	return bits
}

// environment is the variables as the program has them: the last value of each
// name, and HOME.
func environment(env []string) ([]string, error) {
	var out []string
	seen, home := map[string]bool{}, false
	for _, kv := range slices.Backward(env) {
		name, value, ok := strings.Cut(kv, "=")
		switch {
		case !ok || name == "" || strings.ContainsRune(kv, 0):
			return nil, fault.New(fault.Invalid, "invalid environment variable %q", kv)
		case seen[name], name == "HOME" && value == "":
			continue
		}
		seen[name] = true
		home = home || name == "HOME"
		out = append(out, kv)
	}
	slices.Reverse(out)
	if !home {
		out = append(out, "HOME=/")
	}
	return out, nil
}

// find looks a program up as execvp(3) does, from the root and directory of this
// thread. What only the container's own /proc could show is left to the start.
func find(name, cwd string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(cwd, name)
		}
		if isBelow(filepath.Clean(name), "/proc") {
			return name, nil
		}
		return name, runnable(name)
	}
	var denied error
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(cwd, dir)
			}
			switch err := runnable(filepath.Join(dir, name)); {
			case err == nil:
				return filepath.Join(dir, name), nil
			case os.IsPermission(err) && denied == nil:
				denied = err
			}
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// runnable is an error if a file cannot be a program.
func runnable(name string) error {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return &fs.PathError{Op: "exec", Path: name, Err: unix.EISDIR}
	case info.Mode()&0o111 == 0:
		return &fs.PathError{Op: "exec", Path: name, Err: unix.EACCES}
	}
	return nil
}

// becoming is what the end of every plan is made of.
type becoming struct {
	process *specs.Process
	filter  *seccomp.Program // nil for none
	stdio   [3]*os.File
	tty     bool
	keyring string
	lastCap int
	gate    *os.File // where it will wait last, nil for nowhere
}

// SECCOMP_SET_MODE_FILTER of seccomp(2).
const seccompSetFilter = 1

// become adds all that makes the process the container's program but the last
// step. The order is runc's, which containers' seccomp profiles are written for.
func (p *plan) become(b becoming) error {
	s := b.process
	var ring result
	// The session keyring of the daemon is not for containers; see keyctl(2).
	p.call("join a session keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, b.keyring, keep(&ring), ignoring(unix.ENOSYS, unix.EDQUOT))
	const searchable = 0x3f1b0000 // what it has anyway, and the owner may search it
	p.call("set the keyring's permissions", unix.SYS_KEYCTL, unix.KEYCTL_SETPERM, fromResult(ring), searchable, ifDone(ring), ignoring(unix.ENOSYS))
	p.call("make a session", unix.SYS_SETSID)
	for i, f := range b.stdio {
		p.call("connect the standard streams", unix.SYS_DUP3, file(f.Fd()), i, 0)
	}
	if b.tty {
		p.call("take the terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	// From here on there are none of the runtime's files: by /proc/self/fd the
	// directory or the program that the container names could lead through them.
	var kept []int
	if b.gate != nil {
		kept = append(kept, int(b.gate.Fd()))
	}
	p.closeAllBut(kept...)
	umask := 0o022
	if s.User.Umask != nil {
		umask = int(*s.User.Umask)
	}
	p.call("umask", unix.SYS_UMASK, umask)
	for _, l := range s.Rlimits {
		kind, ok := rlimits[strings.ToUpper(l.Type)]
		if !ok {
			return fault.New(fault.Invalid, "resource limit %q is not known", l.Type)
		}
		p.call(fmt.Sprintf("error setting rlimit type %d", kind), unix.SYS_PRLIMIT64, 0, kind, bytesOf(unix.Rlimit{Cur: l.Soft, Max: l.Hard}), 0)
	}
	if s.NoNewPrivileges {
		p.call("forbid new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	} else {
		p.filter(b.filter) // privileged without that
	}
	p.credentials(s, b.lastCap)
	if s.NoNewPrivileges {
		p.filter(b.filter)
	}
	return nil
}

// execute adds the end of a plan.
func (p *plan) execute(b program, args []string) {
	p.call("exec "+b.path, unix.SYS_EXECVE, b.path, p.strings(args), p.strings(b.env))
}

func (p *plan) filter(f *seccomp.Program) {
	if f == nil {
		return
	}
	code := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f.Filter))), len(f.Filter)*int(unsafe.Sizeof(f.Filter[0])))
	// struct sock_fprog: the number of instructions, and where they are.
	prog := binary.NativeEndian.AppendUint64(nil, 0)
	binary.NativeEndian.PutUint16(prog, uint16(len(f.Filter)))
	prog = binary.NativeEndian.AppendUint64(prog, uint64(p.hold(code)))
	p.call("load the seccomp filter", unix.SYS_SECCOMP, seccompSetFilter, int(f.Flags), prog)
}

// credentials adds the change to the process's user, directory and capabilities.
func (p *plan) credentials(s *specs.Process, lastCap int) {
	var there result
	cwd := cmp.Or(s.Cwd, "/")
	what := fmt.Sprintf("chdir to cwd (%q)", cwd)
	// As root, or else as the user, who may see what root may not.
	p.call(what, unix.SYS_CHDIR, cwd, keep(&there), ignoring(unix.EACCES, unix.EPERM))
	var caps specs.LinuxCapabilities
	if s.Capabilities != nil {
		caps = *s.Capabilities
		bounding := capBits(caps.Bounding, lastCap)
		for i := range lastCap + 1 {
			if bounding&(1<<i) == 0 {
				p.call("drop a capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, i, 0, 0, 0)
			}
		}
		p.call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	uid, gid := int(s.User.UID), int(s.User.GID)
	var groups []byte
	for _, g := range s.User.AdditionalGids {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	p.call("set groups", unix.SYS_SETGROUPS, len(s.User.AdditionalGids), groups)
	p.call(fmt.Sprintf("set group %d", gid), unix.SYS_SETRESGID, gid, gid, gid)
	p.call(fmt.Sprintf("set user %d", uid), unix.SYS_SETRESUID, uid, uid, uid)
	p.call(what, unix.SYS_CHDIR, cwd, ifFailed(there))
	// A directory outside of the root, which a descriptor of the runtime could
	// lead to, shows itself as "(unreachable)"; CVE-2024-21626.
	where := p.hold(make([]byte, unix.PathMax))
	p.call("find the directory", unix.SYS_GETCWD, where, unix.PathMax)
	p.call("the working directory is outside of the container", opDirectory, where)
	if s.Capabilities == nil {
		return
	}
	p.call("drop kept capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	effective, permitted, inheritable := capBits(caps.Effective, lastCap), capBits(caps.Permitted, lastCap), capBits(caps.Inheritable, lastCap)
	var data []byte // of capset(2), version 3: the lower halves of each, then the upper
	for shift := 0; shift < 64; shift += 32 {
		for _, bits := range []uint64{effective, permitted, inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(bits>>shift))
		}
	}
	p.call("set capabilities", unix.SYS_CAPSET, bytesOf(unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}), data)
	p.call("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	ambient := capBits(caps.Ambient, lastCap)
	for i := range lastCap + 1 {
		if ambient&(1<<i) != 0 {
			p.call("raise an ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, i, 0, 0, ignoring(unix.EPERM, unix.EINVAL))
		}
	}
}
