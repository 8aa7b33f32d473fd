package network

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
)

var sameAddrs = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

// kill ends n as SIGKILL would end its process: nothing is cleaned up, the
// kernel closes what was open.
func kill(t testing.TB, n *Network) {
	t.Helper()
	n.stop()
	close(n.doomed)
	n.tasks.Wait()
	for _, a := range n.attached {
		a.ports.close()
		if a.resolver != nil {
			a.resolver.Close()
		}
	}
	n.close()
}

func restart(t testing.TB, o Options) *Network {
	t.Helper()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.nl != nil {
			if err := n.Stop(contextAfter(t)); err != nil {
				t.Error(err)
			}
		}
	})
	return n
}

// waitFor polls until ok, and fails the test when it never is.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: never happened", what)
}

func netnsFiles(t testing.TB, o Options) []string {
	t.Helper()
	entries, err := os.ReadDir(o.NetnsDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestContainersOutliveTheProcess(t *testing.T) {
	o := testOptions(t)
	o.PoolSize = 3
	n := start(t, o)
	a := attach(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	b := attach(t, n, "b")
	echoTCP(t, a.NetnsPath, ":80", "a")
	waitFor(t, "pool full", func() bool { return len(n.pool) == 3 })
	kill(t, n)
	wantTCP(t, b.NetnsPath, a.IP.Addr().String()+":80", "a saw "+b.IP.Addr().String())
	wantTCP(t, "", "127.0.0.1:8080", "a saw "+a.Gateway.String())

	o.PoolSize = 0
	n = restart(t, o)
	if diff := cmp.Diff([]Attachment{a, b}, n.Attachments(), sameAddrs); diff != "" {
		t.Errorf("attachments after a crash (-before +after):\n%s", diff)
	}
	want := []string{a.IP.Addr().String(), b.IP.Addr().String()}
	slices.Sort(want)
	if diff := cmp.Diff(want, netnsFiles(t, o)); diff != "" {
		t.Errorf("the dead process' pool is not removed (-want +got):\n%s", diff)
	}
	wantTCP(t, "", "127.0.0.1:8080", "a saw "+a.Gateway.String())
	if _, err := n.Attach(t.Context(), "c", AttachOptions{Ports: []PortMapping{{HostPort: 8080, ContainerPort: 1}}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("host port of a survivor given away: %v", err)
	}
	if c := attach(t, n, "c"); c.IP == a.IP || c.IP == b.IP {
		t.Errorf("address %s given twice", c.IP)
	}

	if err := n.Reconcile(t.Context(), map[string]bool{"b": true}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Attachment{b}, n.Attachments(), sameAddrs); diff != "" {
		t.Errorf("after Reconcile (-want +got):\n%s", diff)
	}
	if _, err := askTCP(t, "", "127.0.0.1:8080"); err == nil {
		t.Error("host port of a detached container answers")
	}
}

func TestBridgeDeletedUnderContainers(t *testing.T) {
	o := testOptions(t)
	n := start(t, o)
	a, b := attach(t, n, "a"), attach(t, n, "b")
	echoTCP(t, a.NetnsPath, ":80", "a")
	kill(t, n)
	if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: o.Bridge}}); err != nil {
		t.Fatal(err)
	}
	restart(t, o)
	wantTCP(t, b.NetnsPath, a.IP.Addr().String()+":80", "a saw "+b.IP.Addr().String())
}

func TestLeasesOfAnEarlierBootAreDropped(t *testing.T) {
	o := testOptions(t)
	n := start(t, o)
	a := attach(t, n, "a")
	kill(t, n)
	if err := removeNetns(a.NetnsPath); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "leases", "torn.json"), []byte(`{"id":"to`), 0o600); err != nil {
		t.Fatal(err)
	}
	n = restart(t, o)
	if got := n.Attachments(); len(got) != 0 {
		t.Errorf("attachments without a namespace: %+v", got)
	}
	if b := attach(t, n, "b"); b.IP == a.IP {
		t.Errorf("address %s reused at once across a restart", b.IP)
	}
}

func TestDetach(t *testing.T) {
	o := testOptions(t)
	n := start(t, o)
	a := attach(t, n, "a")
	if _, err := n.Attach(t.Context(), "a", AttachOptions{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("attach twice: %v, want a conflict", err)
	}
	for range 2 {
		if err := n.Detach(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := n.Attachment("a"); ok {
		t.Error("still attached")
	}
	if got := netnsFiles(t, o); len(got) != 0 {
		t.Errorf("namespaces left: %v", got)
	}
	waitFor(t, "interface gone", func() bool {
		link, err := linkOf(n.nl, linkName(a.IP.Addr()))
		return err == nil && link == nil
	})
	if again := attach(t, n, "a"); again.IP == a.IP {
		t.Errorf("address %s reused at once", a.IP)
	}
}

func TestTeardownPutsTheMachineBack(t *testing.T) {
	needRoot(t)
	for _, s := range []struct{ name, before, during string }{
		{"net.ipv4.ip_forward", "0", "1"}, {"net.ipv4.conf.all.send_redirects", "1", "0"},
	} {
		if err := writeSysctls(map[string]string{s.name: s.before}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if got, err := readSysctl(s.name); err != nil || got != s.before {
				t.Errorf("%s = %s, %v; want %s", s.name, got, err, s.before)
			}
		}()
	}
	o := testOptions(t)
	o.PoolSize = 2
	n := start(t, o)
	attach(t, n, "a", PortMapping{ContainerPort: 80})
	kill(t, n)

	fresh, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := fresh.Changes()
	if err != nil {
		t.Fatal(err)
	}
	want := []Change{
		{Kind: ChangeInterface, Name: o.Bridge},
		{Kind: ChangeSysctl, Name: "net.ipv4.ip_forward", Old: "0", New: "1"},
		{Kind: ChangeSysctl, Name: "net.ipv4.conf.all.send_redirects", Old: "1", New: "0"},
		{Kind: ChangeNftables, Name: "table ip ferry-" + o.Bridge},
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := fresh.Teardown(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkClean(t, o)
	}
}

func TestTwoFerrys(t *testing.T) {
	one, two := testOptions(t), testOptions(t)
	two.Bridge, two.Subnet = "fytest1", netip.MustParsePrefix("10.215.0.0/24")
	two.Services = netip.MustParsePrefix("10.216.0.0/24")
	n, m := start(t, one), restart(t, two)
	a, b := attach(t, n, "a"), attach(t, m, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	echoTCP(t, b.NetnsPath, ":80", "b")
	wantTCP(t, "", b.IP.Addr().String()+":80", "b saw "+m.gateway.String())
	// To each other they are outside.
	wantTCP(t, a.NetnsPath, a.Gateway.String()+":8080", "b saw "+m.gateway.String())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := n.DialPod(ctx, a.NetnsPath, "tcp", b.IP.Addr().String()+":80"); err == nil {
		c.Close()
		t.Error("a container reaches one of the other Ferry past its host ports")
	}

	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := readSysctl("net.ipv4.ip_forward"); err != nil || got != "1" {
		t.Errorf("forwarding was taken from the other Ferry: %s, %v", got, err)
	}
	echoTCP(t, a.NetnsPath, ":80", "a")
	wantTCP(t, "", a.IP.Addr().String()+":80", "a saw "+a.Gateway.String())
}

// TestDockerFirst has forwarded packets dropped by default, in the chain that
// Docker makes, before Ferry starts.
func TestDockerFirst(t *testing.T) {
	world := outside(t)
	nft := func(command string) string {
		out, err := exec.Command("nft", strings.Fields(command)...).CombinedOutput()
		if err != nil {
			t.Errorf("nft %s: %v\n%s", command, err, out)
		}
		return string(out)
	}
	o := testOptions(t)
	n := start(t, o)
	nft("add table ip filter")
	nft("add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }")
	t.Cleanup(func() { nft("delete table ip filter") })
	before := nft("list table ip filter")
	kill(t, n)
	n = restart(t, o)
	a := attach(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	echoTCP(t, world, outsideAddr+":80", "world")
	echoTCP(t, a.NetnsPath, ":80", "a")
	wantTCP(t, a.NetnsPath, outsideAddr+":80", "world saw "+machineAddr)
	wantTCP(t, world, machineAddr+":8080", "a saw "+outsideAddr)

	if err := n.Reconcile(t.Context(), map[string]bool{"a": true}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(nft("list table ip filter"), "accept"); got != 2 {
		t.Errorf("%d rules in Docker's chain, want 2", got)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, nft("list table ip filter")); diff != "" {
		t.Errorf("Docker's table (-before +after):\n%s", diff)
	}
}

func TestAttachRefuses(t *testing.T) {
	o := testOptions(t)
	o.Subnet = netip.MustParsePrefix("10.213.0.0/29")
	n := start(t, o)
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	for _, test := range []struct {
		name string
		id   string
		opts AttachOptions
		kind fault.Kind
	}{
		{"id with a slash", "../a", AttachOptions{}, fault.Invalid},
		{"empty id", "", AttachOptions{}, fault.Invalid},
		{"protocol", "a", AttachOptions{Ports: []PortMapping{{ContainerPort: 1, Protocol: "icmp"}}}, fault.Invalid},
		{"no container port", "a", AttachOptions{Ports: []PortMapping{{HostPort: 1}}}, fault.Invalid},
		{"IPv6", "a", AttachOptions{Ports: []PortMapping{{HostIP: netip.MustParseAddr("::1"), ContainerPort: 1}}}, fault.Unsupported},
		{"foreign address", "a", AttachOptions{Ports: []PortMapping{{HostIP: netip.MustParseAddr("203.0.113.9"), HostPort: 7777, ContainerPort: 1}}}, fault.Invalid},
		{"port in use", "a", AttachOptions{Ports: []PortMapping{{HostPort: port, ContainerPort: 1}}}, fault.Conflict},
		{"port twice", "a", AttachOptions{Ports: []PortMapping{{HostPort: 7777, ContainerPort: 1}, {HostPort: 7777, ContainerPort: 2}}}, fault.Conflict},
		{"sysctl of the machine", "a", AttachOptions{Sysctls: map[string]string{"kernel.hostname": "x"}}, fault.Invalid},
		{"sysctl path", "a", AttachOptions{Sysctls: map[string]string{"net/../kernel/hostname": "x"}}, fault.Invalid},
		{"unknown sysctl", "a", AttachOptions{Sysctls: map[string]string{"net.ipv4.no_such": "1"}}, fault.Unsupported},
		{"sysctl value", "a", AttachOptions{Sysctls: map[string]string{"net.ipv4.ip_forward": "x"}}, fault.Invalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := n.Attach(t.Context(), test.id, test.opts); !fault.Is(err, test.kind) {
				t.Errorf("Attach: %v (%v), want %v", err, fault.KindOf(err), test.kind)
			}
			if got := n.Attachments(); len(got) != 0 {
				t.Errorf("attached all the same: %+v", got)
			}
		})
	}
	waitFor(t, "failed attempts cleaned up", func() bool { return len(netnsFiles(t, o)) == 0 })

	// Everything works after the failures, up to the last address.
	waitFor(t, "addresses given back", func() bool { n.addrs.mu.Lock(); defer n.addrs.mu.Unlock(); return len(n.addrs.used) == 0 })
	for i := range 5 {
		attach(t, n, fmt.Sprint("fill", i))
	}
	if _, err := n.Attach(t.Context(), "more", AttachOptions{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Attach with no address left: %v, want unavailable", err)
	}
}

func TestSysctlsOfAContainer(t *testing.T) {
	n := start(t, testOptions(t))
	a, err := n.Attach(t.Context(), "a", AttachOptions{Sysctls: map[string]string{"net.core.somaxconn": "77", "net/ipv4/conf/eth0/forwarding": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	err = inNetns(a.NetnsPath, func() error {
		for name, want := range map[string]string{"net.core.somaxconn": "77", "net.ipv4.conf.eth0.forwarding": "1"} {
			if got, err := readSysctl(name); err != nil || got != want {
				t.Errorf("%s = %q, %v; want %s", name, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestHammer attaches and detaches from many goroutines at once, with more
// attachments than the pool has, and counts what is left.
func TestHammer(t *testing.T) {
	o := testOptions(t)
	o.PoolSize = 8
	n := start(t, o)
	var seen sync.Map
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for round := range 4 {
				id := fmt.Sprintf("c%d-%d", i, round)
				var ports []PortMapping
				if rand.IntN(2) == 0 {
					ports = []PortMapping{{ContainerPort: 80}, {ContainerPort: 53, Protocol: UDP}}
				}
				a, err := n.Attach(t.Context(), id, AttachOptions{Ports: ports})
				if err != nil {
					t.Error(err)
					return
				}
				if other, taken := seen.LoadOrStore(a.IP, id); taken {
					t.Errorf("%s given to %s and %s", a.IP, other, id)
				}
				n.Attachments()
				if err := n.Detach(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := n.Attachments(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
}

func TestProcessStaysInItsNamespace(t *testing.T) {
	n := start(t, testOptions(t))
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		a := attach(t, n, fmt.Sprint("c", i))
		if err := inNetns(a.NetnsPath, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "every thread in the machine's namespace", func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil || len(tasks) == 0 {
			t.Fatalf("list threads: %v", err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != host {
				return false
			}
		}
		return true
	})
}

func BenchmarkAttachDetach(b *testing.B) {
	for _, test := range []struct {
		name  string
		pool  int
		ports []PortMapping
	}{
		{"pool", 64, nil},
		{"no-pool", 0, nil},
		{"pool-and-port", 64, []PortMapping{{ContainerPort: 80}}},
	} {
		b.Run(test.name, func(b *testing.B) {
			o := testOptions(b)
			o.PoolSize = test.pool
			n := start(b, o)
			var attach, detach time.Duration
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				waitFor(b, "idle", func() bool {
					n.addrs.mu.Lock()
					defer n.addrs.mu.Unlock()
					return len(n.pool) == test.pool && len(n.addrs.used) <= test.pool+1 // one waits to enter
				})
				b.StartTimer()
				id := fmt.Sprint("c", i)
				begin := time.Now()
				if _, err := n.Attach(b.Context(), id, AttachOptions{Ports: test.ports}); err != nil {
					b.Fatal(err)
				}
				attach += time.Since(begin)
				begin = time.Now()
				if err := n.Detach(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				detach += time.Since(begin)
			}
			b.ReportMetric(float64(attach.Microseconds())/float64(b.N), "µs-attach/op")
			b.ReportMetric(float64(detach.Microseconds())/float64(b.N), "µs-detach/op")
		})
	}
}
