// Package seccomp compiles a container's seccomp profile, as the OCI runtime
// specification has it, to the classic BPF program that the kernel runs at each
// system call. The program answers as runc's would.
//
// The runner imports it, and nothing else: compiling links libseccomp (cgo).
// What reads a compiled program and loads it needs neither. The package loads
// none itself: that is for a container's first step.
package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Program is a compiled filter.
type Program struct {
	Filter []unix.SockFilter
	Flags  uint32 // SECCOMP_FILTER_FLAG_*, for seccomp(2)
}

const (
	maxInstructions = 4096 // BPF_MAXINSNS of linux/bpf_common.h
	instructionSize = 8    // of a struct sock_filter
	knownFlags      = unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

	// A stored program starts with the magic, whose last byte is the version, and
	// the flags. Everything is little-endian, as the machines are that Ferry runs on.
	magic      = "fbp\x01"
	headerSize = len(magic) + 4
)

// MarshalBinary returns the program in the form that UnmarshalBinary reads.
func (p *Program) MarshalBinary() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	out := make([]byte, 0, headerSize+len(p.Filter)*instructionSize)
	out = append(out, magic...)
	out = binary.LittleEndian.AppendUint32(out, p.Flags)
	for _, i := range p.Filter {
		out = binary.LittleEndian.AppendUint16(out, i.Code)
		out = append(out, i.Jt, i.Jf)
		out = binary.LittleEndian.AppendUint32(out, i.K)
	}
	return out, nil
}

// UnmarshalBinary reads what MarshalBinary returned. It looks at the form, not
// at what the instructions do: the kernel verifies those when it loads them.
func (p *Program) UnmarshalBinary(data []byte) error {
	if len(data) < headerSize || string(data[:len(magic)]) != magic {
		return errors.New("not a seccomp program of this version of Ferry")
	}
	filter, err := decode(data[headerSize:])
	if err != nil {
		return err
	}
	read := Program{Filter: filter, Flags: binary.LittleEndian.Uint32(data[len(magic):])}
	if err := read.check(); err != nil {
		return err
	}
	*p = read
	return nil
}

// check looks at what the kernel would refuse or, of the flags, take for something else.
func (p *Program) check() error {
	if n := len(p.Filter); n < 1 || n > maxInstructions {
		return fmt.Errorf("a seccomp program of %d instructions; the kernel takes 1 to %d", n, maxInstructions)
	}
	if unknown := p.Flags &^ knownFlags; unknown != 0 {
		return fmt.Errorf("a seccomp program with the unknown flags %#x", unknown)
	}
	return nil
}

// decode reads instructions as the kernel and libseccomp lay them out.
func decode(data []byte) ([]unix.SockFilter, error) {
	if len(data)%instructionSize != 0 {
		return nil, fmt.Errorf("a seccomp program that ends inside an instruction, after %d bytes", len(data))
	}
	filter := make([]unix.SockFilter, 0, len(data)/instructionSize)
	for ; len(data) > 0; data = data[instructionSize:] {
		filter = append(filter, unix.SockFilter{
			Code: binary.LittleEndian.Uint16(data),
			Jt:   data[2],
			Jf:   data[3],
			K:    binary.LittleEndian.Uint32(data[4:]),
		})
	}
	return filter, nil
}
