package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// define makes a network, and removes it at the end unless the test has.
func define(t *testing.T, n *Network, d Definition) Definition {
	t.Helper()
	d, err := n.CreateNetwork(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.nl == nil {
			return // stopped: another took it over
		}
		for _, a := range n.Attachments() {
			if err := n.Detach(contextAfter(t), a.ID); err != nil {
				t.Error(err)
			}
		}
		if err := n.RemoveNetwork(contextAfter(t), d.ID); err != nil && !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
	})
	return d
}

// on attaches id to networks, by its id as its only name.
func on(t *testing.T, n *Network, id string, networks ...Definition) Attachment {
	t.Helper()
	o := AttachOptions{Networks: []EndpointSpec{}}
	for _, d := range networks {
		o.Networks = append(o.Networks, EndpointSpec{Network: d.ID, Names: []string{id}})
	}
	a, err := n.Attach(t.Context(), id, o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func addr(t *testing.T, a Attachment, d Definition) string {
	t.Helper()
	for _, e := range a.Endpoints {
		if e.Network == d.ID {
			return e.Address.Addr().String()
		}
	}
	t.Fatalf("%s is not on %s", a.ID, d.Name)
	return ""
}

// resolve asks the resolver from inside, by UDP or TCP.
func resolve(t *testing.T, n *Network, a Attachment, network, name string) ([]string, error) {
	t.Helper()
	r := resolver(n, a, network)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	list, err := r.LookupHost(ctx, name+".")
	slices.Sort(list)
	return list, err
}

func resolver(n *Network, a Attachment, network string) *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.DialPod(ctx, a.NetnsPath, network, "127.0.0.11:53")
	}}
}

func wantName(t *testing.T, n *Network, a Attachment, name string, want ...string) {
	t.Helper()
	for _, network := range []string{"udp4", "tcp4"} {
		got, err := resolve(t, n, a, network, name)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s asks for %s by %s: %v, %v; want %v", a.ID, name, network, got, err, want)
		}
	}
}

func wantNoName(t *testing.T, n *Network, a Attachment, name string) {
	t.Helper()
	if got, err := resolve(t, n, a, "udp4", name); err == nil {
		t.Errorf("%s finds %s at %v", a.ID, name, got)
	}
}

// unreachable fails the test if a TCP connection can be made.
func unreachable(t *testing.T, n *Network, from Attachment, to string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := n.DialPod(ctx, from.NetnsPath, "tcp", to); err == nil {
		c.Close()
		t.Errorf("%s reaches %s", from.ID, to)
	}
}

func networkOptions(t *testing.T) Options {
	o := testOptions(t)
	o.Networks = netip.MustParsePrefix("10.220.0.0/16")
	return o
}

func TestNetworks(t *testing.T) {
	world := outside(t)
	n := start(t, networkOptions(t))
	app, other := define(t, n, Definition{Name: "app"}), define(t, n, Definition{Name: "other"})
	if app.Subnet.String() != "10.220.0.0/24" || other.Subnet.String() != "10.220.1.0/24" || app.Bridge == other.Bridge || len(app.Bridge) > 15 {
		t.Errorf("chosen: %+v, %+v", app, other)
	}
	a, b, c, plain := on(t, n, "a", app), on(t, n, "b", app), on(t, n, "c", other), attach(t, n, "plain")
	for _, each := range []Attachment{a, b, c, plain} {
		echoTCP(t, each.NetnsPath, ":80", each.ID)
	}
	echoTCP(t, world, outsideAddr+":80", "world")
	if a.IP.IsValid() || a.Endpoints[0].Interface != "eth0" || addr(t, a, app) != "10.220.0.2" {
		t.Errorf("%+v", a)
	}
	wantTCP(t, a.NetnsPath, addr(t, b, app)+":80", "b saw "+addr(t, a, app))
	wantTCP(t, "", addr(t, a, app)+":80", "a saw "+app.Gateway.String())
	wantTCP(t, a.NetnsPath, outsideAddr+":80", "world saw "+machineAddr)
	// Networks are outside to each other, and to the node's own.
	unreachable(t, n, a, addr(t, c, other)+":80")
	unreachable(t, n, a, plain.IP.Addr().String()+":80")
	unreachable(t, n, plain, addr(t, a, app)+":80")
	unreachable(t, n, Attachment{ID: "the world", NetnsPath: world}, addr(t, a, app)+":80")

	wantName(t, n, a, "b", addr(t, b, app))
	wantName(t, n, a, "B", addr(t, b, app))
	wantName(t, n, a, "b.app", addr(t, b, app))
	wantName(t, n, a, "a", addr(t, a, app))
	wantNoName(t, n, a, "c")
	wantNoName(t, n, a, "plain")
	list, err := resolver(n, a, "udp4").LookupAddr(t.Context(), addr(t, b, app))
	if err != nil || !slices.Equal(list, []string{"b.app."}) {
		t.Errorf("the name of b's address: %v, %v", list, err)
	}
	// The resolver is not in the way of one of the container's own.
	err = inNetns(a.NetnsPath, func() error {
		l, err := net.ListenPacket("udp4", ":53")
		if err == nil {
			l.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("a container cannot serve names itself: %v", err)
	}
	wantName(t, n, a, "b", addr(t, b, app))

	if err := n.RemoveNetwork(t.Context(), app.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("a network in use is removed: %v", err)
	}
	for _, id := range []string{"a", "b"} {
		if err := n.Detach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.RemoveNetwork(t.Context(), app.ID); err != nil {
		t.Fatal(err)
	}
	if link, err := linkOf(n.nl, app.Bridge); err != nil || link != nil {
		t.Errorf("bridge %s is left: %v", app.Bridge, err)
	}
	if _, err := n.Attach(t.Context(), "d", AttachOptions{Networks: []EndpointSpec{{Network: app.ID}}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("attach to a removed network: %v", err)
	}
	// What it had is free again, though the reaper has not come by yet.
	again := define(t, n, Definition{Name: "app", Subnet: app.Subnet})
	wantTCP(t, on(t, n, "e", again).NetnsPath, outsideAddr+":80", "world saw "+machineAddr)
}

func TestHostPortsOfNetworks(t *testing.T) {
	world := outside(t)
	n := start(t, networkOptions(t))
	app, other := define(t, n, Definition{Name: "app"}), define(t, n, Definition{Name: "other"})
	web, err := n.Attach(t.Context(), "web", AttachOptions{Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}},
		Networks: []EndpointSpec{{Network: app.ID, Names: []string{"web"}}}})
	if err != nil {
		t.Fatal(err)
	}
	echoTCP(t, web.NetnsPath, ":80", "web")
	b, c, plain := on(t, n, "b", app), on(t, n, "c", other), attach(t, n, "plain")
	wantTCP(t, "", "127.0.0.1:8080", "web saw "+app.Gateway.String())
	wantTCP(t, world, machineAddr+":8080", "web saw "+outsideAddr)
	for _, from := range []Attachment{web, b, c, plain} {
		wantTCP(t, from.NetnsPath, machineAddr+":8080", "web saw "+app.Gateway.String())
	}
	// The port follows the network that leads outside.
	if _, err := n.Connect(t.Context(), "web", EndpointSpec{Network: other.ID, GatewayPriority: 1}); err != nil {
		t.Fatal(err)
	}
	wantTCP(t, "", "127.0.0.1:8080", "web saw "+other.Gateway.String())
	if _, err := n.Disconnect(t.Context(), "web", other.ID); err != nil {
		t.Fatal(err)
	}
	wantTCP(t, "", "127.0.0.1:8080", "web saw "+app.Gateway.String())
	if _, err := n.Connect(t.Context(), "web", EndpointSpec{Network: DefaultNetwork, GatewayPriority: 1}); err != nil {
		t.Fatal(err)
	}
	wantTCP(t, "", "127.0.0.1:8080", "web saw "+n.gateway.String())
}

func TestInternalAndIsolatedNetworks(t *testing.T) {
	world := outside(t)
	n := start(t, networkOptions(t))
	in, apart := define(t, n, Definition{Name: "in", Internal: true}), define(t, n, Definition{Name: "apart", Isolated: true, MTU: 1400})
	a, b := on(t, n, "a", in), on(t, n, "b", in)
	echoTCP(t, b.NetnsPath, ":80", "b")
	echoTCP(t, world, outsideAddr+":80", "world")
	wantTCP(t, a.NetnsPath, addr(t, b, in)+":80", "b saw "+addr(t, a, in))
	wantName(t, n, a, "b", addr(t, b, in))
	wantNoName(t, n, a, "example.org")
	unreachable(t, n, a, outsideAddr+":80")
	// Not even with a route that somebody inside makes.
	err := inNetnsHandle(a.NetnsPath, func(inside *netlink.Handle) error {
		return inside.RouteAdd(&netlink.Route{Gw: in.Gateway.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	unreachable(t, n, a, outsideAddr+":80")

	c, d := on(t, n, "c", apart), on(t, n, "d", apart)
	echoTCP(t, d.NetnsPath, ":80", "d")
	unreachable(t, n, c, addr(t, d, apart)+":80")
	wantTCP(t, c.NetnsPath, outsideAddr+":80", "world saw "+machineAddr)
	err = inNetnsHandle(c.NetnsPath, func(inside *netlink.Handle) error {
		link, err := inside.LinkByName("eth0")
		if err == nil && link.Attrs().MTU != 1400 {
			err = fmt.Errorf("MTU %d", link.Attrs().MTU)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestConnectAndDisconnect(t *testing.T) {
	n := start(t, networkOptions(t))
	app, other := define(t, n, Definition{Name: "app"}), define(t, n, Definition{Name: "other"})
	a, b := attach(t, n, "a"), on(t, n, "b", app)
	on(t, n, "c", other)
	echoTCP(t, a.NetnsPath, ":80", "a")
	unreachable(t, n, b, a.IP.Addr().String()+":80")
	a, err := n.Connect(t.Context(), "a", EndpointSpec{Network: app.ID, Names: []string{"a", "alias"}, IP: netip.MustParseAddr("10.220.0.77"),
		MAC: "02:00:00:00:00:77", Links: map[string]string{"friend": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if e := a.Endpoints[1]; e.Interface != "eth1" || e.HardwareAddr != "02:00:00:00:00:77" || addr(t, a, app) != "10.220.0.77" {
		t.Errorf("%+v", e)
	}
	wantTCP(t, b.NetnsPath, "10.220.0.77:80", "a saw "+addr(t, b, app))
	wantName(t, n, b, "alias", "10.220.0.77")
	wantName(t, n, a, "b", addr(t, b, app))
	wantName(t, n, a, "friend", addr(t, b, app))
	wantNoName(t, n, b, "friend")
	if _, err := n.Connect(t.Context(), "a", EndpointSpec{Network: app.ID}); !fault.Is(err, fault.Conflict) {
		t.Errorf("connect twice: %v", err)
	}
	if _, err := n.Connect(t.Context(), "c", EndpointSpec{Network: app.ID, IP: netip.MustParseAddr("10.220.0.77")}); !fault.Is(err, fault.Conflict) {
		t.Errorf("an address that is in use: %v", err)
	}
	if _, err := n.Connect(t.Context(), "c", EndpointSpec{Network: app.ID, Names: []string{"alias"}}); err != nil {
		t.Fatal(err)
	}
	c, _ := n.Attachment("c")
	both := []string{"10.220.0.77", addr(t, c, app)}
	slices.Sort(both)
	wantName(t, n, b, "alias", both...)

	// Off the node's own network, on it again, and off the other.
	if a, err = n.Disconnect(t.Context(), "a", DefaultNetwork); err != nil || a.IP.IsValid() {
		t.Fatal(a, err)
	}
	wantTCP(t, b.NetnsPath, "10.220.0.77:80", "a saw "+addr(t, b, app))
	unreachable(t, n, a, n.gateway.String()+":1")
	if a, err = n.Connect(t.Context(), "a", EndpointSpec{Network: DefaultNetwork}); err != nil || !a.IP.IsValid() {
		t.Fatal(a, err)
	}
	wantTCP(t, "", a.IP.Addr().String()+":80", "a saw "+n.gateway.String())
	if a, err = n.Disconnect(t.Context(), "a", app.ID); err != nil {
		t.Fatal(err)
	}
	wantTCP(t, "", a.IP.Addr().String()+":80", "a saw "+n.gateway.String())
	unreachable(t, n, b, "10.220.0.77:80")
	wantName(t, n, b, "alias", addr(t, c, app))
	if _, err := n.Disconnect(t.Context(), "a", app.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("disconnect twice: %v", err)
	}
	for range 3 { // addresses come back
		if _, err := n.Connect(t.Context(), "a", EndpointSpec{Network: app.ID, IP: netip.MustParseAddr("10.220.0.77")}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Disconnect(t.Context(), "a", app.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the node's address given back", func() bool { n.addrs.mu.Lock(); defer n.addrs.mu.Unlock(); return len(n.addrs.used) == 0 })
}

// TestAttachAgain: the end of an attachment, part of which comes later, is not
// that of the next one with the same id.
func TestAttachAgain(t *testing.T) {
	n := start(t, networkOptions(t))
	app := define(t, n, Definition{Name: "app"})
	spec := EndpointSpec{Network: app.ID, Names: []string{"a"}, IP: netip.MustParseAddr("10.220.0.9")}
	first, err := n.Attach(t.Context(), "a", AttachOptions{Networks: []EndpointSpec{{Network: app.ID, Names: []string{"a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	a, err := n.Attach(t.Context(), "a", AttachOptions{Networks: []EndpointSpec{spec}})
	if err != nil {
		t.Fatal(err)
	}
	s := n.segments[app.ID]
	waitFor(t, "the first one's address given back", func() bool {
		s.addrs.mu.Lock()
		defer s.addrs.mu.Unlock()
		return !s.addrs.used[first.Endpoints[0].Address.Addr()]
	})
	wantName(t, n, a, "a", "10.220.0.9")
	// A fixed address is free at once for the next of whom it is.
	if err := n.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if a, err = n.Attach(t.Context(), "a", AttachOptions{Networks: []EndpointSpec{spec}}); err != nil {
		t.Fatal(err)
	}
	wantName(t, n, a, "a", "10.220.0.9")
}

func TestNetworksOutliveTheProcess(t *testing.T) {
	o := networkOptions(t)
	n := start(t, o)
	app := define(t, n, Definition{Name: "app", Labels: map[string]string{"k": "v"}, Extra: []byte("x"), Reserved: map[string]netip.Addr{"router": netip.MustParseAddr("10.220.0.3")},
		Subnet: netip.MustParsePrefix("10.220.0.0/24"), Range: netip.MustParsePrefix("10.220.0.0/29")})
	a := attach(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80})
	b := on(t, n, "b", app)
	a, err := n.Connect(t.Context(), "a", EndpointSpec{Network: app.ID, Names: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	echoTCP(t, a.NetnsPath, ":80", "a")
	kill(t, n)
	wantTCP(t, b.NetnsPath, addr(t, a, app)+":80", "a saw "+addr(t, b, app))
	if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: app.Bridge}}); err != nil {
		t.Fatal(err)
	}

	n = restart(t, o)
	if diff := cmp.Diff([]Definition{app}, n.Definitions(), sameAddrs); diff != "" {
		t.Errorf("networks after a crash (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff([]Attachment{a, b}, n.Attachments(), sameAddrs); diff != "" {
		t.Errorf("attachments after a crash (-before +after):\n%s", diff)
	}
	wantTCP(t, b.NetnsPath, addr(t, a, app)+":80", "a saw "+addr(t, b, app))
	wantTCP(t, "", "127.0.0.1:8080", "a saw "+app.Gateway.String())
	wantName(t, n, b, "a", addr(t, a, app))
	if c := on(t, n, "c", app); addr(t, c, app) == addr(t, a, app) || addr(t, c, app) == addr(t, b, app) || addr(t, c, app) == "10.220.0.3" {
		t.Errorf("address %s given twice", addr(t, c, app))
	}

	// After a boot the bridge is made again, and nothing is on it.
	kill(t, n)
	for _, a := range n.attached {
		if err := removeNetns(a.NetnsPath); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{app.Bridge, o.Bridge} {
		if err := netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "networks", "torn.json"), []byte(`{"id":"to`), 0o600); err != nil {
		t.Fatal(err)
	}
	n = restart(t, o)
	if got := n.Attachments(); len(got) != 0 {
		t.Errorf("attachments without a namespace: %+v", got)
	}
	d := on(t, n, "d", app)
	wantName(t, n, d, "d", addr(t, d, app))

	// Teardown removes all but the definition, and the next start has it again.
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{o.Bridge, app.Bridge, linkName(d.Endpoints[0].Address.Addr())} {
		if link, err := netlink.LinkByName(name); err == nil {
			t.Errorf("interface %s is left", link.Attrs().Name)
		}
	}
	n = restart(t, o)
	if got := n.Definitions(); len(got) != 1 || got[0].ID != app.ID {
		t.Errorf("networks after a teardown: %+v", got)
	}
	if err := n.RemoveNetwork(t.Context(), app.ID); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(o.StateDir, "networks", "torn.json")); err != nil {
		t.Errorf("a file that cannot be read was not left aside: %v", err)
	}
}

func TestNamesFromElsewhere(t *testing.T) {
	n := start(t, networkOptions(t))
	app := define(t, n, Definition{Name: "app"})
	dns := on(t, n, "dns", app)
	asked := make(chan string, 1)
	var conn net.PacketConn
	err := inNetns(dns.NetnsPath, func() (err error) {
		conn, err = net.ListenPacket("udp4", ":53")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		defer close(asked)
		for {
			var buf [512]byte
			n, from, err := conn.ReadFrom(buf[:])
			if err != nil {
				return
			}
			buf[2], buf[3] = 0x81, 0x83 // an answer: no such name
			_, err = conn.WriteTo(buf[:n], from)
			select {
			case asked <- fmt.Sprint(from.(*net.UDPAddr).IP, " ", err):
			default:
			}
		}
	}()
	a, err := n.Attach(t.Context(), "a", AttachOptions{Servers: []string{addr(t, dns, app)}, Networks: []EndpointSpec{{Network: app.ID}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = resolve(t, n, a, "udp4", "example.org")
	if dnsErr := new(net.DNSError); !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
		t.Errorf("a name that does not exist: %v", err)
	}
	if got := <-asked; got != addr(t, a, app)+" <nil>" {
		t.Errorf("its own server was asked by %s", got)
	}
}

// TestNetworksHammer makes and removes networks and attachments at once.
func TestNetworksHammer(t *testing.T) {
	o := networkOptions(t)
	o.PoolSize = 2
	n := start(t, o)
	done := make(chan struct{})
	for i := range 8 {
		go func() {
			defer func() { done <- struct{}{} }()
			for round := range 3 {
				id := fmt.Sprintf("n%d-%d", i, round)
				d, err := n.CreateNetwork(t.Context(), Definition{Name: id})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := n.Attach(t.Context(), id, AttachOptions{Networks: []EndpointSpec{{Network: DefaultNetwork}, {Network: d.ID, Names: []string{id}}}, Ports: []PortMapping{{ContainerPort: 80}}}); err != nil {
					t.Error(err)
				}
				n.Attachments()
				if _, err := n.Disconnect(t.Context(), id, d.ID); err != nil {
					t.Error(err)
				}
				if _, err := n.Connect(t.Context(), id, EndpointSpec{Network: d.ID}); err != nil {
					t.Error(err)
				}
				if err := n.Detach(t.Context(), id); err != nil {
					t.Error(err)
				}
				if err := n.RemoveNetwork(t.Context(), d.ID); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for range 8 {
		<-done
	}
	if len(n.Definitions()) != 0 || len(n.Attachments()) != 0 {
		t.Errorf("left: %+v %+v", n.Definitions(), n.Attachments())
	}
}
