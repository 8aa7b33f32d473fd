//go:build cgo

package seccomp

import (
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

const (
	// Offsets in struct seccomp_data.
	offNumber = 0
	offArch   = 4

	// x32Bit is set in the number of each system call of x32, which shares the
	// architecture of x86-64.
	x32Bit = 1 << 30

	load      = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	ifEqual   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ifGreater = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	ifBitSet  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	skip      = unix.BPF_JMP | unix.BPF_JA
	answer    = unix.BPF_RET | unix.BPF_K
	retENOSYS = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// answersENOSYS reports whether a call that is newer than the profile gets
// ENOSYS. Where the default lets it pass, the kernel says that itself, and where
// a tracer is asked it is to decide.
func answersENOSYS(fallback libseccomp.ScmpAction) bool {
	switch fallback {
	case libseccomp.ActAllow, libseccomp.ActLog, libseccomp.ActErrno.SetReturnCode(int16(unix.ENOSYS)):
		return false
	}
	return fallback.SetReturnCode(0) != libseccomp.ActTrace
}

// stub is what comes before the filter: it answers ENOSYS to a system call with
// a number above the highest that the profile names, for the caller's
// architecture. A C library falls back to an older call on that answer, and
// would not on the default's.
//
//	load architecture
//	for each:      not equal: skip to the next
//	               load number
//	  of x86-64:   x32 bit set: skip 1
//	               above the highest of x86-64: skip 1, else 2
//	               above the highest (of x32): skip 0, else 1
//	               answer ENOSYS
//	               skip to the filter
func stub(p *specs.LinuxSeccomp, archs []libseccomp.ScmpArch) []unix.SockFilter {
	var tail []unix.SockFilter
	section := func(audit uint32, of ...libseccomp.ScmpArch) { // of x86-64 and x32, or of another
		if !slices.ContainsFunc(of, func(a libseccomp.ScmpArch) bool { return slices.Contains(archs, a) }) {
			return
		}
		body := []unix.SockFilter{{Code: load, K: offNumber}}
		if len(of) == 2 {
			body = append(body,
				unix.SockFilter{Code: ifBitSet, K: x32Bit, Jt: 1},
				unix.SockFilter{Code: ifGreater, K: highest(p, archs, of[0]), Jt: 1, Jf: 2})
		}
		body = append(body,
			unix.SockFilter{Code: ifGreater, K: highest(p, archs, of[len(of)-1]), Jf: 1},
			unix.SockFilter{Code: answer, K: retENOSYS},
			unix.SockFilter{Code: skip, K: uint32(len(tail))})
		tail = slices.Concat([]unix.SockFilter{{Code: ifEqual, K: audit, Jf: uint8(len(body))}}, body, tail)
	}
	section(unix.AUDIT_ARCH_ARM, libseccomp.ArchARM)
	section(unix.AUDIT_ARCH_I386, libseccomp.ArchX86)
	section(unix.AUDIT_ARCH_AARCH64, libseccomp.ArchARM64)
	section(unix.AUDIT_ARCH_X86_64, libseccomp.ArchAMD64, libseccomp.ArchX32)
	return append([]unix.SockFilter{{Code: load, K: offArch}}, tail...)
}

// highest is the highest number of the calls that the profile names; if none
// counts, or the profile is not about the architecture, no number is above it.
func highest(p *specs.LinuxSeccomp, archs []libseccomp.ScmpArch, arch libseccomp.ScmpArch) uint32 {
	most := libseccomp.ScmpSyscall(0)
	if slices.Contains(archs, arch) {
		for _, rule := range p.Syscalls {
			for _, name := range rule.Names {
				// A call that the architecture lacks has a negative number.
				if n, err := libseccomp.GetSyscallFromNameByArch(name, arch); err == nil {
					most = max(most, n)
				}
			}
		}
	}
	if most == 0 {
		return math.MaxUint32
	}
	return uint32(most)
}
