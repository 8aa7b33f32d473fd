package dockerapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/ferryos/ferry/internal/dockerapi/supervise"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

// hostGateway stands for this machine's address in --add-host.
const hostGateway = "host-gateway"

// plan is a create request in the engine's terms.
type plan struct {
	settings    settings
	pod         engine.PodSpec
	container   engine.ContainerSpec
	logged      bool
	volumes     map[string]volumeRequest // by destination
	bindSources []string                 // host directories that -v makes when missing
	on          []networkRequest         // the networks to be on
	links       []string
	gateway     netip.Addr
	warnings    []string
}

// makePlan translates a create request. gateway is the address for the name
// host-gateway. Settings that cannot be honoured are errors.
func makePlan(req container.CreateRequest, name string, image dockerspec.DockerOCIImageConfig, gateway netip.Addr) (plan, error) {
	c, h := *req.Config, *req.HostConfig
	p := plan{logged: true, gateway: gateway}
	if err := refuse(req); err != nil {
		return p, err
	}
	if err := cmp.Or(checkProcess(c), checkLife(c, h)); err != nil {
		return p, err
	}
	merged, err := withImage(c, image)
	if err != nil {
		return p, err
	}
	h.LogConfig.Type = cmp.Or(h.LogConfig.Type, "json-file") // clients look at it before they ask for logs
	p.settings = settings{Config: merged, HostConfig: h}
	p.pod = engine.PodSpec{
		Owner: engine.OwnerDocker, Name: name, Hostname: c.Hostname, PID: engine.ModeContainer,
		Sysctls: h.Sysctls, ShmSize: h.ShmSize, StopWhenIdle: true, Single: true,
	}
	if h.CgroupParent != "" {
		p.pod.CgroupParent = path.Join("/", h.CgroupParent)
	}
	p.container = engine.ContainerSpec{
		Name: name, Image: c.Image, Labels: merged.Labels, Annotations: h.Annotations, Env: c.Env, WorkingDir: c.WorkingDir,
		TTY: c.Tty, ConsoleSize: [2]uint{h.ConsoleSize[1], h.ConsoleSize[0]}, // rows first, as Docker has it
		Stdin: c.OpenStdin, StdinOnce: c.StdinOnce, StopSignal: c.StopSignal,
	}
	if p.container.Command = slices.Concat(merged.Entrypoint, merged.Cmd); len(p.container.Command) == 0 {
		return p, fault.New(fault.Invalid, "no command specified").Hint("name a command after the image, or set ENTRYPOINT or CMD in its Dockerfile")
	}
	if c.StopTimeout != nil {
		grace := time.Duration(*c.StopTimeout) * time.Second
		p.container.StopGrace = &grace
	}
	for _, step := range []func(container.HostConfig) error{
		p.namespaces, p.names, p.resources, p.security, p.devices, p.logs, p.mounts, p.ports,
	} {
		if err := step(h); err != nil {
			return p, err
		}
	}
	return p, p.networks(p.settings.HostConfig.NetworkMode, req.NetworkingConfig, h)
}

// checkProcess refuses what no program can be started with.
func checkProcess(c container.Config) error {
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return fault.New(fault.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	for _, kv := range c.Env {
		if kv == "" || kv[0] == '=' {
			return fault.New(fault.Invalid, "invalid environment variable: %q", kv)
		}
	}
	return nil
}

// withImage fills what c leaves to the image, as clients read it back.
func withImage(c container.Config, image dockerspec.DockerOCIImageConfig) (container.Config, error) {
	c.User = cmp.Or(c.User, image.User)
	c.WorkingDir = cmp.Or(c.WorkingDir, image.WorkingDir)
	c.StopSignal = cmp.Or(c.StopSignal, image.StopSignal)
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		c.Cmd = image.Cmd
	}
	if c.Entrypoint == nil {
		c.Entrypoint = image.Entrypoint
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" { // takes the image's away, and its command
		c.Entrypoint = nil
	}
	c.Healthcheck = withImageCheck(c.Healthcheck, image.Healthcheck)
	if len(c.Shell) == 0 {
		c.Shell = image.Shell
	}
	if len(c.OnBuild) == 0 {
		c.OnBuild = image.OnBuild
	}
	c.Env = slices.Clone(c.Env)
	for _, kv := range image.Env {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(c.Env, func(own string) bool { return own == name || strings.HasPrefix(own, name+"=") }) {
			c.Env = append(c.Env, kv)
		}
	}
	labels := maps.Clone(image.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, c.Labels)
	c.Labels = labels
	if len(image.Volumes) > 0 {
		c.Volumes = maps.Clone(c.Volumes)
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		maps.Copy(c.Volumes, image.Volumes)
	}
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	for spec := range image.ExposedPorts {
		port, err := apinetwork.ParsePort(spec)
		if err != nil {
			return c, fault.New(fault.Invalid, "image's exposed port %s: %w", spec, err)
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = apinetwork.PortSet{}
		}
		c.ExposedPorts[port] = struct{}{}
	}
	return c, nil
}

// withImageCheck fills what a health check leaves to the image's.
func withImageCheck(own, image *container.HealthConfig) *container.HealthConfig {
	if own == nil || image == nil {
		return cmp.Or(own, image)
	}
	merged := *own
	if len(merged.Test) == 0 {
		merged.Test = image.Test
	}
	merged.Interval, merged.Timeout = cmp.Or(own.Interval, image.Interval), cmp.Or(own.Timeout, image.Timeout)
	merged.StartPeriod, merged.StartInterval = cmp.Or(own.StartPeriod, image.StartPeriod), cmp.Or(own.StartInterval, image.StartInterval)
	merged.Retries = cmp.Or(own.Retries, image.Retries)
	return &merged
}

// checkLife refuses a restart policy and a health check that cannot be meant.
func checkLife(c container.Config, h container.HostConfig) error {
	return cmp.Or(checkPolicy(h), supervise.Validate(c.Healthcheck))
}

func checkPolicy(h container.HostConfig) error {
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return fault.New(fault.Invalid, "can't create 'AutoRemove' container with restart policy")
	}
	return nil
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
		p.pod.Network = engine.ModeContainer
	}
	switch mode := h.PidMode; {
	case mode.IsHost():
		p.container.PID = engine.ModeHost
	case mode.IsContainer():
		p.container.PIDTarget = mode.Container() // turned into an ID by join
	case !mode.Valid(), mode != "":
		return fault.New(fault.Invalid, "invalid PID mode: %s", mode)
	}
	switch mode := h.IpcMode; {
	case mode.IsHost():
		p.pod.IPC = engine.ModeHost
	case mode.IsContainer():
		p.container.IPCTarget = mode.Container()
	case !mode.Valid():
		return fault.New(fault.Invalid, "invalid IPC mode: %s", mode)
	case mode.IsNone():
		p.container.NoShm = true
	case mode.IsEmpty():
		p.settings.HostConfig.IpcMode = container.IPCModePrivate
	}
	switch mode := h.UTSMode; {
	case mode.IsHost() && (p.settings.Config.Hostname != "" || p.settings.Config.Domainname != ""):
		return fault.New(fault.Invalid, "conflicting options: hostname and the UTS mode")
	case mode.IsHost():
		p.pod.UTS = engine.ModeHost
	case !mode.Valid():
		return fault.New(fault.Invalid, "invalid UTS mode: %s", mode)
	}
	switch mode := h.CgroupnsMode; {
	case mode.IsHost():
		p.container.CgroupNS = engine.ModeHost
	case mode.IsPrivate():
		p.container.CgroupNS = engine.ModeContainer
	case !mode.Valid():
		return fault.New(fault.Invalid, "invalid cgroup namespace mode: %s", mode)
	}
	p.container.Domainname, p.pod.Domain = p.settings.Config.Domainname, p.settings.Config.Domainname
	p.container.Init = h.Init != nil && *h.Init
	if h.Runtime != "" && !slices.Contains(runtimes, h.Runtime) {
		return fault.New(fault.Invalid, "unknown or invalid runtime name: %s", h.Runtime).Hint("leave --runtime out: Ferry has one")
	}
	return nil
}

// runtimes are names of the one runtime there is; all but its own are what
// dockerd calls the same thing.
var runtimes = []string{"ferry", "runc", "io.containerd.runc.v2"}

// join finds the containers whose namespaces a container is to share.
func (s *Server) join(ctx context.Context, p *plan) error {
	if key := p.container.PIDTarget; key != "" {
		target, err := s.findOther(ctx, key)
		if err != nil {
			return err
		}
		p.container.PIDTarget = target.ID
	}
	if key := p.container.IPCTarget; key != "" {
		target, err := s.findOther(ctx, key)
		if err != nil {
			return err
		}
		if !settingsOf(target).HostConfig.IpcMode.IsShareable() {
			return fault.New(fault.Conflict, "cannot join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", target.ID)
		}
		p.container.IPCTarget = target.ID
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
			if !a.IsValid() {
				return fault.New(fault.Invalid, "--dns: an address is empty")
			}
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
		if name == "" {
			return fault.New(fault.Invalid, "--add-host %s: no name", entry)
		}
		if addr == hostGateway {
			addr = p.gateway.String()
		}
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if err != nil {
			return fault.New(fault.Invalid, "--add-host %s: %q is not an IP address", entry, addr)
		}
		p.pod.Hosts = append(p.pod.Hosts, network.HostEntry{IP: ip, Names: []string{name}})
	}
	return nil
}

func (p *plan) security(h container.HostConfig) error {
	sec := engine.Security{
		Privileged: h.Privileged, User: p.settings.Config.User, ReadonlyRootfs: h.ReadonlyRootfs,
		AddCaps: h.CapAdd, DropCaps: h.CapDrop, MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths,
	}
	for _, g := range h.GroupAdd {
		if id, err := strconv.ParseUint(g, 10, 32); err == nil {
			sec.SupplementalGroups = append(sec.SupplementalGroups, uint32(id))
		} else {
			sec.GroupNames = append(sec.GroupNames, g)
		}
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
			if !json.Valid([]byte(strings.TrimPrefix(opt, "seccomp="))) {
				return fault.New(fault.Invalid, "--security-opt seccomp: the profile is not JSON")
			}
			sec.Seccomp, sec.SeccompProfile = engine.SeccompLocalhost, []byte(strings.TrimPrefix(opt, "seccomp="))
		case key == "apparmor" && value != "":
			sec.AppArmor = value
		case opt == "label=disable": // there are no labels
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
	for _, rule := range h.DeviceCgroupRules {
		parsed, err := parseDeviceRule(rule)
		if err != nil {
			return err
		}
		p.container.DeviceRules = append(p.container.DeviceRules, parsed)
	}
	for _, r := range h.DeviceRequests {
		names, err := cdiNames(r)
		if err != nil {
			return err
		}
		p.container.CDIDevices = append(p.container.CDIDevices, names...)
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
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			p.container.LogMaxFiles = max(int(n), 1)
		case "labels", "env", "tag": // what logs --details shows; a tag is for drivers that send
		case "mode", "max-buffer-size": // a log never holds a container up
		case "compress":
			if value != "false" {
				return unsupported("--log-opt compress=%s", value)
			}
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
func (p *plan) ports(h container.HostConfig) error {
	bindings := maps.Clone(h.PortBindings)
	if bindings == nil {
		bindings = apinetwork.PortMap{}
	}
	if h.PublishAllPorts {
		for port := range p.settings.Config.ExposedPorts {
			if _, ok := bindings[port]; !ok {
				bindings[port] = nil
			}
		}
	}
	if len(bindings) > 0 && p.pod.Network != engine.ModePod && p.pod.Network != engine.ModeContainer {
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
		first, last, isRange := strings.Cut(b.HostPort, "-")
		n, err := strconv.ParseUint(first, 10, 16)
		end := uint64(0)
		if isRange && err == nil {
			end, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || isRange && (n == 0 || end < n) {
			return m, fault.New(fault.Invalid, "-p %s:%s: %q is not a port", b.HostPort, port, b.HostPort)
		}
		m.HostPort, m.HostPortEnd = uint16(n), uint16(end)
	}
	switch {
	case !b.HostIP.IsValid() || b.HostIP == netip.IPv4Unspecified() || b.HostIP == netip.IPv6Unspecified():
	case b.HostIP.Is4():
		m.HostIP = b.HostIP
	default:
		return m, unsupported("-p [%s]:%s:%s: IPv6", b.HostIP, b.HostPort, port)
	}
	if m, err := m.Normal(); err != nil {
		return m, fmt.Errorf("-p %s:%s: %w", b.HostPort, port, err)
	}
	return m, nil
}

// parseSize reads a positive number of bytes with an optional k, m or g.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToLower(s), "bkmg")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, known := map[string]int{"": 0, "k": 10, "m": 20, "g": 30}[strings.TrimSuffix(strings.ToLower(s)[len(digits):], "b")]
	if err != nil || !known || n <= 0 || n > math.MaxInt64>>shift {
		return 0, fault.New(fault.Invalid, "%q is not a size", s)
	}
	return n << shift, nil
}
