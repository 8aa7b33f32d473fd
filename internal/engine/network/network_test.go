package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

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

// echoTCP answers each connection to addr in the namespace with name.
func echoTCP(t testing.TB, netns, addr, name string) {
	t.Helper()
	var l net.Listener
	err := inNetns(netns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
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
