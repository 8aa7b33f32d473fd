// Package network is the node's container network: a Linux bridge, address
// leases, network namespaces made ahead of time, masquerading and host ports.
//
// It speaks netlink and nf_tables itself and starts no program. Only
// internal/engine and the composition root import it, and it is the only
// importer of github.com/vishvananda/netlink and github.com/google/nftables.
// It is not a Service proxy (kube-proxy is) and not a DNS server: it renders
// the files that containers read, nothing more. IPv4 only.
//
// A container's namespace holds one interface, eth0, with a /32 address: every
// packet, to a neighbour too, goes through the node's routing, so connection
// tracking sees both directions of a Service's connection without br_netfilter.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options say which network to make. Bridge, Subnet and both directories must
// differ between two Networks on one machine.
type Options struct {
	// Bridge is the bridge's name; the nftables table is ferry-<Bridge>.
	Bridge string
	// Subnet is the containers' IPv4 range. Its first address is the gateway and the node's own.
	Subnet netip.Prefix
	// StateDir keeps the leases and the list of changes made to the machine. It survives the boot.
	StateDir string
	// NetnsDir holds the bind-mounted namespaces. It ends with the boot.
	NetnsDir string
	// PoolSize is how many namespaces are kept ready; 0 makes each on demand,
	// as one that is started only to end what runs should.
	PoolSize int
	// MTU of the bridge and of eth0; 0 takes the default route's interface's, 1500 without one.
	MTU int
	// Services is the Service range: traffic to it that no proxy has rewritten
	// is refused rather than sent out. May be the zero Prefix.
	Services netip.Prefix
	// Log must not be nil.
	Log *slog.Logger
}

// Protocol is a transport protocol, in lower case as Docker writes it.
type Protocol string

// The protocols a host port can have. The zero value is read as TCP.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PortMapping sends a port of the host to a port of a container.
type PortMapping struct {
	// HostIP is the local IPv4 address to map; the zero Addr is every one, loopback included.
	HostIP netip.Addr `json:"hostIP,omitzero"`
	// HostPort is the port on the host; 0 asks for a free one.
	HostPort uint16 `json:"hostPort"`
	// HostPortEnd, if not 0, asks for the first free port from HostPort to it.
	// An attachment's mappings have the port that was found, and no end.
	HostPortEnd   uint16   `json:"hostPortEnd,omitempty"`
	ContainerPort uint16   `json:"containerPort"`
	Protocol      Protocol `json:"protocol,omitempty"`
}

// AttachOptions say what an attachment has besides an address.
type AttachOptions struct {
	Ports []PortMapping
	// Sysctls are written inside the namespace; every name starts with "net.".
	Sysctls map[string]string
	// Netns is a namespace to connect instead of making one: one that a user
	// namespace owns can be made by a process in that alone.
	Netns string
}

// Attachment is one container's (or pod's) place in the network. It lasts from
// Attach to Detach, across restarts of the process.
type Attachment struct {
	ID        string `json:"id"`
	NetnsPath string `json:"netnsPath"`
	// IP is the address with the length of the node's range.
	IP      netip.Prefix  `json:"ip"`
	Gateway netip.Addr    `json:"gateway"`
	MAC     string        `json:"mac"`
	Ports   []PortMapping `json:"ports,omitempty"`
}

// Network is the container network of one node. Its methods may be called from
// any goroutine; Attach and Detach only between Start and Stop.
type Network struct {
	o         Options
	gateway   netip.Addr
	addrs     *addresses
	leases    leases
	changes   *journal
	firewall  *firewall
	nsSysctls map[string]string // of every new namespace

	// Set by open, read-only until close.
	lock   *os.File
	nl     *netlink.Handle
	mtu    int
	bridge int // interface index

	pool   chan slot
	doomed chan doomed
	stop   context.CancelFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex // nothing is called while it is held
	attached map[string]*attached
}

// attached is an attachment with what the process holds for it. While it is
// being made or ended its id maps to an empty one.
type attached struct {
	Attachment
	slot  slot
	ports reservation
}

// New validates the options and returns a Network that does nothing yet.
func New(o Options) (*Network, error) {
	o.Subnet = o.Subnet.Masked()
	switch {
	case o.Bridge == "" || len(o.Bridge) > unix.IFNAMSIZ-1:
		return nil, fault.New(fault.Invalid, "network: bridge name %q must have 1 to 15 characters", o.Bridge)
	case !o.Subnet.IsValid() || !o.Subnet.Addr().Is4() || o.Subnet.Bits() > 29:
		return nil, fault.New(fault.Invalid, "network: %s is no IPv4 range of at least 8 addresses", o.Subnet)
	case !filepath.IsAbs(o.StateDir) || !filepath.IsAbs(o.NetnsDir):
		return nil, fault.New(fault.Invalid, "network: directories %q and %q must be absolute paths", o.StateDir, o.NetnsDir)
	case o.Log == nil:
		return nil, fault.New(fault.Invalid, "network: no logger")
	}
	n := &Network{
		o:         o,
		gateway:   gateway(o.Subnet),
		addrs:     newAddresses(o.Subnet),
		leases:    leases{dir: filepath.Join(o.StateDir, "leases"), log: o.Log},
		changes:   &journal{path: filepath.Join(o.StateDir, "changes.json")},
		firewall:  newFirewall(o),
		nsSysctls: namespaceSysctls(),
		attached:  map[string]*attached{},
	}
	return n, nil
}

// namespaceSysctls are the settings of every container's namespace.
func namespaceSysctls() map[string]string {
	s := map[string]string{
		// As Docker sets them: no capability needed for ports below 1024 and for ping.
		"net.ipv4.ip_unprivileged_port_start": "0",
		"net.ipv4.ping_group_range":           "0 2147483647",
		// A redirect would have containers talk past the node's connection tracking.
		"net.ipv4.conf.all.accept_redirects":     "0",
		"net.ipv4.conf.default.accept_redirects": "0",
	}
	// eth0 only: programs may still listen on ::1.
	if _, err := os.Stat(sysctlPath("net.ipv6.conf.default.disable_ipv6")); err == nil {
		s["net.ipv6.conf.default.disable_ipv6"] = "1"
	}
	return s
}

func (n *Network) cursorPath() string { return filepath.Join(n.o.StateDir, "cursor") }

// Name implements lifecycle.Component.
func (n *Network) Name() string { return "network" }

// Gateway is the containers' gateway, at which they reach this machine.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// Start makes what is missing on the machine, takes over what an earlier run
// left (containers keep their network meanwhile) and begins to fill the pool.
// A Conflict means that the range or the bridge's name is used by something
// else, Unsupported that the kernel lacks a feature.
func (n *Network) Start(ctx context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	if err := n.setUp(ctx); err != nil {
		n.close()
		return err
	}
	n.pool = make(chan slot, n.o.PoolSize)
	n.doomed = make(chan doomed, 1024)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	n.tasks.Go(func() { n.reap(work) })
	if n.o.PoolSize > 0 {
		n.tasks.Go(func() { n.fill(work) })
	}
	return nil
}

// open takes the state directory for this process and opens netlink.
func (n *Network) open() error {
	for _, dir := range []string{n.o.StateDir, n.leases.dir, n.o.NetnsDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make network directory: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(n.o.StateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open network lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fault.New(fault.Conflict, "another process runs the network of %s: %w", n.o.StateDir, err).
			Hint("stop it with: ferry down")
		return errors.Join(err, lock.Close())
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return errors.Join(kernelError(err, "open netlink"), lock.Close())
	}
	n.lock, n.nl = lock, nl
	if err := n.changes.load(); err != nil {
		n.close()
		return err
	}
	return nil
}

func (n *Network) close() {
	n.nl.Close()
	if err := n.lock.Close(); err != nil {
		n.o.Log.Warn("network lock not closed", "err", err)
	}
	n.nl, n.lock = nil, nil
}

// setUp brings the machine to where containers can be attached.
func (n *Network) setUp(ctx context.Context) (err error) {
	if n.mtu = n.o.MTU; n.mtu == 0 {
		if n.mtu, err = outwardMTU(n.nl); err != nil {
			return err
		}
	}
	living, err := n.livingLeases()
	if err != nil {
		return err
	}
	if err := n.changes.record(Change{Kind: ChangeInterface, Name: n.o.Bridge}); err != nil {
		return err
	}
	if n.bridge, err = n.ensureBridge(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.takeOver(living); err != nil {
		return err
	}
	if err := n.setMachineSysctls(); err != nil {
		return err
	}
	if err := n.changes.record(Change{Kind: ChangeNftables, Name: "table ip " + n.firewall.table.Name}); err != nil {
		return err
	}
	if err := n.firewall.install(living); err != nil {
		return err
	}
	return n.acceptForwarding()
}

// setMachineSysctls sets what forwarding for containers needs.
func (n *Network) setMachineSysctls() error {
	// A container's packet to a neighbour comes in and goes out by the bridge.
	// The kernel would tell the sender to go straight there, and each such
	// redirect uses up the sender's share of ICMP, so that a "port unreachable"
	// never arrives. The setting is off only where "all" and the interface's
	// own are; other interfaces keep their own.
	for _, s := range []struct{ name, value string }{
		{"net.ipv4.ip_forward", "1"},
		{"net.ipv4.conf.all.send_redirects", "0"},
	} {
		if err := n.setSysctl(s.name, s.value); err != nil {
			return err
		}
	}
	// Not in the list of changes: these go with the bridge. route_localnet lets
	// 127.0.0.1 reach host ports; the table's raw chain keeps containers away
	// from what listens on loopback.
	conf := "net/ipv4/conf/" + n.o.Bridge + "/"
	return writeSysctls(map[string]string{conf + "send_redirects": "0", conf + "route_localnet": "1"})
}

// acceptForwarding makes an exception in Docker's chain where it would drop
// the containers' traffic.
func (n *Network) acceptForwarding() error {
	there, err := n.firewall.acceptInForeign()
	if err != nil || !there {
		return err
	}
	return n.changes.record(Change{Kind: ChangeNftables, Name: "chain ip " + foreignTable + " " + foreignChain})
}

// livingLeases loads the leases whose namespace still exists and drops the
// others: the machine has been rebooted since.
func (n *Network) livingLeases() ([]Attachment, error) {
	all, err := n.leases.load()
	if err != nil {
		return nil, err
	}
	var living []Attachment
	for _, a := range all {
		if !isNetns(a.NetnsPath) {
			n.o.Log.Info("lease of a vanished namespace dropped", "id", a.ID, "ip", a.IP.Addr())
			if err := n.leases.remove(a.ID); err != nil {
				return nil, err
			}
			continue
		}
		if a.IP.Masked() != n.o.Subnet {
			return nil, fault.New(fault.Conflict, "container %s still has the address %s, outside %s", a.ID, a.IP.Addr(), n.o.Subnet).
				Hint("network.podCIDR was changed while containers run: run ferry down first, or change it back")
		}
		living = append(living, a)
	}
	return living, nil
}

// takeOver registers the living attachments and removes everything else of ours.
func (n *Network) takeOver(living []Attachment) error {
	n.addrs.startAt(loadCursor(n.cursorPath()))
	keep := map[netip.Addr]bool{}
	for _, a := range living {
		keep[a.IP.Addr()] = true
	}
	if err := n.removeStrays(keep); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.attached)
	for _, a := range living {
		n.addrs.claim(a.IP.Addr())
		at := &attached{Attachment: a, slot: n.slotOf(a.IP.Addr())}
		n.attached[a.ID] = at
		if there, err := n.rejoin(a.IP.Addr()); err != nil {
			return err
		} else if !there {
			n.o.Log.Warn("container has lost its interface", "id", a.ID, "ip", a.IP.Addr())
		}
		// Someone may have taken a port while no process of ours held it; the
		// redirection is still there and wins.
		ports, err := reserve(slices.Clone(a.Ports))
		if err != nil {
			n.o.Log.Warn("host ports not reserved", "id", a.ID, "err", err)
		}
		at.ports = ports
	}
	return nil
}

// Stop ends the background work and removes the unused pool. Attached
// containers keep their network.
func (n *Network) Stop(ctx context.Context) error {
	n.stop()
	close(n.doomed)
	done := make(chan struct{})
	go func() { n.tasks.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("stop network: %w", ctx.Err())
	}
	close(n.pool)
	var errs []error
	for s := range n.pool {
		errs = append(errs, n.destroySlot(s))
	}
	n.mu.Lock()
	for _, a := range n.attached {
		a.ports.close()
	}
	clear(n.attached)
	n.mu.Unlock()
	n.close()
	return errors.Join(errs...)
}

// Teardown removes everything the network made and puts back what it changed,
// from the state directory alone, whether or not this Network was ever
// started; it must not be running. Containers still attached lose their
// network. Idempotent; it goes on past what fails and returns all errors.
func (n *Network) Teardown(ctx context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	defer n.close()
	if err := ctx.Err(); err != nil {
		return err
	}
	errs := []error{n.removeBridge()}
	if all, err := n.leases.load(); err != nil {
		errs = append(errs, err)
	} else {
		for _, a := range all {
			errs = append(errs, n.leases.remove(a.ID))
		}
	}
	for _, c := range n.changes.all() {
		if err := n.undo(c); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, n.changes.forget(c.Kind, c.Name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.removeState()
}

// removeBridge removes the bridge, and with it every namespace and interface of ours.
func (n *Network) removeBridge() error {
	link, err := n.ownBridge()
	if fault.Is(err, fault.Conflict) {
		link, err = nil, nil // someone else's: not ours to remove
	}
	if err != nil {
		return err
	}
	n.bridge = -1 // no interface has this master
	if link != nil {
		n.bridge = link.Attrs().Index
	}
	if err := n.removeStrays(nil); err != nil || link == nil {
		return err
	}
	return n.deleteLink(n.o.Bridge)
}

func (n *Network) undo(c Change) error {
	switch c.Kind {
	case ChangeNftables:
		if strings.HasPrefix(c.Name, "chain ") {
			return n.firewall.removeFromForeign()
		}
		return n.firewall.remove()
	case ChangeSysctl:
		if user, err := n.firewall.forwardingUser(); err != nil {
			return err
		} else if user != "" {
			n.o.Log.Info("sysctl left as it is", "sysctl", c.Name, "value", c.New, "needed_by", user)
			return nil
		}
		return restoreSysctl(c)
	default: // interfaces have gone with removeBridge
		return nil
	}
}

// removeState removes our files, and the directories if nothing else is in them.
func (n *Network) removeState() error {
	var errs []error
	for _, path := range []string{
		n.changes.path, n.cursorPath(), filepath.Join(n.o.StateDir, "lock"), n.leases.dir, n.o.NetnsDir, n.o.StateDir,
	} {
		err := os.Remove(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Changes lists what the network has made and changed on the machine, also in
// an earlier process.
func (n *Network) Changes() ([]Change, error) {
	if err := n.changes.load(); err != nil {
		return nil, err
	}
	return n.changes.all(), nil
}
