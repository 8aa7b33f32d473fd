// Package network is the node's container network: a Linux bridge, address
// leases, network namespaces made ahead of time, masquerading and host ports;
// and beside it the networks that people make, each a bridge of its own.
//
// It speaks netlink and nf_tables itself and starts no program. Only
// internal/engine and the composition root import it, and it is the only
// importer of github.com/vishvananda/netlink and github.com/google/nftables.
// It is not a Service proxy (kube-proxy is); what answers names on people's
// networks is in names. IPv4 only.
//
// On the node's own network a container has one interface, eth0, with a /32
// address: every packet, to a neighbour too, goes through the node's routing, so
// connection tracking sees both directions of a Service's connection without
// br_netfilter. On other networks neighbours talk directly, as Docker's do.
package network

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/ferryos/ferry/internal/engine/network/names"
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
	// Networks is the range from which networks that people make get their
	// subnets, each a 256th of it; the zero Prefix leaves that to them.
	Networks netip.Prefix
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
	// Networks are those to be on; nil is the node's own alone, an empty list none.
	Networks []EndpointSpec
	// Servers are the addresses of those who are asked for names that no container
	// has, from inside; none are this machine's own.
	Servers []string
}

// Attachment is one container's (or pod's) place in the network. It lasts from
// Attach to Detach, across restarts of the process.
type Attachment struct {
	ID        string `json:"id"`
	NetnsPath string `json:"netnsPath"`
	// IP is the address on the node's own network with the length of its range;
	// the zero Prefix, as the next two are zero, while it is on others alone.
	IP      netip.Prefix  `json:"ip"`
	Gateway netip.Addr    `json:"gateway"`
	MAC     string        `json:"mac"`
	Ports   []PortMapping `json:"ports,omitempty"`
	// Endpoints are its places on all networks.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	Servers   []string   `json:"servers,omitempty"` // as AttachOptions.Servers
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

	definitions definitions

	// Set by open, read-only until close.
	lock   *os.File
	nl     *netlink.Handle
	mtu    int
	bridge int // interface index

	pool   chan slot
	doomed chan doomed
	stop   context.CancelFunc
	tasks  sync.WaitGroup
	// serving is the context of what answers names, which ends with stop.
	serving func() context.Context

	defining sync.Mutex // one network is made or removed at a time; taken before mu

	// Nothing that waits is called while mu is held, but at the start, when
	// nobody else is there.
	mu       sync.Mutex
	attached map[string]*attached
	segments map[string]*segment // by ID; the node's own network too
}

// attached is an attachment with what the process holds for it. While it is
// being made or ended its id maps to an empty one.
type attached struct {
	Attachment
	slot     slot
	ports    reservation
	resolver *names.Server // nil until it is on a network that has names
	joined   []func()      // what keeps its networks until it is known itself
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
		segments:  map[string]*segment{},

		definitions: definitions{dir: filepath.Join(o.StateDir, "networks"), log: o.Log},
	}
	n.segments[DefaultNetwork] = n.ownSegment(0)
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

// Own is the node's own network in the form of those that people make.
func (n *Network) Own() Definition { return n.ownSegment(0).Definition }

// ownSegment is the node's own network, whose bridge has the index.
func (n *Network) ownSegment(index int) *segment {
	return &segment{Definition: Definition{ID: DefaultNetwork, Name: DefaultNetwork, Subnet: n.o.Subnet, Gateway: n.gateway, Bridge: n.o.Bridge},
		addrs: n.addrs, routed: true, index: index}
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
	n.stop, n.serving = stop, func() context.Context { return work }
	n.startResolvers()
	n.tasks.Go(func() { n.reap(work) })
	if n.o.PoolSize > 0 {
		n.tasks.Go(func() { n.fill(work) })
	}
	return nil
}

// Changes lists what the network has made and changed on the machine, also in
// an earlier process.
func (n *Network) Changes() ([]Change, error) {
	if err := n.changes.load(); err != nil {
		return nil, err
	}
	return n.changes.all(), nil
}
