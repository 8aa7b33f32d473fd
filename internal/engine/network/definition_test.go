package network

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
)

func TestCreateNetworkRefuses(t *testing.T) {
	n := start(t, networkOptions(t))
	app := define(t, n, Definition{Name: "app", Subnet: netip.MustParsePrefix("10.221.0.0/24")})
	theirs := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "their0"}}
	if err := netlink.LinkAdd(theirs); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(theirs)
	setUp(t, "their0", "10.222.0.1")
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for _, tt := range []struct {
		d    Definition
		kind fault.Kind
	}{
		{Definition{Name: ""}, fault.Invalid},
		{Definition{Name: "a/b"}, fault.Invalid},
		{Definition{Name: "bridge"}, fault.Conflict},
		{Definition{Name: "app"}, fault.Conflict},
		{Definition{Name: "x", Subnet: app.Subnet}, fault.Conflict},
		{Definition{Name: "x", Subnet: p("10.213.4.0/24")}, fault.Conflict},
		{Definition{Name: "x", Subnet: p("10.214.4.0/24")}, fault.Conflict},
		{Definition{Name: "x", Subnet: p("10.222.0.0/16")}, fault.Conflict},
		{Definition{Name: "x", Subnet: p("10.223.0.0/31")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("10.223.0.1/24")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("fd00::/64")}, fault.Invalid},
		{Definition{Name: "x", Gateway: a("10.223.0.1")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("10.223.0.0/24"), Gateway: a("10.224.0.1")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("10.223.0.0/24"), Gateway: a("10.223.0.255")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("10.223.0.0/24"), Range: p("10.223.0.0/16")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("10.223.0.0/24"), Range: p("10.224.0.0/25")}, fault.Invalid},
		{Definition{Name: "x", Subnet: p("10.223.0.0/24"), Reserved: map[string]netip.Addr{"r": a("10.223.0.1")}}, fault.Invalid},
		{Definition{Name: "x", MTU: 3}, fault.Invalid},
		{Definition{Name: "x", Bridge: "a name that is too long"}, fault.Invalid},
		{Definition{Name: "x", Bridge: "their0"}, fault.Conflict},
	} {
		if d, err := n.CreateNetwork(t.Context(), tt.d); !fault.Is(err, tt.kind) {
			t.Errorf("%+v: %+v, %v, want %v", tt.d, d, err, tt.kind)
		}
	}
	for _, tt := range []struct {
		spec EndpointSpec
		kind fault.Kind
	}{
		{EndpointSpec{Network: "nothing"}, fault.NotFound},
		{EndpointSpec{Network: DefaultNetwork, IP: a("10.213.0.9")}, fault.Invalid},
		{EndpointSpec{Network: app.ID, IP: a("10.222.0.9")}, fault.Invalid},
		{EndpointSpec{Network: app.ID, IP: app.Gateway}, fault.Invalid},
		{EndpointSpec{Network: app.ID, IP: a("10.221.0.255")}, fault.Invalid},
		{EndpointSpec{Network: app.ID, IP: a("fd00::1")}, fault.Unsupported},
		{EndpointSpec{Network: app.ID, MAC: "nothing"}, fault.Invalid},
		{EndpointSpec{Network: app.ID, MAC: "01:00:00:00:00:00"}, fault.Invalid},
	} {
		if err := n.CheckEndpoint(tt.spec); !fault.Is(err, tt.kind) {
			t.Errorf("check %+v: %v, want %v", tt.spec, err, tt.kind)
		}
		if _, err := n.Attach(t.Context(), "a", AttachOptions{Networks: []EndpointSpec{{Network: DefaultNetwork, MAC: "02:00:00:00:00:09"}, tt.spec}}); err == nil {
			t.Errorf("attached to %+v", tt.spec)
		}
	}
	if got := n.Definitions(); len(got) != 1 {
		t.Errorf("made all the same: %+v", got)
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; l.Type() == "bridge" && name != app.Bridge && name != n.o.Bridge && name != "their0" {
			t.Errorf("bridge %s is left", name)
		}
	}
}

func TestFreeSubnet(t *testing.T) {
	p := netip.MustParsePrefix
	used := []usedRange{{Prefix: p("172.16.0.0/16")}, {Prefix: p("172.17.0.0/20")}}
	got, err := freeSubnet(p("172.16.0.0/12"), used)
	if err != nil || got != p("172.17.16.0/20") {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := freeSubnet(p("172.16.0.0/12"), []usedRange{{Prefix: p("172.0.0.0/8")}}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a pool that is used up: %v, %v", got, err)
	}
	if got, err := freeSubnet(p("172.16.0.0/28"), nil); err != nil || got != p("172.16.0.0/30") {
		t.Errorf("a small pool: %v, %v", got, err)
	}
}

func TestBridgeName(t *testing.T) {
	seen := map[string]string{}
	for _, main := range []string{"f", "ferry0", "ferry0-of-others", "ferry1"} {
		for _, id := range []string{"a", "b"} {
			name := bridgeName(main, id)
			if !validBridgeName.MatchString(name) || seen[name] != "" || !strings.HasPrefix(name, main[:min(len(main), 6)]) {
				t.Errorf("%s %s: %s, which %q has", main, id, name, seen[name])
			}
			seen[name] = main + " " + id
		}
	}
}

// FuzzNameServers: no resolv.conf makes an address of nothing.
func FuzzNameServers(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\nnameserver fe80::1%eth0\nsearch x\nnameserver\n#nameserver 1.2.3.4"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, s := range nameServers(data) {
			if _, err := netip.ParseAddr(s); err != nil {
				t.Errorf("%q", s)
			}
		}
	})
}
