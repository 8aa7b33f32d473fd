package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// contextAfter is a context for clean-up, when the test's own has ended.
func contextAfter(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func attach(t testing.TB, n *Network, id string, ports ...PortMapping) Attachment {
	t.Helper()
	a, err := n.Attach(t.Context(), id, AttachOptions{Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// echoTCP answers each connection to addr in the namespace ("" for the machine itself) with name.
func echoTCP(t testing.TB, netns, addr, name string) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}
	err := error(nil)
	if netns == "" {
		err = listen()
	} else {
		err = inNetns(netns, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s saw %s", name, host)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// askTCP returns what addr answers to a client in the namespace ("" for the machine itself).
func askTCP(t testing.TB, netns, addr string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var c net.Conn
	var err error
	if netns == "" {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
	} else {
		c, err = new(Network).DialPod(ctx, netns, "tcp", addr)
	}
	if err != nil {
		return "", err
	}
	defer c.Close()
	data, err := io.ReadAll(c)
	return string(data), err
}

func wantTCP(t testing.TB, netns, addr, want string) {
	t.Helper()
	got, err := askTCP(t, netns, addr)
	if err != nil || got != want {
		t.Errorf("ask %s from %q: %q, %v; want %q", addr, netns, got, err, want)
	}
}

func TestTwoContainersTalk(t *testing.T) {
	n := start(t, testOptions(t))
	a, b := attach(t, n, "a"), attach(t, n, "b")
	echoTCP(t, a.NetnsPath, ":80", "a")
	echoTCP(t, b.NetnsPath, ":80", "b")
	wantTCP(t, a.NetnsPath, b.IP.Addr().String()+":80", "b saw "+a.IP.Addr().String())
	wantTCP(t, b.NetnsPath, a.IP.Addr().String()+":80", "a saw "+b.IP.Addr().String())
	wantTCP(t, a.NetnsPath, a.IP.Addr().String()+":80", "a saw "+a.IP.Addr().String())
	wantTCP(t, "", a.IP.Addr().String()+":80", "a saw "+a.Gateway.String())

	l, err := net.Listen("tcp", a.Gateway.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := n.DialPod(t.Context(), a.NetnsPath, "tcp", l.Addr().String()); err != nil {
		t.Errorf("reach the gateway: %v", err)
	} else {
		c.Close()
	}
	if err := ping(a.NetnsPath, b.IP.Addr()); err != nil {
		t.Errorf("ping b from a: %v", err)
	}
}

// ping sends an echo request as an unprivileged program would, and waits for the answer.
func ping(netns string, to netip.Addr) error {
	return inNetns(netns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			return err
		}
		echoRequest := []byte{8, 0, 0, 0, 0, 0, 0, 1} // the kernel fills in checksum and id
		if err := unix.Sendto(fd, echoRequest, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			return err
		}
		_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
		return err
	})
}

func TestOutsideSeesTheMachine(t *testing.T) {
	world := outside(t)
	o := testOptions(t)
	n := start(t, o)
	a := attach(t, n, "a")
	echoTCP(t, world, outsideAddr+":80", "world")
	wantTCP(t, a.NetnsPath, outsideAddr+":80", "world saw "+machineAddr)

	// Nobody answers for Services here: that must be said at once, not time out.
	for _, from := range []string{"", a.NetnsPath} {
		_, err := askTCP(t, from, o.Services.Addr().Next().String()+":443")
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial a Service without a proxy from %q: %v, want connection refused", from, err)
		}
	}
}

// TestContainersAreClosedToOutside has another machine route the containers'
// and the Services' ranges through this one.
func TestContainersAreClosedToOutside(t *testing.T) {
	world := outside(t)
	o := testOptions(t)
	n := start(t, o)
	a := attach(t, n, "a", PortMapping{HostPort: 8080, ContainerPort: 80},
		PortMapping{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8081, ContainerPort: 80})
	b := attach(t, n, "b")
	echoTCP(t, a.NetnsPath, ":80", "a")
	echoTCP(t, "", ":81", "node")
	echoTCP(t, world, outsideAddr+":80", "world")
	service := o.Services.Addr().Next().Next().String()
	proxy(t, service, a.IP.Addr().String())
	err := inNetns(world, func() error {
		var errs []error
		for _, dst := range []netip.Prefix{o.Subnet, o.Services} {
			errs = append(errs, netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: netip.MustParseAddr(machineAddr).AsSlice()}))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	ip, gw := a.IP.Addr().String(), a.Gateway.String()
	for _, addr := range []string{ip + ":80", gw + ":81", gw + ":8080", service + ":80"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if c, err := n.DialPod(ctx, world, "tcp", addr); err == nil {
			c.Close()
			t.Errorf("%s answers another machine", addr)
		}
		cancel()
	}

	wantTCP(t, world, machineAddr+":8080", "a saw "+outsideAddr)
	wantTCP(t, world, machineAddr+":81", "node saw "+outsideAddr)
	wantTCP(t, a.NetnsPath, outsideAddr+":80", "world saw "+machineAddr)
	wantTCP(t, "", outsideAddr+":80", "world saw "+machineAddr)
	for _, addr := range []string{ip + ":80", gw + ":8080", service + ":80", "127.0.0.1:8080", "127.0.0.1:8081"} {
		wantTCP(t, "", addr, "a saw "+gw)
	}
	for _, addr := range []string{ip + ":80", gw + ":8080", service + ":80"} {
		wantTCP(t, b.NetnsPath, addr, "a saw "+b.IP.Addr().String())
	}
	for _, addr := range []string{gw + ":8080", service + ":80"} {
		wantTCP(t, a.NetnsPath, addr, "a saw "+gw) // itself
	}
	wantTCP(t, b.NetnsPath, gw+":81", "node saw "+b.IP.Addr().String())
}

// proxy has a Service lead to a container, as kube-proxy would.
func proxy(t testing.TB, service, container string) {
	t.Helper()
	nft := func(script string) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("nft: %v\n%s", err, out)
		}
	}
	nft(fmt.Sprintf(`table ip proxy {
	chain prerouting { type nat hook prerouting priority -100; ip daddr %[1]s dnat to %[2]s; }
	chain output { type nat hook output priority -100; ip daddr %[1]s dnat to %[2]s; }
	chain postrouting { type nat hook postrouting priority 100; ip saddr %[2]s ip daddr %[2]s masquerade; }
}`, service, container))
	t.Cleanup(func() { nft("delete table ip proxy") })
}

func TestHostPortTCP(t *testing.T) {
	world := outside(t)
	n := start(t, testOptions(t))
	a := attach(t, n, "a",
		PortMapping{HostPort: 8080, ContainerPort: 80},
		PortMapping{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8081, ContainerPort: 80},
		PortMapping{HostIP: netip.MustParseAddr("0.0.0.0"), ContainerPort: 80, Protocol: TCP})
	b := attach(t, n, "b")
	echoTCP(t, a.NetnsPath, ":80", "a")
	gw, ip := a.Gateway.String(), a.IP.Addr().String()

	wantTCP(t, "", "127.0.0.1:8080", "a saw "+gw)
	wantTCP(t, "", machineAddr+":8080", "a saw "+machineAddr)
	wantTCP(t, "", gw+":8080", "a saw "+gw)
	wantTCP(t, world, machineAddr+":8080", "a saw "+outsideAddr)
	wantTCP(t, b.NetnsPath, gw+":8080", "a saw "+b.IP.Addr().String())
	wantTCP(t, a.NetnsPath, gw+":8080", "a saw "+gw) // itself
	wantTCP(t, "", "127.0.0.1:8081", "a saw "+gw)
	if got, err := askTCP(t, world, machineAddr+":8081"); err == nil {
		t.Errorf("a port of 127.0.0.1 answered from outside: %q", got)
	}
	free := a.Ports[2].HostPort
	if free == 0 || a.Ports[2].HostIP.IsValid() {
		t.Errorf("chosen port: %+v", a.Ports[2])
	}
	wantTCP(t, world, fmt.Sprintf("%s:%d", machineAddr, free), "a saw "+outsideAddr)
	wantTCP(t, "", ip+":80", "a saw "+gw)

	if err := n.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got, err := askTCP(t, world, machineAddr+":8080"); err == nil {
		t.Errorf("the port answered after Detach: %q", got)
	}
	attach(t, n, "c", PortMapping{HostPort: 8080, ContainerPort: 80})
}

func TestHostPortUDP(t *testing.T) {
	world := outside(t)
	n := start(t, testOptions(t))
	mapping := PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: UDP}
	old := attach(t, n, "old", mapping)
	echoUDP(t, old.NetnsPath, ":53", "old")

	// One socket for the whole test: its flow must follow the port to the next container.
	c := dialUDP(t, world, machineAddr+":5353")
	wantUDP(t, c, "old saw "+outsideAddr)
	local := dialUDP(t, "", "127.0.0.1:5353")
	wantUDP(t, local, "old saw "+old.Gateway.String())

	if err := n.Detach(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	next := attach(t, n, "next", mapping)
	echoUDP(t, next.NetnsPath, ":53", "next")
	wantUDP(t, c, "next saw "+outsideAddr)
}

func echoUDP(t testing.TB, netns, addr, name string) {
	t.Helper()
	var c net.PacketConn
	err := inNetns(netns, func() (err error) {
		c, err = net.ListenPacket("udp4", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, from, err := c.ReadFrom(make([]byte, 64))
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			fmt.Fprintf(packetWriter{c, from}, "%s saw %s", name, host)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

type packetWriter struct {
	c  net.PacketConn
	to net.Addr
}

func (w packetWriter) Write(p []byte) (int, error) { return w.c.WriteTo(p, w.to) }

func dialUDP(t testing.TB, netns, addr string) net.Conn {
	t.Helper()
	var c net.Conn
	dial := func() (err error) {
		c, err = net.Dial("udp", addr)
		return err
	}
	err := error(nil)
	if netns == "" {
		err = dial()
	} else {
		err = inNetns(netns, dial)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantUDP(t testing.TB, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, 64)
	var got string
	// A datagram may be lost while the port has no container, so ask a few times.
	for range 5 {
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "?")
		k, err := c.Read(buf)
		if got = string(buf[:k]); err == nil && got == want {
			return
		}
	}
	t.Errorf("ask %s: %q, want %q", c.RemoteAddr(), got, want)
}

func TestLoopbackIsClosedToContainers(t *testing.T) {
	n := start(t, testOptions(t))
	a := attach(t, n, "a")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// What a container with NET_ADMIN could do: make 127.0.0.1 a neighbour behind the gateway.
	err = inNetns(a.NetnsPath, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			writeSysctls(map[string]string{"net.ipv4.conf.eth0.route_localnet": "1"}),
			netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("127.0.0.0/8")), Gw: a.Gateway.AsSlice()}))
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := n.DialPod(ctx, a.NetnsPath, "tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a container reached a listener on the machine's loopback")
	}
}
