package seccomp

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

var twoInstructions = Program{
	Flags:  unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	Filter: []unix.SockFilter{{Code: 0x20, Jt: 1, Jf: 2, K: 0xfffefdfc}, {Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW}},
}

func marshal(t testing.TB, p *Program) []byte {
	t.Helper()
	data, err := p.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestMarshalRoundTrip(t *testing.T) {
	for _, p := range []Program{twoInstructions, {Filter: make([]unix.SockFilter, maxInstructions)}} {
		data := marshal(t, &p)
		var got Program
		if err := got.UnmarshalBinary(data); err != nil {
			t.Fatal(err)
		}
		if got.Flags != p.Flags || !slices.Equal(got.Filter, p.Filter) {
			t.Errorf("%d instructions come back as others", len(p.Filter))
		}
	}
	want := "fbp\x01" + "\x04\x00\x00\x00" + "\x20\x00\x01\x02\xfc\xfd\xfe\xff" + "\x06\x00\x00\x00\x00\x00\xff\x7f"
	if got := marshal(t, &twoInstructions); string(got) != want {
		t.Errorf("stored as %q, want %q", got, want)
	}
}

func TestMarshalRefuses(t *testing.T) {
	for name, p := range map[string]Program{
		"no instructions": {},
		"too many":        {Filter: make([]unix.SockFilter, maxInstructions+1)},
		"a listener":      {Filter: twoInstructions.Filter, Flags: unix.SECCOMP_FILTER_FLAG_NEW_LISTENER},
	} {
		if _, err := p.MarshalBinary(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	good := marshal(t, &twoInstructions)
	flags := bytes.Clone(good)
	binary.LittleEndian.PutUint32(flags[len(magic):], unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	for name, data := range map[string][]byte{
		"nothing":         nil,
		"half a header":   good[:headerSize-1],
		"only a header":   good[:headerSize],
		"cut":             good[:len(good)-1],
		"another version": append([]byte("fbp\x02"), good[len(magic):]...),
		"something else":  []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`),
		"too long":        append(bytes.Clone(good), make([]byte, instructionSize*(maxInstructions-1))...),
		"a listener":      flags,
	} {
		p := Program{Flags: 2}
		if err := p.UnmarshalBinary(data); err == nil || p.Filter != nil || p.Flags != 2 {
			t.Errorf("%s: error %v, program %v", name, err, p)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(marshal(f, &twoInstructions))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Program
		if p.UnmarshalBinary(data) != nil {
			return
		}
		if got := marshal(t, &p); !bytes.Equal(got, data) {
			t.Errorf("%q comes back as %q", data, got)
		}
	})
}

func BenchmarkUnmarshal(b *testing.B) {
	data := marshal(b, &Program{Filter: make([]unix.SockFilter, 800)})
	var p Program
	for b.Loop() {
		if err := p.UnmarshalBinary(data); err != nil {
			b.Fatal(err)
		}
	}
}
