//go:build cgo

package seccomp

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// treeAbove is the number of system calls in a profile above which libseccomp is
// to look one up in a binary tree instead of comparing one after the other. It
// is runc's, and counts as there, so that the programs are the same.
const treeAbove = 32

var actions = map[specs.LinuxSeccompAction]libseccomp.ScmpAction{
	specs.ActKill:        libseccomp.ActKillThread,
	specs.ActKillThread:  libseccomp.ActKillThread,
	specs.ActKillProcess: libseccomp.ActKillProcess,
	specs.ActTrap:        libseccomp.ActTrap,
	specs.ActErrno:       libseccomp.ActErrno,
	specs.ActTrace:       libseccomp.ActTrace,
	specs.ActLog:         libseccomp.ActLog,
	specs.ActAllow:       libseccomp.ActAllow,
}

var operators = map[specs.LinuxSeccompOperator]libseccomp.ScmpCompareOp{
	specs.OpNotEqual:     libseccomp.CompareNotEqual,
	specs.OpLessThan:     libseccomp.CompareLess,
	specs.OpLessEqual:    libseccomp.CompareLessOrEqual,
	specs.OpEqualTo:      libseccomp.CompareEqual,
	specs.OpGreaterEqual: libseccomp.CompareGreaterEqual,
	specs.OpGreaterThan:  libseccomp.CompareGreater,
	specs.OpMaskedEqual:  libseccomp.CompareMaskedEqual,
}

var architectures = map[specs.Arch]libseccomp.ScmpArch{
	specs.ArchX86_64:  libseccomp.ArchAMD64,
	specs.ArchX86:     libseccomp.ArchX86,
	specs.ArchX32:     libseccomp.ArchX32,
	specs.ArchAARCH64: libseccomp.ArchARM64,
	specs.ArchARM:     libseccomp.ArchARM,
}

// flags are a profile's flags with the kernel's bit and the level of
// libseccomp's API, a measure of library and kernel, that has it.
var flags = map[specs.LinuxSeccompFlag]struct {
	bit   uint32
	level uint
}{
	specs.LinuxSeccompFlagLog:       {unix.SECCOMP_FILTER_FLAG_LOG, 3},
	specs.LinuxSeccompFlagSpecAllow: {unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, 4},
	"SECCOMP_FILTER_FLAG_TSYNC":     {0, 0}, // says nothing: the other threads of a first step end with its exec
}

// Compile returns the program of a profile for this machine, nil for a profile
// that says nothing. System calls that libseccomp does not know are left out.
func Compile(p *specs.LinuxSeccomp) (*Program, error) {
	if p == nil || p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return nil, nil
	}
	if p.ListenerPath != "" {
		return nil, noAgent("listenerPath")
	}
	bits, err := flagBits(p.Flags)
	if err != nil {
		return nil, err
	}
	archs, err := profileArchs(p.Architectures)
	if err != nil {
		return nil, err
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	filter, err := build(p, archs, fallback)
	if err != nil {
		return nil, err
	}
	program := &Program{Flags: bits}
	if answersENOSYS(fallback) {
		program.Filter = stub(p, archs)
	}
	program.Filter = append(program.Filter, filter...)
	if n := len(program.Filter); n > maxInstructions {
		return nil, fault.New(fault.Invalid, "the seccomp profile compiles to %d instructions; the kernel takes %d", n, maxInstructions).
			Hint("shorten the profile: rules with conditions on arguments take most, for each of its architectures")
	}
	return program, nil
}

func noAgent(what string) error {
	return fault.New(fault.Unsupported, "seccomp profile: %s asks an agent outside the container, which Ferry does not do", what).
		Hint("take SCMP_ACT_NOTIFY and listenerPath out of the profile; SCMP_ACT_ERRNO refuses a system call")
}

// flagBits are the flags for seccomp(2). A profile that has none, not even an
// empty list, gets the mitigation of Speculative Store Bypass off.
func flagBits(names []specs.LinuxSeccompFlag) (bits uint32, _ error) {
	level, _ := libseccomp.GetAPI() // 0 before libseccomp 2.4
	if names == nil && level >= flags[specs.LinuxSeccompFlagSpecAllow].level {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	for _, name := range names {
		f, ok := flags[name]
		switch {
		case name == specs.LinuxSeccompFlagWaitKillableRecv:
			return 0, noAgent(string(name)) // the kernel takes it only with a listener
		case !ok:
			return 0, fault.New(fault.Invalid, "seccomp profile: unknown flag %q", name)
		case level < f.level:
			return 0, fault.New(fault.Unsupported, "seccomp profile: this machine's kernel or libseccomp is too old for the flag %s", name)
		}
		bits |= f.bit
	}
	return bits, nil
}

// profileArchs are the architectures whose calls the profile is about: the
// machine's own, listed or not, and those listed.
func profileArchs(names []specs.Arch) ([]libseccomp.ScmpArch, error) {
	native, err := libseccomp.GetNativeArch()
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	archs := []libseccomp.ScmpArch{native}
	for _, name := range names {
		arch, ok := architectures[name]
		if !ok {
			return nil, fault.New(fault.Unsupported, "seccomp profile: Ferry does not run on the architecture %s", name).
				Hint("take it out of the profile's architectures")
		}
		if !slices.Contains(archs, arch) {
			archs = append(archs, arch)
		}
	}
	return archs, nil
}

func action(name specs.LinuxSeccompAction, errno *uint) (libseccomp.ScmpAction, error) {
	if name == specs.ActNotify {
		return 0, noAgent(string(name))
	}
	act, ok := actions[name]
	if !ok {
		return 0, fault.New(fault.Invalid, "seccomp profile: unknown action %q", name)
	}
	code := uint(unix.EPERM)
	if errno != nil {
		code = *errno
	}
	return act.SetReturnCode(int16(code)), nil // which the actions without a code ignore
}

// build has libseccomp compile the profile, without the stub.
func build(p *specs.LinuxSeccomp, archs []libseccomp.ScmpArch, fallback libseccomp.ScmpAction) ([]unix.SockFilter, error) {
	filter, err := libseccomp.NewFilter(fallback)
	if err != nil {
		return nil, fmt.Errorf("seccomp filter: %w", err)
	}
	defer filter.Release()
	for _, arch := range archs {
		if err := filter.AddArch(arch); err != nil {
			return nil, fmt.Errorf("seccomp filter for %s: %w", arch, err)
		}
	}
	named, added := 0, 0
	for _, rule := range p.Syscalls {
		n, err := addRule(filter, rule, fallback)
		if err != nil {
			return nil, err
		}
		named += len(rule.Names)
		added += n
	}
	if named > treeAbove && added > 0 { // runc saw libseccomp 2.5 misbehave on a tree without rules
		_ = filter.SetOptimize(2) // older than 2.5, it has only the slow way
	}
	program, err := export(filter)
	if err != nil {
		return nil, fmt.Errorf("seccomp filter: %w", err)
	}
	return program, nil
}

// addRule adds what a rule says of each of its system calls, and returns of how
// many it does. What the default says as well, libseccomp would refuse.
func addRule(filter *libseccomp.ScmpFilter, rule specs.LinuxSyscall, fallback libseccomp.ScmpAction) (added int, _ error) {
	act, err := action(rule.Action, rule.ErrnoRet)
	if err != nil {
		return 0, err
	}
	alternatives, err := conditions(rule.Args)
	if err != nil {
		return 0, err
	}
	for _, name := range rule.Names {
		if name == "" {
			return 0, fault.New(fault.Invalid, "seccomp profile: a system call without a name")
		}
		call, err := libseccomp.GetSyscallFromName(name)
		if err != nil || act == fallback {
			continue
		}
		for _, conds := range alternatives {
			if err := filter.AddRuleConditional(call, act, conds); err != nil {
				return 0, fault.New(fault.Invalid, "seccomp profile: rule for %s: %w", name, err)
			}
		}
		added++
	}
	return added, nil
}

// conditions are a rule's, in alternatives of which one has to hold, all of it.
// There is one alternative, unless an argument occurs twice: libseccomp has no
// such rule, and runc makes each condition one of its own.
func conditions(args []specs.LinuxSeccompArg) ([][]libseccomp.ScmpCondition, error) {
	var all []libseccomp.ScmpCondition
	var each [][]libseccomp.ScmpCondition
	twice := false
	for _, arg := range args {
		op, ok := operators[arg.Op]
		if !ok {
			return nil, fault.New(fault.Invalid, "seccomp profile: unknown operator %q", arg.Op)
		}
		c, err := libseccomp.MakeCondition(arg.Index, op, arg.Value, arg.ValueTwo)
		if err != nil {
			return nil, fault.New(fault.Invalid, "seccomp profile: %w", err)
		}
		twice = twice || slices.ContainsFunc(all, func(o libseccomp.ScmpCondition) bool { return o.Argument == c.Argument })
		all = append(all, c)
		each = append(each, []libseccomp.ScmpCondition{c})
	}
	if twice {
		return each, nil
	}
	return [][]libseccomp.ScmpCondition{all}, nil
}

// export returns the program that libseccomp makes of the filter. It goes
// through a file, for libseccomp exports to memory only from 2.6 on.
func export(filter *libseccomp.ScmpFilter) (_ []unix.SockFilter, err error) {
	fd, err := unix.MemfdCreate("seccomp", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "seccomp")
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := filter.ExportBPF(file); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.NewSectionReader(file, 0, math.MaxInt64))
	if err != nil {
		return nil, err
	}
	return decode(data)
}
