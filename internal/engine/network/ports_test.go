package network

import (
	"net"
	"testing"

	"github.com/ferryos/ferry/internal/fault"
)

// TestHostPortRange: of a range the first free port is taken, until none is left.
func TestHostPortRange(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first := uint16(l.Addr().(*net.TCPAddr).Port)
	if first > 65000 {
		t.Skipf("no room for a range after port %d", first)
	}
	var got []uint16
	var held []reservation
	for {
		ports := []PortMapping{{HostPort: first, HostPortEnd: first + 9, ContainerPort: 80, Protocol: TCP}}
		r, err := reserve(ports)
		if err != nil {
			if !fault.Is(err, fault.Conflict) {
				t.Errorf("a range that is used up: %v", err)
			}
			break
		}
		held = append(held, r)
		if ports[0].HostPortEnd != 0 || ports[0].HostPort <= first || ports[0].HostPort > first+9 {
			t.Errorf("got %+v of %d-%d, the first of which is taken", ports[0], first, first+9)
		}
		got = append(got, ports[0].HostPort)
		if len(got) > 9 {
			break
		}
	}
	for _, r := range held {
		r.close()
	}
	if len(got) == 0 || len(got) > 9 {
		t.Errorf("%d ports of a range with 9 free ones: %v", len(got), got)
	}
	for _, p := range []PortMapping{{HostPortEnd: 3, ContainerPort: 1}, {HostPort: 4, HostPortEnd: 3, ContainerPort: 1}} {
		if _, err := p.Normal(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
