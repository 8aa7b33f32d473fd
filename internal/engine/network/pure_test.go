package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseResolvConf(t *testing.T) {
	for _, test := range []struct {
		name, in string
		want     DNSConfig
	}{
		{"empty", "", DNSConfig{}},
		{"usual", "search a.example b.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:2 edns0\n",
			DNSConfig{Servers: []string{"192.0.2.1", "192.0.2.2"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:2", "edns0"}}},
		{"loopback and IPv6 cannot be reached", "nameserver 127.0.0.53\nnameserver ::1\nnameserver fd00::1\nnameserver 192.0.2.1\n",
			DNSConfig{Servers: []string{"192.0.2.1"}}},
		{"last search wins", "domain a\nsearch b c\n", DNSConfig{Searches: []string{"b", "c"}}},
		{"lone dot", "search .\n", DNSConfig{}},
		{"comments, junk and no end of line", "# c\n; c\nnameserver\nnameserver x\nnonsense y\n\tnameserver 192.0.2.1 # here", DNSConfig{Servers: []string{"192.0.2.1"}}},
		{"options add up", "options a\noptions b\n", DNSConfig{Options: []string{"a", "b"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ParseResolvConf([]byte(test.in))
			if len(got.Searches) == 0 {
				got.Searches = nil
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, ParseResolvConf(got.ResolvConf())); diff != "" {
				t.Errorf("written and read again (-before +after):\n%s", diff)
			}
		})
	}
}

func TestHostDNS(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stub := file("stub", "nameserver 127.0.0.53\nsearch example\n")
	resolved := file("resolved", "nameserver 192.0.2.9\n")
	plain := file("plain", "nameserver 192.0.2.1\n")
	missing := filepath.Join(dir, "missing")
	for _, test := range []struct {
		name  string
		paths []string
		want  DNSConfig
	}{
		{"plain", []string{plain, resolved}, DNSConfig{Servers: []string{"192.0.2.1"}}},
		{"systemd-resolved", []string{stub, resolved}, DNSConfig{Servers: []string{"192.0.2.9"}}},
		{"no server at all", []string{stub, missing}, DNSConfig{Searches: []string{"example"}}},
		{"no file", []string{missing, missing}, DNSConfig{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := hostDNS(test.paths...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := hostDNS(dir); err == nil {
		t.Error("a directory was read as resolv.conf")
	}
}

func TestHostsFile(t *testing.T) {
	const loopback = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	ips := []netip.Addr{netip.MustParseAddr("10.85.0.7")}
	for _, test := range []struct {
		name, hostname string
		ips            []netip.Addr
		extra          []HostEntry
		want           string
	}{
		{"own name", "web", ips, nil, loopback + "10.85.0.7\tweb\n"},
		{"with a domain", "web.example.org", ips, nil, loopback + "10.85.0.7\tweb.example.org web\n"},
		{"no address", "web", nil, nil, loopback},
		{"no name", "", ips, nil, loopback},
		{"extra", "web", ips, []HostEntry{{netip.MustParseAddr("10.85.0.1"), []string{"host.docker.internal", "gw"}}},
			loopback + "10.85.0.7\tweb\n10.85.0.1\thost.docker.internal gw\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, string(HostsFile(test.hostname, test.ips, test.extra))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	a := newAddresses(netip.MustParsePrefix("10.0.0.0/29"))
	take := func() string {
		addr, _, err := a.take()
		if err != nil {
			return fault.KindOf(err).String()
		}
		return addr.String()
	}
	var got []string
	for range 6 {
		got = append(got, take())
	}
	a.release(netip.MustParseAddr("10.0.0.6"))
	a.release(netip.MustParseAddr("10.0.0.3"))
	got = append(got, take(), take(), take())
	want := []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "unavailable", "10.0.0.3", "10.0.0.6", "unavailable"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses in turn (-want +got):\n%s", diff)
	}

	for _, test := range []struct {
		start uint32
		want  string
	}{{0, "10.0.0.2"}, {5, "10.0.0.5"}, {7, "10.0.0.2"}, {1 << 31, "10.0.0.2"}} {
		b := newAddresses(netip.MustParsePrefix("10.0.0.5/29"))
		b.startAt(test.start)
		if addr, next, err := b.take(); err != nil || addr.String() != test.want || next != b.offset(addr)+1 {
			t.Errorf("start at %d: %s, next %d, %v; want %s", test.start, addr, next, err, test.want)
		}
	}
}

func TestNamesOfAnAddress(t *testing.T) {
	addr := netip.MustParseAddr("255.85.0.10")
	if got, want := linkName(addr), "fvff55000a"; got != want || len(got) >= unix.IFNAMSIZ {
		t.Errorf("link %s, want %s", got, want)
	}
	mac := hardwareAddr(addr)
	if got, want := mac.String(), "02:fe:ff:55:00:0a"; got != want || mac[0]&3 != 2 {
		t.Errorf("hardware address %s, want %s, local and unicast", got, want)
	}
}

func TestPortMappingNormal(t *testing.T) {
	any4, any6, one := netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("127.0.0.1")
	for _, test := range []struct {
		in, want PortMapping
	}{
		{PortMapping{ContainerPort: 80}, PortMapping{ContainerPort: 80, Protocol: TCP}},
		{PortMapping{HostIP: any4, HostPort: 1, ContainerPort: 2, Protocol: UDP}, PortMapping{HostPort: 1, ContainerPort: 2, Protocol: UDP}},
		{PortMapping{HostIP: any6, ContainerPort: 2, Protocol: SCTP}, PortMapping{ContainerPort: 2, Protocol: SCTP}},
		{PortMapping{HostIP: one, ContainerPort: 2}, PortMapping{HostIP: one, ContainerPort: 2, Protocol: TCP}},
		{PortMapping{HostIP: netip.MustParseAddr("::ffff:127.0.0.1"), ContainerPort: 2}, PortMapping{HostIP: one, ContainerPort: 2, Protocol: TCP}},
	} {
		got, err := test.in.Normal()
		if err != nil || got != test.want {
			t.Errorf("%+v: %+v, %v; want %+v", test.in, got, err, test.want)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":              "/proc/sys/net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.1/forwarding":  "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
		"net.ipv4.conf.eth0/1.forwarding":  "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
		"net/ipv4/conf/br-lan/route_local": "/proc/sys/net/ipv4/conf/br-lan/route_local",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestKernelError(t *testing.T) {
	for _, test := range []struct {
		err  error
		want fault.Kind
	}{
		{unix.EOPNOTSUPP, fault.Unsupported},
		{fmt.Errorf("netlink: %w", unix.EPROTONOSUPPORT), fault.Unsupported},
		{unix.EPERM, fault.Denied},
		{unix.EBUSY, fault.Internal},
	} {
		if err := kernelError(test.err, "make bridge %s", "x"); !fault.Is(err, test.want) {
			t.Errorf("%v: %v, want %v", test.err, fault.KindOf(err), test.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Options){
		"no bridge":     func(o *Options) { o.Bridge = "" },
		"long bridge":   func(o *Options) { o.Bridge = "sixteen-letters-" },
		"no subnet":     func(o *Options) { o.Subnet = netip.Prefix{} },
		"IPv6":          func(o *Options) { o.Subnet = netip.MustParsePrefix("fd00::/64") },
		"tiny":          func(o *Options) { o.Subnet = netip.MustParsePrefix("10.0.0.0/30") },
		"relative path": func(o *Options) { o.StateDir = "state" },
		"no logger":     func(o *Options) { o.Log = nil },
	} {
		o := testOptions(t)
		spoil(&o)
		if _, err := New(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}
