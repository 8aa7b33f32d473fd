package cli

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

// createFlags are the flags of run that describe the container, as docker has them.
type createFlags struct {
	name, user, workdir, entrypoint, hostname, network, stopSignal      string
	memory, cpus, shmSize, restart                                      string
	env, envFiles, volumes, volumesFrom, mounts, tmpfs, publish, labels []string
	capAdd, capDrop, devices, securityOpts, addHosts, dns, sysctls      []string
	remove, stdin, tty, publishAll, privileged, readOnly, init          bool
	stopTimeout                                                         int
	pidsLimit                                                           int64
}

// addFlags adds them to a command.
func (o *createFlags) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "`name` of the container; a random one by default")
	f.BoolVar(&o.remove, "rm", false, "remove the container when it exits")
	f.BoolVarP(&o.stdin, "interactive", "i", false, "connect standard input")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set `KEY=VALUE` in the environment; KEY alone takes the value from here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "read lines KEY=VALUE from a `file`")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working `directory` in the container")
	f.StringVarP(&o.user, "user", "u", "", "run as `USER[:GROUP]`, names or numbers")
	f.StringVar(&o.entrypoint, "entrypoint", "", "run this `program` in place of the image's; \"\" for none")
	f.StringVar(&o.hostname, "hostname", "", "host `name` in the container")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "attach `KEY=VALUE`")
	f.StringVar(&o.stopSignal, "stop-signal", "", "`signal` that stop sends")
	f.IntVar(&o.stopTimeout, "stop-timeout", -1, "`seconds` that stop waits before it kills; 10 without it")
	hideDefault(cmd, "stop-timeout")

	f.StringVar(&o.restart, "restart", "", "restart `policy`: no, always, unless-stopped, on-failure[:N]")
	f.BoolVar(&o.init, "init", false, "run the program under a process 1 that reaps and hands signals on")

	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "mount `[HOST-PATH|VOLUME:]PATH[:ro]`; PATH alone is a new volume")
	f.StringArrayVar(&o.volumesFrom, "volumes-from", nil, "mount what `CONTAINER[:ro]` has mounted")
	f.StringArrayVar(&o.mounts, "mount", nil, "mount by `keys`: type=bind|tmpfs|image,source=…,target=…[,readonly]")
	f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "mount a tmpfs at `PATH[:OPTIONS]`")
	f.StringVar(&o.shmSize, "shm-size", "", "`size` of /dev/shm (64m)")
	f.StringArrayVar(&o.devices, "device", nil, "give the container a device `HOST-PATH[:PATH[:rwm]]`")

	f.StringVar(&o.network, "network", "", "`network`: bridge, host, none, one of your own, or container:NAME")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "publish a port: `[IP:][HOST-PORT:]PORT[/udp]`")
	f.BoolVarP(&o.publishAll, "publish-all", "P", false, "publish all exposed ports on free ports")
	f.StringArrayVar(&o.addHosts, "add-host", nil, "add `NAME:IP` to /etc/hosts")
	f.StringArrayVar(&o.dns, "dns", nil, "`address` of a name server")
	f.StringArrayVar(&o.sysctls, "sysctl", nil, "set a kernel parameter `KEY=VALUE` of the container's own")

	f.StringVarP(&o.memory, "memory", "m", "", "memory limit as a `size`: 512m, 2g")
	f.StringVar(&o.cpus, "cpus", "", "limit to a `number` of processors: 1.5")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "limit the `number` of processes")
	f.BoolVar(&o.readOnly, "read-only", false, "mount the root file system read-only")
	f.BoolVar(&o.privileged, "privileged", false, "all capabilities, all devices, no filters")
	f.StringSliceVar(&o.capAdd, "cap-add", nil, "add a `capability`")
	f.StringSliceVar(&o.capDrop, "cap-drop", nil, "drop a `capability`; ALL drops every one")
	f.StringArrayVar(&o.securityOpts, "security-opt", nil, "security `option`: no-new-privileges, seccomp=unconfined|FILE")
}

// maxCPUs is more than any machine has.
const maxCPUs = 1 << 20

// flagError names the flag and the value that cannot be used.
func flagError(name, value string, err error) error {
	return fault.New(fault.Invalid, "--%s %s: %w", name, value, err).Hint("`ferry run --help` shows how to write it")
}

// request translates the flags and the arguments IMAGE [COMMAND [ARG…]] into a
// create request. entrypointSet tells --entrypoint "" from no such flag.
func (o *createFlags) request(args []string, entrypointSet bool, getenv func(string) (string, bool)) (client.ContainerCreateOptions, error) {
	c := &container.Config{
		Image: args[0], Cmd: args[1:], User: o.user, WorkingDir: o.workdir, Hostname: o.hostname, Tty: o.tty,
		OpenStdin: o.stdin, StdinOnce: o.stdin, AttachStdin: o.stdin, AttachStdout: true, AttachStderr: true, StopSignal: o.stopSignal,
	}
	if entrypointSet {
		c.Entrypoint = []string{o.entrypoint}
	}
	if o.stopTimeout >= 0 {
		c.StopTimeout = &o.stopTimeout
	}
	h := &container.HostConfig{
		AutoRemove: o.remove, NetworkMode: container.NetworkMode(o.network), PublishAllPorts: o.publishAll, Privileged: o.privileged,
		ReadonlyRootfs: o.readOnly, CapAdd: o.capAdd, CapDrop: o.capDrop, ExtraHosts: o.addHosts,
	}
	out := client.ContainerCreateOptions{Config: c, HostConfig: h, Name: o.name}
	for _, step := range []func(*container.Config, *container.HostConfig) error{
		func(c *container.Config, _ *container.HostConfig) error { return o.environment(c, getenv) },
		o.identity, o.storage, o.limits, o.ports, o.secure,
	} {
		if err := step(c, h); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (o *createFlags) environment(c *container.Config, getenv func(string) (string, bool)) error {
	var lines []string
	for _, path := range o.envFiles {
		data, err := os.ReadFile(path)
		if err != nil {
			return flagError("env-file", path, err)
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t"); line != "" && line[0] != '#' {
				lines = append(lines, line)
			}
		}
	}
	var err error
	c.Env, err = environment(append(lines, o.env...), getenv)
	return err
}

// environment completes names without a value by this process's.
func environment(list []string, getenv func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, v := range list {
		key, _, set := strings.Cut(v, "=")
		if key == "" {
			return nil, flagError("env", v, fmt.Errorf("the name is empty"))
		}
		if set {
			out = append(out, v)
		} else if value, ok := getenv(key); ok {
			out = append(out, key+"="+value)
		}
	}
	return out, nil
}

func (o *createFlags) identity(c *container.Config, h *container.HostConfig) error {
	for _, l := range o.labels {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return flagError("label", l, fmt.Errorf("the name is empty"))
		}
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[key] = value
	}
	for _, s := range o.sysctls {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return flagError("sysctl", s, fmt.Errorf("no value"))
		}
		if h.Sysctls == nil {
			h.Sysctls = map[string]string{}
		}
		h.Sysctls[key] = value
	}
	for _, s := range o.dns {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return flagError("dns", s, err)
		}
		h.DNS = append(h.DNS, addr)
	}
	return nil
}

func (o *createFlags) storage(_ *container.Config, h *container.HostConfig) error {
	for _, v := range o.volumes {
		// As docker: a source that begins with a dot is a path from here.
		source, rest, ok := strings.Cut(v, ":")
		if ok && strings.HasPrefix(source, ".") {
			abs, err := filepath.Abs(source)
			if err != nil {
				return flagError("volume", v, err)
			}
			v = abs + ":" + rest
		}
		h.Binds = append(h.Binds, v)
	}
	h.VolumesFrom = o.volumesFrom
	for _, t := range o.tmpfs {
		path, options, _ := strings.Cut(t, ":")
		if h.Tmpfs == nil {
			h.Tmpfs = map[string]string{}
		}
		h.Tmpfs[path] = options
	}
	for _, spec := range o.mounts {
		m, err := parseMount(spec)
		if err != nil {
			return flagError("mount", spec, err)
		}
		h.Mounts = append(h.Mounts, m)
	}
	for _, d := range o.devices {
		parts := strings.Split(d, ":")
		if len(parts) > 3 {
			return flagError("device", d, fmt.Errorf("more than three parts"))
		}
		parts = append(parts, "", "")
		h.Devices = append(h.Devices, container.DeviceMapping{
			PathOnHost: parts[0], PathInContainer: cmp.Or(parts[1], parts[0]), CgroupPermissions: cmp.Or(parts[2], "rwm")})
	}
	return nil
}

// parseMount reads the comma-separated keys of --mount.
func parseMount(spec string) (mount.Mount, error) {
	m := mount.Mount{Type: mount.TypeBind}
	for field := range strings.SplitSeq(spec, ",") {
		key, value, hasValue := strings.Cut(field, "=")
		var err error
		switch strings.ToLower(key) {
		case "type":
			m.Type = mount.Type(value)
		case "source", "src":
			m.Source = value
		case "target", "dst", "destination":
			m.Target = value
		case "readonly", "ro":
			m.ReadOnly = true
			if hasValue {
				m.ReadOnly, err = strconv.ParseBool(value)
			}
		case "bind-propagation":
			m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(value)}
		case "volume-subpath", "volume-nocopy":
			if m.VolumeOptions == nil {
				m.VolumeOptions = &mount.VolumeOptions{}
			}
			if strings.EqualFold(key, "volume-subpath") {
				m.VolumeOptions.Subpath = value
			} else if m.VolumeOptions.NoCopy = true; hasValue {
				m.VolumeOptions.NoCopy, err = strconv.ParseBool(value)
			}
		case "image-subpath":
			m.ImageOptions = &mount.ImageOptions{Subpath: value}
		case "tmpfs-size":
			err = tmpfs(&m, func(o *mount.TmpfsOptions) (err error) { o.SizeBytes, err = units.RAMInBytes(value); return err })
		case "tmpfs-mode":
			err = tmpfs(&m, func(o *mount.TmpfsOptions) error {
				mode, err := strconv.ParseUint(value, 8, 32)
				o.Mode = os.FileMode(mode)
				return err
			})
		default:
			return m, fmt.Errorf("key %q is not known", key)
		}
		if err != nil {
			return m, fmt.Errorf("%s: %w", key, err)
		}
	}
	if m.Target == "" {
		return m, fmt.Errorf("target is missing")
	}
	if m.Type == mount.TypeBind && strings.HasPrefix(m.Source, ".") {
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return m, err
		}
		m.Source = abs
	}
	return m, nil
}

func tmpfs(m *mount.Mount, set func(*mount.TmpfsOptions) error) error {
	if m.TmpfsOptions == nil {
		m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return set(m.TmpfsOptions)
}

func (o *createFlags) limits(_ *container.Config, h *container.HostConfig) error {
	if err := setSize("shm-size", o.shmSize, &h.ShmSize); err != nil {
		return err
	}
	if err := setLimits(&h.Resources, o.memory, o.cpus); err != nil {
		return err
	}
	if o.pidsLimit != 0 {
		h.PidsLimit = &o.pidsLimit
	}
	var err error
	if o.restart != "" {
		h.RestartPolicy, err = restartPolicy(o.restart)
	}
	if o.init {
		h.Init = &o.init
	}
	return err
}

// setLimits reads --memory and --cpus; "" leaves a limit as it is.
func setLimits(r *container.Resources, memory, cpus string) error {
	if err := setSize("memory", memory, &r.Memory); err != nil {
		return err
	}
	if cpus != "" {
		n, err := strconv.ParseFloat(cpus, 64)
		if err != nil || !(n > 0 && n < maxCPUs) {
			return flagError("cpus", cpus, fmt.Errorf("not a positive number"))
		}
		r.NanoCPUs = max(1, int64(math.Round(n*1e9))) // 0 would be no limit
	}
	return nil
}

func setSize(name, value string, to *int64) error {
	if value == "" {
		return nil
	}
	n, err := units.RAMInBytes(value)
	if err != nil {
		return flagError(name, value, err)
	}
	*to = n
	return nil
}

func (o *createFlags) ports(c *container.Config, h *container.HostConfig) error {
	for _, spec := range o.publish {
		ports, err := parsePublish(spec)
		if err != nil {
			return flagError("publish", spec, err)
		}
		for _, p := range ports {
			if h.PortBindings == nil {
				h.PortBindings, c.ExposedPorts = network.PortMap{}, network.PortSet{}
			}
			h.PortBindings[p.port] = append(h.PortBindings[p.port], p.binding)
			c.ExposedPorts[p.port] = struct{}{}
		}
	}
	return nil
}

type publishedPort struct {
	port    network.Port
	binding network.PortBinding
}

// parsePublish reads [IP:][HOST:]CONTAINER[/PROTOCOL], where the ports may be
// ranges of the same length.
func parsePublish(spec string) ([]publishedPort, error) {
	spec, proto, _ := strings.Cut(spec, "/")
	proto = cmp.Or(strings.ToLower(proto), string(network.TCP))
	if !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return nil, fmt.Errorf("protocol %q is not known", proto)
	}
	var ip netip.Addr
	var host string
	target := spec
	if i := strings.LastIndex(spec, ":"); i >= 0 {
		host, target = spec[:i], spec[i+1:]
		if i := strings.LastIndex(host, ":"); i >= 0 {
			addr, err := netip.ParseAddr(strings.Trim(host[:i], "[]"))
			if err != nil {
				return nil, err
			}
			ip, host = addr, host[i+1:]
		}
	}
	first, last, err := portRange(target)
	if err != nil {
		return nil, err
	}
	hostFirst, hostLast := 0, 0
	if host == "0" { // any free one
		host = ""
	}
	if host != "" {
		if hostFirst, hostLast, err = portRange(host); err != nil {
			return nil, err
		}
		if hostLast-hostFirst != last-first {
			return nil, fmt.Errorf("the ranges %s and %s differ in length", host, target)
		}
	}
	var out []publishedPort
	for i := range last - first + 1 {
		port, _ := network.PortFrom(uint16(first+i), network.IPProtocol(proto))
		p := publishedPort{port: port, binding: network.PortBinding{HostIP: ip}}
		if host != "" {
			p.binding.HostPort = strconv.Itoa(hostFirst + i)
		}
		out = append(out, p)
	}
	return out, nil
}

func portRange(s string) (first, last int, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	for _, p := range []struct {
		text string
		to   *int
	}{{from, &first}, {to, &last}} {
		n, err := strconv.ParseUint(p.text, 10, 16)
		if err != nil || n == 0 {
			return 0, 0, fmt.Errorf("%q is not a port", p.text)
		}
		*p.to = int(n)
	}
	if last < first {
		return 0, 0, fmt.Errorf("the range %s goes backwards", s)
	}
	return first, last, nil
}

// secure reads a seccomp profile's file: the API takes its content.
func (o *createFlags) secure(_ *container.Config, h *container.HostConfig) error {
	for _, opt := range o.securityOpts {
		file, ok := strings.CutPrefix(opt, "seccomp=")
		if ok && file != "unconfined" && file != "builtin" {
			data, err := os.ReadFile(file)
			if err != nil {
				return flagError("security-opt", opt, err)
			}
			opt = "seccomp=" + string(data)
		}
		h.SecurityOpt = append(h.SecurityOpt, opt)
	}
	return nil
}
