package network

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv marks the second run of the test program, inside its own machine.
const insideEnv = "FERRY_NETWORK_TEST_INSIDE"

// TestMain runs the tests that need root inside fresh network and mount
// namespaces, which play the machine: forwarding, firewall, bridges and mounts
// of the real one stay untouched, and nothing is left when a test is killed.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS, // makes every mount private as well
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "run tests in their own namespaces:", err)
		}
		os.Exit(1)
	}
}

// needRoot skips a test that only root can run, and gives the machine its loopback.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

func testOptions(t testing.TB) Options {
	dir := t.TempDir()
	return Options{
		Bridge:   "fytest0",
		Subnet:   netip.MustParsePrefix("10.213.0.0/16"),
		Services: netip.MustParsePrefix("10.214.0.0/16"),
		StateDir: filepath.Join(dir, "state"),
		NetnsDir: filepath.Join(dir, "netns"),
		Log:      slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

// testWriter sends log lines to the test's own output.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// start starts a network of these options; at the end of the test it is
// stopped and torn down, and the machine must be as it was.
func start(t testing.TB, o Options) *Network {
	t.Helper()
	needRoot(t)
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := contextAfter(t)
		if n.nl != nil {
			if err := n.Stop(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := n.Teardown(ctx); err != nil {
			t.Error(err)
		}
		checkClean(t, o)
	})
	return n
}

// checkClean reports whatever a torn-down network has left.
func checkClean(t testing.TB, o Options) {
	t.Helper()
	links, err := dump(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name != outsideLink && (l.Type() == "veth" || l.Type() == "bridge") {
			t.Errorf("interface %s (%s) is left", name, l.Type())
		}
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("nft list tables: %v, left:\n%s", err, out)
	}
	for _, dir := range []string{o.StateDir, o.NetnsDir} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", dir, err)
		}
	}
}

// The link between the machine and the world outside it.
const (
	outsideLink = "world0"
	machineAddr = "198.51.100.1"
	outsideAddr = "198.51.100.2"
)

// outside makes a namespace that plays another machine on the network, with no
// route to the containers, and returns its path.
func outside(t testing.TB) string {
	t.Helper()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "outside")
	var fd int
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := bindNetns(path); err != nil {
			return err
		}
		var err error
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fd)
		if err := removeNetns(path); err != nil {
			t.Error(err)
		}
	})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = outsideLink
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(fd)
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	setUp(t, outsideLink, machineAddr)
	if err := inNetns(path, func() error { setUp(t, "eth0", outsideAddr); return nil }); err != nil {
		t.Fatal(err)
	}
	return path
}

func setUp(t testing.TB, name, addr string) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Error(err)
		return
	}
	ip := ipNet(netip.PrefixFrom(netip.MustParseAddr(addr), 24))
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		t.Error(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Error(err)
	}
}
