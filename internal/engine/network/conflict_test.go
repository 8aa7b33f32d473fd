package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
)

func TestStartConflicts(t *testing.T) {
	needRoot(t)
	add := func(link netlink.Link) func(t *testing.T) {
		return func(t *testing.T) {
			if err := netlink.LinkAdd(link); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := netlink.LinkDel(link); err != nil {
					t.Error(err)
				}
			})
		}
	}
	veth := func(name string) netlink.Link {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		v := netlink.NewVeth(attrs)
		v.PeerName = "other1"
		return v
	}
	with := func(addr string) func(t *testing.T) {
		return func(t *testing.T) {
			add(veth("other0"))(t)
			setUp(t, "other0", addr)
		}
	}
	for _, test := range []struct {
		name    string
		arrange func(t *testing.T)
		hint    string
	}{
		{"name of another bridge", add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "fytest0"}}), "network.bridge"},
		{"name of another interface", add(veth("fytest0")), "network.bridge"},
		{"pod range in use", with("10.213.7.1"), "network.podCIDR"},
		{"service range in use", with("10.214.7.1"), "network.serviceCIDR"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.arrange(t)
			n, err := New(testOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			err = n.Start(t.Context())
			if !fault.Is(err, fault.Conflict) || !strings.Contains(fault.HintOf(err), test.hint) {
				t.Errorf("Start: %v (hint %q), want a conflict about %s", err, fault.HintOf(err), test.hint)
			}
			if err := n.Teardown(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// routeAway has a range reached by another interface, as a VPN that connects does.
func routeAway(t testing.TB, dst string) {
	t.Helper()
	link, err := netlink.LinkByName(outsideLink)
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
}

func TestOverlapThatCameLater(t *testing.T) {
	outside(t)
	o := testOptions(t)
	n := start(t, o)
	a, b := attach(t, n, "a"), attach(t, n, "b")
	echoTCP(t, a.NetnsPath, ":80", "a")
	kill(t, n)
	routeAway(t, "10.0.0.0/8")

	n = restart(t, o)
	wantTCP(t, b.NetnsPath, a.IP.Addr().String()+":80", "a saw "+b.IP.Addr().String())
	kill(t, n)

	// Another range than the bridge has is new, whatever the bridge.
	for _, change := range []func(*Options){
		func(o *Options) { o.Subnet = netip.MustParsePrefix("10.215.0.0/16") },
		func(o *Options) { o.Services = netip.MustParsePrefix("10.215.0.0/16") },
	} {
		other := o
		change(&other)
		other.StateDir, other.NetnsDir = o.StateDir+"-other", o.NetnsDir+"-other"
		n, err := New(other)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); !fault.Is(err, fault.Conflict) {
			t.Errorf("Start with ranges %s and %s: %v, want a conflict", other.Subnet, other.Services, err)
		}
	}
}

// TestTeardownAfterFailedStart has what an earlier run made taken away by a
// network that cannot start.
func TestTeardownAfterFailedStart(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, o Options)
	}{
		{"the ranges are used by now", func(t *testing.T, o Options) {
			if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: o.Bridge}}); err != nil {
				t.Fatal(err)
			}
			routeAway(t, "10.0.0.0/8")
		}},
		{"the settings are refused", func(t *testing.T, o Options) {
			lease := fmt.Sprintf(`{"id":"x","netnsPath":%q,"ip":"192.0.2.1/24"}`, "/proc/self/ns/net")
			if err := os.WriteFile(filepath.Join(o.StateDir, "leases", "x.json"), []byte(lease), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			outside(t)
			if err := writeSysctls(map[string]string{"net.ipv4.ip_forward": "0"}); err != nil {
				t.Fatal(err)
			}
			o := testOptions(t)
			n := start(t, o)
			attach(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
			kill(t, n)
			test.spoil(t, o)

			n, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Start(t.Context()); !fault.Is(err, fault.Conflict) {
				t.Errorf("Start: %v, want a conflict", err)
			}
			for range 2 {
				if err := n.Teardown(t.Context()); err != nil {
					t.Fatal(err)
				}
				checkClean(t, o)
			}
			if got, err := readSysctl("net.ipv4.ip_forward"); err != nil || got != "0" {
				t.Errorf("forwarding is not put back: %s, %v", got, err)
			}
		})
	}
}

// TestChangesEndWithTheBoot has the machine rebooted after a crash, and its
// owner turn forwarding on before Ferry comes back.
func TestChangesEndWithTheBoot(t *testing.T) {
	needRoot(t)
	if err := writeSysctls(map[string]string{"net.ipv4.ip_forward": "0"}); err != nil {
		t.Fatal(err)
	}
	o := testOptions(t)
	n := start(t, o)
	kill(t, n)
	path := filepath.Join(o.StateDir, "changes.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := readSysctl("kernel.random.boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "ip_forward") || !strings.Contains(string(data), boot) {
		t.Errorf("journal %s does not tell of forwarding in boot %s", data, boot)
	}
	earlier := strings.ReplaceAll(string(data), boot, "11111111-2222-3333-4444-555555555555")
	for _, left := range []string{"", "[{", earlier} { // the first two, where the power failed
		if err := os.WriteFile(path, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		if changes, err := n.Changes(); err != nil || len(changes) != 0 {
			t.Errorf("changes of an earlier boot, as %q: %v, %v", left, changes, err)
		}
	}

	n = restart(t, o)
	if changes, err := n.Changes(); err != nil || slices.ContainsFunc(changes, func(c Change) bool { return c.Name == "net.ipv4.ip_forward" }) {
		t.Errorf("changes after the reboot: %v, %v", changes, err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := readSysctl("net.ipv4.ip_forward"); err != nil || got != "1" {
		t.Errorf("forwarding, which the machine had without Ferry: %s, %v", got, err)
	}
}

func TestUnreadableJournalHoldsNoLock(t *testing.T) {
	needRoot(t)
	o := testOptions(t)
	journal := filepath.Join(o.StateDir, "changes.json")
	if err := os.MkdirAll(journal, 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err == nil {
		t.Fatal("started without knowing what was changed before")
	}
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	o := testOptions(t)
	start(t, o)
	second, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("Start beside a running one: %v, want a conflict", err)
	}
}
