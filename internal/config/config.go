// Package config is Ferry's configuration: one documented struct, defaulted,
// read strictly, validated once and read-only from then on.
//
// cmd and app read it and hand each part its own values; parts below do not
// import config. The file is YAML, /etc/ferry/config.yaml unless FERRY_CONFIG
// names another; every field may be missing. Two Ferrys run side by side when
// every path, port, bridge and range differs.
package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/ferryos/ferry/internal/fault"
	"sigs.k8s.io/yaml"
)

// DefaultPath is the configuration file read when FERRY_CONFIG is not set. It
// need not exist.
const DefaultPath = "/etc/ferry/config.yaml"

// Config is everything a Ferry on one machine can be told. Paths are absolute.
type Config struct {
	// DataDir holds what must survive a reboot: images, etcd, keys, volumes, models.
	DataDir string `json:"dataDir,omitempty"`
	// RunDir holds what ends with the boot: sockets, namespaces, mount points, the daemon's pid.
	RunDir string `json:"runDir,omitempty"`
	// LibexecDir holds ferryd, ferry-build, ferry-runner, ferry-init and the bundled images (images/*.tar).
	// Empty: the directory of the running program, or ../libexec/ferry from there
	// if ferryd is there alone.
	LibexecDir string `json:"libexecDir,omitempty"`
	// CDIDirs hold the files that say what devices given by name are (--gpus, --device VENDOR/CLASS=NAME); a
	// later one goes before an earlier.
	CDIDirs []string `json:"cdiDirs,omitempty"`
	// LogLevel is one of debug, info, warn and error; Kubernetes' own messages of level info come with debug.
	LogLevel string `json:"logLevel,omitempty"`
	// NodeName is the Kubernetes node's name. Empty: the host name in lower case.
	NodeName string `json:"nodeName,omitempty"`
	// CgroupParent is the cgroup under which everything Ferry runs is placed, in
	// every hierarchy. It is Ferry's own: `ferry down` removes it, and what runs in it.
	CgroupParent string `json:"cgroupParent,omitempty"`

	Engine   Engine   `json:"engine,omitzero"`
	Network  Network  `json:"network,omitzero"`
	API      API      `json:"api,omitzero"`
	Registry Registry `json:"registry,omitzero"`
	Images   Images   `json:"images,omitzero"`

	// Registries are those that are not simply reached by https at the name that images give them.
	Registries []RegistryHost `json:"registries,omitempty"`
}

// Engine is what containers of the Docker API get that ask for nothing else.
// Pods get what Kubernetes asks for them.
type Engine struct {
	// UserNamespaces gives each container a user namespace of its own: its root is
	// nobody on the machine. --userns=host leaves a container out. It needs Linux
	// 5.19, and dataDir on ext4, xfs or btrfs.
	UserNamespaces bool `json:"userNamespaces,omitempty"`
	// PidsLimit is how many processes and threads a container may have at once;
	// 0 is no limit. --pids-limit=-1 leaves a container out.
	PidsLimit *int64 `json:"pidsLimit,omitempty"`
}

// Network is the node's container network.
type Network struct {
	// Bridge is the name of the Linux bridge, at most 15 characters. It also
	// names the nftables table, so it must differ between two Ferrys.
	Bridge string `json:"bridge,omitempty"`
	// PodCIDR is the IPv4 range of containers and pods; its first address is the
	// gateway and the node's own address.
	PodCIDR string `json:"podCIDR,omitempty"`
	// ServiceCIDR is the IPv4 range of Kubernetes Services; the API server takes
	// its first address and cluster DNS its tenth.
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
	// UserCIDR is the IPv4 range from which networks that people make (docker
	// network create) get their subnets, each a 256th of it, past what the machine
	// has a route to.
	UserCIDR string `json:"userCIDR,omitempty"`
	// ClusterDomain is the DNS suffix of the cluster.
	ClusterDomain string `json:"clusterDomain,omitempty"`
	// KubeProxy is false where another Ferry (or a kube-proxy) already owns the
	// machine's kube-proxy nftables tables: the addresses of Services then do not
	// answer, only the pods' own do.
	KubeProxy *bool `json:"kubeProxy,omitempty"`
}

// API is where the Kubernetes API listens.
type API struct {
	// Port is where the Kubernetes API listens, on loopback and on the bridge's gateway.
	Port int `json:"port,omitempty"`
	// KubeletPort is the kubelet's HTTPS port on the bridge's gateway.
	KubeletPort int `json:"kubeletPort,omitempty"`
	// Context is the name of the kubeconfig context, cluster and user that `ferry up` writes.
	Context string `json:"context,omitempty"`
}

// Registry is the built-in OCI registry.
type Registry struct {
	// Port is where the registry listens, on loopback and on the bridge's gateway.
	Port int `json:"port,omitempty"`
}

// Images is the image store.
type Images struct {
	// DockerConfig is docker's config.json with credentials of registries, and the
	// helpers that know them, for what the daemon fetches without being given any.
	// It need not exist.
	DockerConfig string `json:"dockerConfig,omitempty"`
	// HostsDir is a directory in the form of containerd's certs.d, with a hosts.toml
	// or certificates for each registry. It is looked into for registries that
	// registries gives no mirrors.
	HostsDir string `json:"hostsDir,omitempty"`
	// HighPercent is how full the disk may become before images are removed that
	// nothing uses, those first that were not used for longest. 100 removes none.
	HighPercent int `json:"highPercent,omitempty"`
	// LowPercent is how full the disk is when enough were removed.
	LowPercent int `json:"lowPercent,omitempty"`
	// MinAge is how long an image is left alone after it was made, pulled or used,
	// however full the disk is, such as 2h.
	MinAge string `json:"minAge,omitempty"`
	// MaxAge is after how long images that nothing uses are removed also while
	// there is room, such as 720h. Empty: never.
	MaxAge string `json:"maxAge,omitempty"`
	// RemoveTagged is true where images that have a name may be removed too. Those
	// without one are removed in any case.
	RemoveTagged *bool `json:"removeTagged,omitempty"`
}

// RegistryHost is how one registry, or a mirror of one, is reached.
type RegistryHost struct {
	// Host is the registry as image names have it, docker.io for those without one,
	// or a mirror's host and port.
	Host string `json:"host"`
	// Mirrors are the base URLs (http://host:port or https://host) that are asked
	// before the registry itself, in this order; one that does not answer or does
	// not have the image is passed over. They are shown no credential of the registry.
	Mirrors []string `json:"mirrors,omitempty"`
	// PlainHTTP is true for a registry without TLS. One on loopback needs no saying.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// SkipVerify is true where any certificate will do.
	SkipVerify bool `json:"skipVerify,omitempty"`
	// CA is a PEM file with authorities that are trusted besides the machine's own.
	CA string `json:"ca,omitempty"`
	// ClientCert is a PEM file with the certificate to show, whose key is in ClientKey.
	ClientCert string `json:"clientCert,omitempty"`
	// ClientKey is the PEM file with the key of ClientCert.
	ClientKey string `json:"clientKey,omitempty"`
}

// Default returns the configuration of a machine that was told nothing.
func Default() Config {
	yes, no, pids := true, false, int64(16384)
	return Config{
		DataDir:      "/var/lib/ferry",
		RunDir:       "/run/ferry",
		CDIDirs:      []string{"/etc/cdi", "/var/run/cdi"},
		LogLevel:     "info",
		CgroupParent: "/ferry",
		Engine:       Engine{PidsLimit: &pids},
		Network: Network{
			Bridge:        "ferry0",
			PodCIDR:       "10.85.0.0/16",
			ServiceCIDR:   "10.86.0.0/16",
			UserCIDR:      "172.16.0.0/12",
			ClusterDomain: "cluster.local",
			KubeProxy:     &yes,
		},
		API:      API{Port: 6443, KubeletPort: 10250, Context: "ferry"},
		Registry: Registry{Port: 5000},
		Images:   Images{DockerConfig: "/root/.docker/config.json", HighPercent: 85, LowPercent: 80, MinAge: "2h", RemoveTagged: &no},
	}
}

// Load reads the file that FERRY_CONFIG names, or DefaultPath when it exists,
// over the defaults, refuses unknown fields and returns a validated Config.
func Load() (Config, error) {
	path, named := os.LookupEnv("FERRY_CONFIG")
	if !named {
		path = DefaultPath
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		data, err = nil, nil
	}
	if err != nil {
		return Config{}, fault.New(fault.Invalid, "read configuration: %w", err).
			Hint("set FERRY_CONFIG to a readable file, or unset it to use %s", DefaultPath)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fault.New(fault.Invalid, "configuration %s: %w", path, err).
			Hint("correct the file; docs/reference/config.md lists every field")
	}
	return c, nil
}

// Parse decodes YAML over the defaults, strictly, and validates the result.
func Parse(data []byte) (Config, error) {
	c := Default()
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return Config{}, err
	}
	if err := c.complete(); err != nil {
		return Config{}, err
	}
	return c, c.validate()
}

func (c *Config) complete() error {
	if c.LibexecDir == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own program: %w", err)
		}
		c.LibexecDir = libexecDir(filepath.Dir(exe))
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("host name: %w", err)
		}
		c.NodeName = nodeName(name)
	}
	if c.Network.KubeProxy == nil { // "kubeProxy:" with nothing after it
		c.Network.KubeProxy = Default().Network.KubeProxy
	}
	if c.Images.RemoveTagged == nil {
		c.Images.RemoveTagged = Default().Images.RemoveTagged
	}
	return nil
}

// libexecDir is where the daemon is for a program in bin: beside it as built,
// or where `make install` puts it.
func libexecDir(bin string) string {
	installed := filepath.Join(bin, "..", "libexec", "ferry")
	for _, dir := range []string{bin, installed} {
		if _, err := os.Stat(filepath.Join(dir, "ferryd")); err == nil {
			return dir
		}
	}
	return bin
}

// nodeName turns a host name into a DNS-1123 subdomain, which Kubernetes asks of node names.
func nodeName(host string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		default:
			return '-'
		}
	}, strings.ToLower(host))
	if clean = strings.Trim(clean, "-."); clean == "" {
		return "ferry"
	}
	return clean
}

func (c Config) validate() error {
	var errs []error
	for _, p := range []struct{ field, path string }{
		{"dataDir", c.DataDir}, {"runDir", c.RunDir}, {"libexecDir", c.LibexecDir}, {"cgroupParent", c.CgroupParent},
	} {
		if !filepath.IsAbs(p.path) || filepath.Clean(p.path) == "/" {
			errs = append(errs, fmt.Errorf("%s: %q must be an absolute path below /", p.field, p.path))
		}
	}
	for _, dir := range c.CDIDirs {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("cdiDirs: %q must be an absolute path", dir))
		}
	}
	// A unix socket's path has at most 107 bytes, and ours end in names of up to 40.
	if len(c.RunDir) > 60 {
		errs = append(errs, fmt.Errorf("runDir: %q is longer than 60 bytes, too long for the sockets in it", c.RunDir))
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		errs = append(errs, fmt.Errorf("logLevel: %q is none of debug, info, warn, error", c.LogLevel))
	}
	if c.Engine.PidsLimit == nil || *c.Engine.PidsLimit < 0 {
		errs = append(errs, errors.New("engine.pidsLimit: must be a number of processes, or 0 for no limit"))
	}
	if n := len(c.Network.Bridge); n == 0 || n > 15 || strings.ContainsAny(c.Network.Bridge, "/ \t\"") {
		errs = append(errs, fmt.Errorf("network.bridge: %q must be an interface name of 1 to 15 characters", c.Network.Bridge))
	}
	errs = append(errs, c.Network.validateRanges())
	seen := map[int]string{}
	for _, p := range []struct {
		field string
		port  int
	}{{"api.port", c.API.Port}, {"api.kubeletPort", c.API.KubeletPort}, {"registry.port", c.Registry.Port}} {
		if p.port < 1 || p.port > 65535 {
			errs = append(errs, fmt.Errorf("%s: %d is not a port", p.field, p.port))
		}
		if other := seen[p.port]; other != "" {
			errs = append(errs, fmt.Errorf("%s: port %d is also %s", p.field, p.port, other))
		}
		seen[p.port] = p.field
	}
	errs = append(errs, c.Images.validate(), validateRegistries(c.Registries))
	if c.API.Context == "" {
		errs = append(errs, errors.New("api.context: must not be empty"))
	}
	return errors.Join(errs...)
}

func (n Network) validateRanges() error {
	pods, err := netip.ParsePrefix(n.PodCIDR)
	if err != nil || !pods.Addr().Is4() || pods.Bits() > 24 {
		return fmt.Errorf("network.podCIDR: %q must be an IPv4 range of at least /24", n.PodCIDR)
	}
	services, err := netip.ParsePrefix(n.ServiceCIDR)
	if err != nil || !services.Addr().Is4() || services.Bits() > 24 || services.Bits() < 12 {
		return fmt.Errorf("network.serviceCIDR: %q must be an IPv4 range between /12 and /24", n.ServiceCIDR)
	}
	if pods.Overlaps(services) {
		return fmt.Errorf("network: podCIDR %s and serviceCIDR %s overlap", pods, services)
	}
	users, err := netip.ParsePrefix(n.UserCIDR)
	if err != nil || !users.Addr().Is4() || users != users.Masked() || users.Bits() < 8 || users.Bits() > 20 {
		return fmt.Errorf("network.userCIDR: %q must be an IPv4 range between /8 and /20", n.UserCIDR)
	}
	return nil
}

// Gateway is the first address of the pod range: the bridge's and the node's own.
func (c Config) Gateway() netip.Addr {
	return netip.MustParsePrefix(c.Network.PodCIDR).Masked().Addr().Next()
}

// DockerSocket is the unix socket of the Docker Engine API.
func (c Config) DockerSocket() string { return filepath.Join(c.RunDir, "docker.sock") }

// CRISocket is the unix socket of the Container Runtime Interface.
func (c Config) CRISocket() string { return filepath.Join(c.RunDir, "cri.sock") }

// AdminKubeconfig is the file with the cluster administrator's credential, mode 0600.
func (c Config) AdminKubeconfig() string { return filepath.Join(c.DataDir, "kube", "admin.kubeconfig") }

// LogFile is where `ferry up` has the daemon write its log.
func (c Config) LogFile() string { return filepath.Join(c.DataDir, "ferryd.log") }

// PIDFile holds the daemon's process id while it runs.
func (c Config) PIDFile() string { return filepath.Join(c.RunDir, "ferryd.pid") }
