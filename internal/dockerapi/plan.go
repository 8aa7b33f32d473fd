package dockerapi

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

// cpuPeriod is the period that --cpus is expressed in, microseconds.
const cpuPeriod = 100_000

// minMemory is the smallest memory limit, as Docker has it.
const minMemory = 6 << 20

// plan is a create request in the engine's terms.
type plan struct {
	settings    settings
	pod         engine.PodSpec
	container   engine.ContainerSpec
	logged      bool
	bindSources []string // host directories that -v makes when missing
	warnings    []string
}

// makePlan translates a create request. imagePorts are the image's EXPOSE
// lines ("8080/tcp"). Settings that cannot be honoured are errors.
func makePlan(req container.CreateRequest, name string, imagePorts map[string]struct{}) (plan, error) {
	c, h := *req.Config, *req.HostConfig
	p := plan{settings: settings{Config: c, HostConfig: h}, logged: true}
	if err := refuse(req); err != nil {
		return p, err
	}
	p.pod = engine.PodSpec{
		Owner: engine.OwnerDocker, Name: name, Hostname: c.Hostname, PID: engine.ModeContainer,
		CgroupParent: h.CgroupParent, Sysctls: h.Sysctls, ShmSize: h.ShmSize, StopWhenIdle: !h.AutoRemove,
	}
	p.container = engine.ContainerSpec{
		Name: name, Image: c.Image, Labels: c.Labels, Annotations: h.Annotations, Env: c.Env, WorkingDir: c.WorkingDir,
		TTY: c.Tty, Stdin: c.OpenStdin, StdinOnce: c.StdinOnce, StopSignal: c.StopSignal,
	}
	if c.StopTimeout != nil {
		grace := time.Duration(*c.StopTimeout) * time.Second
		p.container.StopGrace = &grace
	}
	p.container.Command, p.container.Args = command(c)
	for _, step := range []func(container.HostConfig) error{
		p.namespaces, p.names, p.resources, p.security, p.devices, p.logs, p.mounts,
	} {
		if err := step(h); err != nil {
			return p, err
		}
	}
	return p, p.ports(c, h, imagePorts)
}

// command is Docker's rule in the engine's terms: an entrypoint of one empty
// string takes the image's away, and the command stands alone.
func command(c container.Config) (command, args []string) {
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		return c.Cmd, nil
	}
	return c.Entrypoint, c.Cmd
}

func (p *plan) namespaces(h container.HostConfig) error {
	switch mode := h.NetworkMode; {
	case p.settings.Config.NetworkDisabled, mode.IsNone():
		p.pod.Network = engine.ModeNone
	case mode == "", mode.IsDefault(), mode == apinetwork.NetworkBridge:
		p.settings.HostConfig.NetworkMode = apinetwork.NetworkBridge
	case mode == apinetwork.NetworkHost:
		p.pod.Network = engine.ModeHost
	case mode.IsContainer():
		return unsupported("--network %s: sharing another container's network", mode)
	default:
		return fault.New(fault.NotFound, "network %s not found", mode).
			Hint("user-defined networks are not served; use bridge, host or none")
	}
	switch mode := h.PidMode; {
	case mode.IsHost():
		p.container.PID = engine.ModeHost
	case mode != "":
		return unsupported("--pid %s", mode)
	}
	switch mode := h.IpcMode; {
	case mode.IsHost():
		p.pod.IPC = engine.ModeHost
	case mode != "" && !mode.IsPrivate() && !mode.IsShareable():
		return unsupported("--ipc %s", mode)
	}
	return nil
}

// names fills resolv.conf and hosts.
func (p *plan) names(h container.HostConfig) error {
	if len(h.DNS)+len(h.DNSSearch)+len(h.DNSOptions) > 0 {
		dns, err := network.HostDNS()
		if err != nil {
			return err
		}
		if len(h.DNS) > 0 {
			dns.Servers = nil
		}
		for _, a := range h.DNS {
			dns.Servers = append(dns.Servers, a.String())
		}
		if len(h.DNSSearch) > 0 {
			dns.Searches = h.DNSSearch
		}
		if len(h.DNSOptions) > 0 {
			dns.Options = h.DNSOptions
		}
		p.pod.DNS = &dns
	}
	for _, entry := range h.ExtraHosts {
		// The address comes last and may itself hold colons.
		name, addr, _ := strings.Cut(entry, ":")
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if err != nil {
			return fault.New(fault.Invalid, "--add-host %s: %q is not an IP address", entry, addr)
		}
		p.pod.Hosts = append(p.pod.Hosts, network.HostEntry{IP: ip, Names: []string{name}})
	}
	return nil
}

func (p *plan) resources(h container.HostConfig) error {
	if h.Memory != 0 && h.Memory < minMemory {
		return fault.New(fault.Invalid, "Minimum memory limit allowed is 6MB")
	}
	if h.MemorySwap > 0 && (h.Memory == 0 || h.MemorySwap < h.Memory) {
		return fault.New(fault.Invalid, "--memory-swap must be --memory or more, which must be given too")
	}
	if h.NanoCPUs < 0 || h.NanoCPUs > 0 && (h.CPUPeriod != 0 || h.CPUQuota != 0) {
		return fault.New(fault.Invalid, "--cpus must be positive and stand without --cpu-period and --cpu-quota")
	}
	r := engine.Resources{
		CPUShares: h.CPUShares, CPUQuota: h.CPUQuota, CPUPeriod: h.CPUPeriod,
		CpusetCPUs: h.CpusetCpus, CpusetMems: h.CpusetMems, Memory: h.Memory, MemorySwap: max(h.MemorySwap, 0),
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		r.MemorySwap = 2 * h.Memory
	}
	if h.NanoCPUs > 0 {
		r.CPUPeriod, r.CPUQuota = cpuPeriod, h.NanoCPUs*cpuPeriod/1e9
	}
	if h.PidsLimit != nil {
		r.Pids = max(*h.PidsLimit, 0)
	}
	if h.OomScoreAdj != 0 {
		r.OOMScoreAdj = &h.OomScoreAdj
	}
	p.container.Resources = r
	for _, u := range h.Ulimits {
		p.container.Rlimits = append(p.container.Rlimits,
			engine.Rlimit{Type: strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return nil
}

func (p *plan) security(h container.HostConfig) error {
	sec := engine.Security{
		Privileged: h.Privileged, User: p.settings.Config.User, ReadonlyRootfs: h.ReadonlyRootfs,
		AddCaps: h.CapAdd, DropCaps: h.CapDrop, MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths,
	}
	for _, g := range h.GroupAdd {
		id, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return unsupported("--group-add %s: a group by name", g)
		}
		sec.SupplementalGroups = append(sec.SupplementalGroups, uint32(id))
	}
	for _, opt := range h.SecurityOpt {
		key, value, _ := strings.Cut(strings.Replace(opt, ":", "=", 1), "=")
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true"):
			sec.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
		case key == "seccomp" && value == "unconfined":
			sec.Seccomp = engine.SeccompUnconfined
		case key == "seccomp" && value == "builtin":
		case key == "seccomp" && strings.HasPrefix(strings.TrimSpace(strings.TrimPrefix(opt, "seccomp=")), "{"):
			// The client has read the file; the option holds the profile.
			sec.Seccomp, sec.SeccompProfile = engine.SeccompLocalhost, []byte(strings.TrimPrefix(opt, "seccomp="))
		case opt == "label=disable", opt == "apparmor=unconfined": // neither is used
		default:
			return unsupported("--security-opt %s", opt)
		}
	}
	p.container.Security = sec
	return nil
}

func (p *plan) devices(h container.HostConfig) error {
	for _, d := range h.Devices {
		p.container.Devices = append(p.container.Devices, engine.Device{
			HostPath: d.PathOnHost, ContainerPath: cmp.Or(d.PathInContainer, d.PathOnHost), Permissions: cmp.Or(d.CgroupPermissions, "rwm")})
	}
	return nil
}

func (p *plan) logs(h container.HostConfig) error {
	switch h.LogConfig.Type {
	case "", "json-file", "local", "cri":
	case "none":
		p.logged = false
		return nil
	default:
		return unsupported("--log-driver %s", h.LogConfig.Type)
	}
	p.container.LogMaxBytes, p.container.LogMaxFiles = 100<<20, 2
	for key, value := range h.LogConfig.Config {
		var err error
		switch key {
		case "max-size":
			p.container.LogMaxBytes, err = parseSize(value)
		case "max-file":
			p.container.LogMaxFiles, err = strconv.Atoi(value)
		default:
			return unsupported("--log-opt %s", key)
		}
		if err != nil {
			return fault.New(fault.Invalid, "--log-opt %s=%s: %w", key, value, err)
		}
	}
	return nil
}

// ports translates published ports; the host's and no network have none to publish.
func (p *plan) ports(c container.Config, h container.HostConfig, imagePorts map[string]struct{}) error {
	bindings := maps.Clone(h.PortBindings)
	if bindings == nil {
		bindings = apinetwork.PortMap{}
	}
	if h.PublishAllPorts {
		exposed := maps.Clone(c.ExposedPorts)
		if exposed == nil {
			exposed = apinetwork.PortSet{}
		}
		for spec := range imagePorts {
			port, err := apinetwork.ParsePort(spec)
			if err != nil {
				return fault.New(fault.Invalid, "image's exposed port %s: %w", spec, err)
			}
			exposed[port] = struct{}{}
		}
		for port := range exposed {
			if _, ok := bindings[port]; !ok {
				bindings[port] = nil
			}
		}
	}
	if len(bindings) > 0 && p.pod.Network != engine.ModePod {
		p.warnings = append(p.warnings, "Published ports are discarded when using "+string(p.pod.Network)+" network mode")
		return nil
	}
	order := slices.SortedFunc(maps.Keys(bindings), func(a, b apinetwork.Port) int {
		return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
	})
	for _, port := range order {
		list := bindings[port]
		if len(list) == 0 {
			list = []apinetwork.PortBinding{{}}
		}
		for _, b := range list {
			m, err := portMapping(port, b)
			if err != nil {
				return err
			}
			p.pod.Ports = append(p.pod.Ports, m)
		}
	}
	return nil
}

func portMapping(port apinetwork.Port, b apinetwork.PortBinding) (network.PortMapping, error) {
	m := network.PortMapping{ContainerPort: port.Num(), Protocol: network.Protocol(port.Proto())}
	if b.HostPort != "" {
		n, err := strconv.ParseUint(b.HostPort, 10, 16)
		if strings.Contains(b.HostPort, "-") {
			return m, unsupported("-p %s:%s: a range of host ports for one port of the container", b.HostPort, port)
		}
		if err != nil {
			return m, fault.New(fault.Invalid, "-p %s:%s: %q is not a port", b.HostPort, port, b.HostPort)
		}
		m.HostPort = uint16(n)
	}
	switch {
	case !b.HostIP.IsValid() || b.HostIP == netip.IPv4Unspecified() || b.HostIP == netip.IPv6Unspecified():
	case b.HostIP.Is4():
		m.HostIP = b.HostIP
	default:
		return m, unsupported("-p [%s]:%s:%s: IPv6", b.HostIP, b.HostPort, port)
	}
	return m, nil
}

// parseSize reads a number of bytes with an optional k, m or g.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToLower(s), "bkmg")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, err
	}
	switch strings.TrimSuffix(strings.ToLower(s)[len(digits):], "b") {
	case "":
		return n, nil
	case "k":
		return n << 10, nil
	case "m":
		return n << 20, nil
	case "g":
		return n << 30, nil
	}
	return 0, fault.New(fault.Invalid, "%q is not a size", s)
}
