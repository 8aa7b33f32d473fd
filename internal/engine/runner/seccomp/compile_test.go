//go:build cgo

package seccomp

import (
	"fmt"
	"math"
	"slices"
	"testing"

	mobyseccomp "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

var (
	x86s = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	arms = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
)

func dockerProfile(t testing.TB, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := mobyseccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func compile(t testing.TB, p *specs.LinuxSeccomp) *Program {
	t.Helper()
	program, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func errno(n uint) *uint { return &n }

// profile has rules on a few calls that are on each architecture.
func profile(def specs.LinuxSeccompAction, archs []specs.Arch, rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: def, Architectures: archs, Syscalls: rules}
}

func rule(act specs.LinuxSeccompAction, names []string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: act, Args: args}
}

func arg(index uint, op specs.LinuxSeccompOperator, values ...uint64) specs.LinuxSeccompArg {
	a := specs.LinuxSeccompArg{Index: index, Op: op, Value: values[0]}
	if len(values) > 1 {
		a.ValueTwo = values[1]
	}
	return a
}

// TestCompile asks the compiled programs and the model about each call with
// arguments at and beside each value of the profile.
func TestCompile(t *testing.T) {
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan}
	profiles := map[string]*specs.LinuxSeccomp{
		"docker":        dockerProfile(t),
		"docker caps":   dockerProfile(t, "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_TIME"),
		"deny":          profile(specs.ActAllow, x86s, rule(specs.ActErrno, []string{"mkdir", "mkdirat", "keyctl", "ptrace"})),
		"deny no archs": profile(specs.ActAllow, nil, rule(specs.ActErrno, []string{"mkdir", "mkdirat"})),
		"arm":           profile(specs.ActErrno, arms, rule(specs.ActAllow, []string{"read", "write", "openat", "close_range", "cacheflush"})),
		"errnoRet": {
			DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(38), Architectures: x86s,
			Syscalls: []specs.LinuxSyscall{
				{Names: []string{"read", "write", "openat"}, Action: specs.ActAllow},
				{Names: []string{"mkdirat"}, Action: specs.ActErrno, ErrnoRet: errno(99)},
				{Names: []string{"mount"}, Action: specs.ActErrno}, // EPERM, not what the default is
				{Names: []string{"ptrace"}, Action: specs.ActTrace, ErrnoRet: errno(7)},
			},
		},
		"kill, errnoRet not its": {
			DefaultAction: specs.ActKillProcess, DefaultErrnoRet: errno(38), Architectures: x86s,
			Syscalls: []specs.LinuxSyscall{rule(specs.ActAllow, []string{"read", "openat"})},
		},
		"actions": profile(specs.ActTrap, x86s, rule(specs.ActKill, []string{"read"}), rule(specs.ActKillThread, []string{"write"}),
			rule(specs.ActKillProcess, []string{"openat"}), rule(specs.ActLog, []string{"close"}), rule(specs.ActTrace, []string{"ptrace"}),
			rule(specs.ActErrno, []string{"mount"}), rule(specs.ActAllow, []string{"dup"}), rule(specs.ActTrap, []string{"dup3"})),
		"trace":   profile(specs.ActTrace, x86s, rule(specs.ActAllow, []string{"read"})),
		"log":     profile(specs.ActLog, x86s, rule(specs.ActErrno, []string{"read"})),
		"unknown": profile(specs.ActErrno, x86s, rule(specs.ActAllow, []string{"read", "no_such_call"})),
		"nothing": profile(specs.ActErrno, x86s),
		"redundant": profile(specs.ActErrno, x86s, rule(specs.ActErrno, []string{"openat2", "read"}), rule(specs.ActAllow, []string{"write"}),
			specs.LinuxSyscall{Names: []string{"mount"}, Action: specs.ActErrno, ErrnoRet: errno(1)}),
		"redundant, in numbers": profile(specs.ActErrno, x86s, rule(specs.ActErrno, slices.Repeat([]string{"read"}, 100))),
		"one machine's": profile(specs.ActErrno, x86s, rule(specs.ActAllow, slices.Concat(
			slices.Repeat([]string{"waitpid"}, 20), slices.Repeat([]string{"signal"}, 20)))),
		"two arguments": profile(specs.ActErrno, x86s, rule(specs.ActAllow, []string{"read", "mmap"}, arg(0, specs.OpEqualTo, 5), arg(2, specs.OpLessThan, 1<<33))),
		"one argument twice": profile(specs.ActErrno, x86s,
			rule(specs.ActAllow, []string{"read", "socket"}, arg(0, specs.OpEqualTo, 5), arg(0, specs.OpEqualTo, 9), arg(1, specs.OpGreaterThan, 77))),
		"range":         profile(specs.ActAllow, x86s, rule(specs.ActErrno, []string{"read"}, arg(1, specs.OpGreaterEqual, 10), arg(1, specs.OpLessEqual, 3))),
		"contradictory": profile(specs.ActErrno, x86s, rule(specs.ActAllow, []string{"read"}), rule(specs.ActKillProcess, []string{"read"}, arg(0, specs.OpEqualTo, 1))),
		"multiplexed":   profile(specs.ActErrno, x86s, rule(specs.ActAllow, []string{"socket", "semget"}, arg(1, specs.OpEqualTo, 2)), rule(specs.ActAllow, []string{"bind"})),
		"masks": profile(specs.ActErrno, x86s, rule(specs.ActAllow, []string{"clone"}, arg(0, specs.OpMaskedEqual, 0x7E020000, 0)),
			rule(specs.ActAllow, []string{"read"}, arg(2, specs.OpMaskedEqual, 0xff000000ff, 0x1100000022))),
	}
	for _, op := range ops {
		for _, value := range []uint64{0, 7, math.MaxUint32, 1 << 32, 5<<32 | 9, math.MaxUint64} {
			profiles[fmt.Sprintf("%s %#x", op, value)] = profile(specs.ActErrno, x86s, rule(specs.ActAllow, []string{"read", "fchmodat2"}, arg(3, op, value)))
		}
	}
	for name, p := range profiles {
		t.Run(name, func(t *testing.T) { compare(t, p, compile(t, p).Filter) })
	}
}

// compare has the program and the model answer calls of each ABI.
func compare(t *testing.T, p *specs.LinuxSeccomp, filter []unix.SockFilter) {
	values := []uint64{0, 1, 1 << 32, math.MaxUint32, math.MaxUint64}
	conditional := map[string]bool{"socketcall": true, "ipc": true}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				values = append(values, v-1, v, v+1, v^1<<32, v|1<<63)
			}
			for _, name := range s.Names {
				conditional[name] = true
			}
		}
	}
	slices.Sort(values)
	values = slices.Compact(values)
	differ := 0
	for _, on := range abis {
		m := newModel(p, on)
		for nr := range uint32(601) {
			c := call{nr: nr | on.bits, arch: on.audit}
			for _, args := range vectors(values, len(m.rules[c.nr]) > 0 && slices.ContainsFunc(m.rules[c.nr], func(r modelRule) bool { return len(r.args) > 0 })) {
				c.args = args
				got, want := run(filter, c), m.verdicts(c)
				if !slices.Contains(want, got) {
					t.Errorf("%s call %d %#x: %#x, want %#x", on.name, nr, args, got, want)
					if differ++; differ > 10 {
						t.FailNow()
					}
				}
			}
		}
	}
	if got := run(filter, call{arch: unix.AUDIT_ARCH_S390X}); got != unix.SECCOMP_RET_KILL_THREAD {
		t.Errorf("call of a machine that the profile is not about: %#x", got)
	}
}

// vectors are arguments to call with: each value in each place, also beside another.
func vectors(values []uint64, all bool) (out [][6]uint64) {
	out = append(out, [6]uint64{}, [6]uint64{5, 4, 3, 2, 1, 1 << 40})
	if !all {
		return out
	}
	for i := range 4 {
		for _, v := range values {
			for _, base := range [][6]uint64{{}, {5, 2, 3, 2}, {1, 2}, {3}} {
				base[i] = v
				out = append(out, base)
			}
		}
	}
	return out
}

func TestUnknownCallsAnswerENOSYS(t *testing.T) {
	const enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	rules := []specs.LinuxSyscall{rule(specs.ActAllow, []string{"read", "openat2", "fork"})} // openat2 is 437 everywhere
	for _, tt := range []struct {
		name   string
		def    specs.LinuxSeccompAction
		errno  *uint
		archs  []specs.Arch
		on     abi
		answer uint32 // to 438
	}{
		{"x86_64", specs.ActErrno, nil, x86s, abis[0], enosys},
		{"i386", specs.ActErrno, nil, x86s, abis[1], enosys},
		{"x32", specs.ActErrno, nil, x86s, abis[2], enosys},
		{"arm64", specs.ActErrno, nil, arms, abis[3], enosys},
		{"arm", specs.ActErrno, nil, arms, abis[4], enosys},
		{"x32, not listed", specs.ActErrno, nil, []specs.Arch{specs.ArchX86_64}, abis[2], unix.SECCOMP_RET_KILL_THREAD},
		{"kill", specs.ActKill, nil, x86s, abis[0], enosys},
		{"another errno", specs.ActErrno, errno(13), x86s, abis[0], enosys},
		{"ENOSYS by default", specs.ActErrno, errno(38), x86s, abis[0], enosys},
		{"allow", specs.ActAllow, nil, x86s, abis[0], unix.SECCOMP_RET_ALLOW},
		{"log", specs.ActLog, nil, x86s, abis[0], unix.SECCOMP_RET_LOG},
		{"trace", specs.ActTrace, nil, x86s, abis[0], unix.SECCOMP_RET_TRACE | 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := profile(tt.def, tt.archs, rules...)
			p.DefaultErrnoRet = tt.errno
			filter := compile(t, p).Filter
			if got := run(filter, call{nr: 438 | tt.on.bits, arch: tt.on.audit}); got != tt.answer {
				t.Errorf("a call above the highest: %#x, want %#x", got, tt.answer)
			}
			if got := run(filter, call{nr: 436 | tt.on.bits, arch: tt.on.audit}); got == enosys && verdict(tt.def, tt.errno) != enosys {
				t.Error("a call below the highest answers ENOSYS")
			}
			fallback, err := action(tt.def, tt.errno)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := answersENOSYS(fallback), tt.answer == enosys && tt.name != "ENOSYS by default" || tt.name == "x32, not listed"; got != want {
				t.Errorf("a stub: %v, want %v", got, want)
			}
		})
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
	}{
		{nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, 0},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}, unix.SECCOMP_FILTER_FLAG_LOG},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}, unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
	} {
		p := profile(specs.ActAllow, nil)
		p.Flags = tt.flags
		if got := compile(t, p).Flags; got != tt.want {
			t.Errorf("flags %q: %#x, want %#x", tt.flags, got, tt.want)
		}
	}
}

func TestProfileThatSaysNothing(t *testing.T) {
	for _, p := range []*specs.LinuxSeccomp{nil, {}, {Architectures: x86s}} {
		if program, err := Compile(p); program != nil || err != nil {
			t.Errorf("Compile(%+v) = %v, %v", p, program, err)
		}
	}
}

func TestRefusedProfiles(t *testing.T) {
	var huge []specs.LinuxSyscall
	for v := range uint64(maxInstructions) {
		huge = append(huge, rule(specs.ActErrno, []string{"read"}, arg(0, specs.OpEqualTo, 3*v)))
	}
	read := []string{"read"}
	for name, tt := range map[string]struct {
		profile *specs.LinuxSeccomp
		kind    fault.Kind
	}{
		"notify":            {profile(specs.ActAllow, nil, rule(specs.ActNotify, read)), fault.Unsupported},
		"notify by default": {profile(specs.ActNotify, nil, rule(specs.ActAllow, read)), fault.Unsupported},
		"listener":          {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/agent"}, fault.Unsupported},
		"wait killable":     {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, fault.Unsupported},
		"flag":              {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"FAST"}}, fault.Invalid},
		"architecture":      {profile(specs.ActAllow, []specs.Arch{specs.ArchS390X}), fault.Unsupported},
		"action":            {profile(specs.ActAllow, nil, rule("SCMP_ACT_SCOLD", read)), fault.Invalid},
		"no default":        {profile("", nil, rule(specs.ActAllow, read)), fault.Invalid},
		"operator":          {profile(specs.ActAllow, nil, rule(specs.ActErrno, read, arg(0, "SCMP_CMP_SIMILAR", 1))), fault.Invalid},
		"seventh argument":  {profile(specs.ActAllow, nil, rule(specs.ActErrno, read, arg(6, specs.OpEqualTo, 1))), fault.Invalid},
		"no name":           {profile(specs.ActAllow, nil, rule(specs.ActErrno, []string{""})), fault.Invalid},
		"too long":          {profile(specs.ActAllow, nil, huge...), fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			program, err := Compile(tt.profile)
			if program != nil || !fault.Is(err, tt.kind) {
				t.Fatalf("Compile = %v, %v; want an error of kind %s", program, err, tt.kind)
			}
			if tt.kind == fault.Unsupported && fault.HintOf(err) == "" {
				t.Errorf("%v has no hint", err)
			}
			t.Log(err)
		})
	}
}

func BenchmarkCompileDockerDefault(b *testing.B) {
	p := dockerProfile(b)
	n := 0
	for b.Loop() {
		n = len(compile(b, p).Filter)
	}
	b.ReportMetric(float64(n), "instructions")
}
