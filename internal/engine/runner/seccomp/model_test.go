//go:build cgo

package seccomp

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// call is the kernel's struct seccomp_data, without the instruction pointer.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

func (c call) word(off uint32) uint32 {
	switch {
	case off == 0:
		return c.nr
	case off == 4:
		return c.arch
	case off < 16:
		return 0
	}
	arg := c.args[(off-16)/8]
	if off%8 == 4 {
		arg >>= 32
	}
	return uint32(arg)
}

// run is what the kernel does with a program. An instruction that filters have
// no use for, or a jump out of the program, is a panic.
func run(filter []unix.SockFilter, c call) uint32 {
	var a uint32
	for pc := 0; ; pc++ {
		in := filter[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K%4 != 0 || in.K > 60 {
				panic(fmt.Sprintf("load at %d", in.K))
			}
			a = c.word(in.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&in.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		default:
			panic(fmt.Sprintf("instruction %#x", in.Code))
		}
	}
}

// abi is a way of calling the kernel.
type abi struct {
	name   string
	token  libseccomp.ScmpArch
	audit  uint32
	bits   uint32 // set in each number
	narrow bool   // arguments of 32 bits
}

var abis = []abi{
	{"x86_64", libseccomp.ArchAMD64, unix.AUDIT_ARCH_X86_64, 0, false},
	{"i386", libseccomp.ArchX86, unix.AUDIT_ARCH_I386, 0, true},
	{"x32", libseccomp.ArchX32, unix.AUDIT_ARCH_X86_64, x32Bit, true},
	{"arm64", libseccomp.ArchARM64, unix.AUDIT_ARCH_AARCH64, 0, false},
	{"arm", libseccomp.ArchARM, unix.AUDIT_ARCH_ARM, 0, true},
}

// multiplexed are the calls that i386 makes through socketcall(2), number 102, or
// ipc(2), 117, with the first argument that stands for each (linux/net.h,
// linux/ipc.h), and the number of its own that most have by now.
var multiplexed = map[string]struct{ through, as, direct uint32 }{
	"socket": {102, 1, 359}, "bind": {102, 2, 361}, "connect": {102, 3, 362}, "listen": {102, 4, 363}, "accept": {102, 5, 0},
	"getsockname": {102, 6, 367}, "getpeername": {102, 7, 368}, "socketpair": {102, 8, 360}, "send": {102, 9, 0}, "recv": {102, 10, 0},
	"sendto": {102, 11, 369}, "recvfrom": {102, 12, 371}, "shutdown": {102, 13, 373}, "setsockopt": {102, 14, 366}, "getsockopt": {102, 15, 365},
	"sendmsg": {102, 16, 370}, "recvmsg": {102, 17, 372}, "accept4": {102, 18, 364}, "recvmmsg": {102, 19, 337}, "sendmmsg": {102, 20, 345},
	"semop": {117, 1, 0}, "semget": {117, 2, 393}, "semctl": {117, 3, 394}, "semtimedop": {117, 4, 0}, "msgsnd": {117, 11, 400},
	"msgrcv": {117, 12, 401}, "msgget": {117, 13, 399}, "msgctl": {117, 14, 402}, "shmat": {117, 21, 397}, "shmdt": {117, 22, 398},
	"shmget": {117, 23, 395}, "shmctl": {117, 24, 396},
}

// model says what a profile says, by looking at each of its rules.
type model struct {
	fallback uint32
	active   bool // whether the profile is about the ABI
	narrow   bool
	highest  uint32 // 0 if a call above the highest gets the default's answer
	rules    map[uint32][]modelRule
}

type modelRule struct {
	verdict uint32
	args    []specs.LinuxSeccompArg
	any     bool // one condition has to hold, not all
}

func verdict(a specs.LinuxSeccompAction, errno *uint) uint32 {
	code := uint32(unix.EPERM)
	if errno != nil {
		code = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | code
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | code
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD
	}
	panic(a)
}

func newModel(p *specs.LinuxSeccomp, on abi) *model {
	native, err := libseccomp.GetNativeArch()
	if err != nil {
		panic(err)
	}
	m := &model{fallback: verdict(p.DefaultAction, p.DefaultErrnoRet), narrow: on.narrow, rules: map[uint32][]modelRule{}}
	m.active = on.token == native || slices.ContainsFunc(p.Architectures, func(a specs.Arch) bool { return architectures[a] == on.token })
	if !m.active {
		return m
	}
	add := func(name string, r modelRule) {
		if nr, err := libseccomp.GetSyscallFromNameByArch(name, on.token); err == nil && nr >= 0 {
			m.rules[uint32(nr)] = append(m.rules[uint32(nr)], r)
			m.highest = max(m.highest, uint32(nr))
		}
	}
	for _, s := range p.Syscalls {
		counts := map[uint]int{}
		r := modelRule{verdict: verdict(s.Action, s.ErrnoRet)}
		for _, a := range s.Args {
			counts[a.Index]++
			r.any = r.any || counts[a.Index] > 1
		}
		r.args = s.Args
		for _, name := range s.Names {
			add(name, r)
			if on.token != libseccomp.ArchX86 || r.verdict == m.fallback {
				continue
			}
			if x, ok := multiplexed[name]; ok {
				m.rules[x.through] = append(m.rules[x.through], r.through(uint64(x.as))...)
				if x.direct != 0 {
					m.rules[x.direct] = append(m.rules[x.direct], r)
				}
			}
		}
	}
	switch p.DefaultAction {
	case specs.ActAllow, specs.ActLog, specs.ActTrace:
		m.highest = 0
	}
	return m
}

// through is what libseccomp makes of a rule where the call is made through
// another. The call's own arguments lie in memory; a condition on the first is
// lost, and those on others are asked of the other call's.
func (r modelRule) through(as uint64) (out []modelRule) {
	split := [][]specs.LinuxSeccompArg{r.args}
	if r.any {
		split = slices.Collect(slices.Chunk(r.args, 1))
	}
	for _, args := range split {
		args = slices.DeleteFunc(slices.Clone(args), func(a specs.LinuxSeccompArg) bool { return a.Index == 0 })
		out = append(out, modelRule{verdict: r.verdict, args: append(args, specs.LinuxSeccompArg{Op: specs.OpEqualTo, Value: as})})
	}
	return out
}

// verdicts are the answers that a profile gives to a call. If rules contradict
// each other it may be that of any.
func (m *model) verdicts(c call) []uint32 {
	if !m.active {
		return []uint32{unix.SECCOMP_RET_KILL_THREAD} // libseccomp's for an architecture that the filter is not about
	}
	if m.highest != 0 && c.nr > m.highest {
		return []uint32{unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	}
	var out []uint32
	for _, r := range m.rules[c.nr] {
		if r.verdict != m.fallback && r.matches(c, m.narrow) && !slices.Contains(out, r.verdict) {
			out = append(out, r.verdict)
		}
	}
	if out == nil {
		out = []uint32{m.fallback}
	}
	return out
}

func (r modelRule) matches(c call, narrow bool) bool {
	held := 0
	for _, a := range r.args {
		if holds(a, c.args[a.Index], narrow) {
			held++
		}
	}
	return held == len(r.args) || r.any && held > 0
}

func holds(a specs.LinuxSeccompArg, v uint64, narrow bool) bool {
	one, two := a.Value, a.ValueTwo
	if narrow {
		v, one, two = v&0xffffffff, one&0xffffffff, two&0xffffffff
	}
	switch a.Op {
	case specs.OpNotEqual:
		return v != one
	case specs.OpLessThan:
		return v < one
	case specs.OpLessEqual:
		return v <= one
	case specs.OpEqualTo:
		return v == one
	case specs.OpGreaterEqual:
		return v >= one
	case specs.OpGreaterThan:
		return v > one
	case specs.OpMaskedEqual:
		return v&one == two
	}
	panic(a.Op)
}
