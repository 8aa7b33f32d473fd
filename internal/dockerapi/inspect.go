package dockerapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/ferryos/ferry/internal/dockerapi/supervise"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) containerList(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	match, err := parseFilters(r, "id", "name", "label", "status", "ancestor", "exited", "volume", "network", "health",
		"before", "since", "expose", "publish", "is-task")
	if err != nil {
		return err
	}
	limit := 0
	if v := param(r, "limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil {
			return fault.New(fault.Invalid, "limit %q is not a number", v)
		}
	}
	for _, name := range match["ancestor"] {
		if img, err := s.opt.Engine.Images().Image(ctx, name); err == nil {
			match["ancestor"] = append(match["ancestor"], img.ID)
		}
	}
	if err := s.resolveAges(ctx, match); err != nil {
		return err
	}
	_, byStatus := match["status"]
	_, byExit := match["exited"]
	all := flag(r, "all") || byStatus || byExit || limit > 0
	containers := s.containers(ctx)
	slices.Reverse(containers) // newest first
	out := []container.Summary{}
	for _, c := range containers {
		if limit > 0 && len(out) == limit {
			break
		}
		if !match.container(c) || !match.health(s.life.View(c.ID).Health) || !all && !alive(c) {
			continue
		}
		sum, err := s.summary(ctx, c, flag(r, "size"))
		if fault.Is(err, fault.NotFound) {
			continue // removed since the listing
		}
		if err != nil {
			return err
		}
		if match.ports(sum.Ports) && match.any("network", func(v string) bool { return isOn(sum.NetworkSettings.Networks, v) }) {
			out = append(out, sum)
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// age orders containers by their creation, as text.
func age(c engine.Container) string { return strconv.FormatInt(c.CreatedAt.UnixNano(), 10) }

// resolveAges turns the containers that the filters before and since name into their ages.
func (s *Server) resolveAges(ctx context.Context, match filters) error {
	for _, key := range []string{"before", "since"} {
		for i, name := range match[key] {
			c, err := s.find(ctx, name)
			if err != nil {
				return err
			}
			match[key][i] = age(c)
		}
	}
	return nil
}

func (s *Server) summary(ctx context.Context, c engine.Container, size bool) (container.Summary, error) {
	pod, err := s.opt.Engine.Pod(ctx, c.PodID)
	if err != nil {
		return container.Summary{}, err
	}
	set := settingsOf(c)
	sum := container.Summary{
		ID: c.ID, Names: []string{"/" + c.Spec.Name}, Image: set.Config.Image, ImageID: c.ImageID,
		Command: strings.Join(append([]string{c.Path}, c.Args...), " "), Created: c.CreatedAt.Unix(),
		Labels: c.Spec.Labels, State: container.ContainerState(c.State), Status: status(c, s.life.View(c.ID).Health, time.Now()),
		Ports: []container.PortSummary{}, Mounts: mountPoints(c),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: s.endpoints(pod)},
	}
	if sum.Labels == nil {
		sum.Labels = map[string]string{}
	}
	sum.HostConfig.NetworkMode = string(set.HostConfig.NetworkMode)
	for port, bindings := range portMap(c, pod, set) {
		if bindings == nil {
			sum.Ports = append(sum.Ports, container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
		for _, b := range bindings {
			public, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				return sum, err
			}
			sum.Ports = append(sum.Ports, container.PortSummary{IP: b.HostIP, PrivatePort: port.Num(), PublicPort: uint16(public), Type: string(port.Proto())})
		}
	}
	slices.SortFunc(sum.Ports, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type), cmp.Compare(a.PublicPort, b.PublicPort))
	})
	if size {
		usage, err := s.opt.Engine.Stats(ctx, c.ID)
		if err != nil {
			return sum, err
		}
		sum.SizeRw = int64(usage.RootfsBytes)
		if sum.SizeRootFs, err = s.opt.Engine.Images().RootfsSize(ctx, c.ID); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// status is the state in words, as of now: "Up 5 minutes (healthy)", "Exited (0) 3 hours ago".
func status(c engine.Container, health *container.Health, now time.Time) string {
	switch c.State {
	case engine.StateRunning:
		up := "Up " + ago(now.Sub(c.StartedAt))
		switch {
		case health == nil:
			return up
		case health.Status == container.Starting:
			return up + " (health: starting)"
		}
		return up + " (" + string(health.Status) + ")"
	case stateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", c.ExitCode, ago(now.Sub(c.FinishedAt)))
	case engine.StatePaused:
		return "Up " + ago(now.Sub(c.StartedAt)) + " (Paused)"
	case engine.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", c.ExitCode, ago(now.Sub(c.FinishedAt)))
	default:
		return "Created"
	}
}

// ago rounds a duration to the words that Docker uses.
func ago(d time.Duration) string {
	count := func(n int, unit string) string {
		if n == 1 {
			return map[string]string{"second": "1 second", "minute": "About a minute", "hour": "About an hour"}[unit]
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	switch hours := int(d.Round(time.Hour).Hours()); {
	case d < time.Second:
		return "Less than a second"
	case d < time.Minute:
		return count(int(d.Seconds()), "second")
	case d < time.Hour:
		return count(int(d.Minutes()), "minute")
	case hours < 48:
		return count(hours, "hour")
	case hours < 24*7*2:
		return count(hours/24, "day")
	case hours < 24*30*2:
		return count(hours/24/7, "week")
	case hours < 24*365*2:
		return count(hours/24/30, "month")
	default:
		return count(hours/24/365, "year")
	}
}

// isOn reports whether one of a container's networks has that name, or an ID
// that begins so.
func isOn(networks map[string]*apinetwork.EndpointSettings, key string) bool {
	for name, e := range networks {
		if name == key || key != "" && strings.HasPrefix(e.NetworkID, key) {
			return true
		}
	}
	return false
}

func mountPoints(c engine.Container) []container.MountPoint {
	out := []container.MountPoint{}
	volumes := settingsOf(c).Volumes
	for _, m := range c.Spec.Mounts {
		if v, ok := volumes[m.Destination]; ok {
			out = append(out, container.MountPoint{Type: mount.TypeVolume, Name: v.Name, Source: v.Source, Destination: m.Destination,
				Driver: volumeDriver, Mode: v.Mode, RW: !m.ReadOnly, Propagation: mount.Propagation(m.Propagation)})
			continue
		}
		out = append(out, container.MountPoint{Type: mount.Type(m.Kind), Source: m.Source, Destination: m.Destination,
			Mode: strings.Join(m.Options, ","), RW: !m.ReadOnly && m.Kind != engine.MountImage, Propagation: mount.Propagation(m.Propagation)})
	}
	return out
}

// legacyInspect adds what clients of API versions before 1.52 still read.
type legacyInspect struct {
	container.InspectResponse
	NetworkSettings legacyNetworkSettings
}

type legacyNetworkSettings struct {
	container.NetworkSettings
	IPAddress   string
	IPPrefixLen int
	Gateway     string
	MacAddress  string
}

func (s *Server) containerInspect(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	pod, err := s.opt.Engine.Pod(ctx, c.PodID)
	if err != nil {
		return err
	}
	v := inspection(c, pod, s.life.View(c.ID), s.endpoints(pod))
	v.ExecIDs, v.AppArmorProfile = s.execs.of(c.ID), s.opt.Engine.AppArmorProfile(c.Spec.Security)
	v.HostsPath, v.HostnamePath = s.opt.Engine.PodFile(pod, "hosts"), s.opt.Engine.PodFile(pod, "hostname")
	v.ResolvConfPath = s.opt.Engine.PodFile(pod, "resolv.conf")
	v.GraphDriver = s.graphDriver(c.ID)
	if flag(r, "size") {
		usage, err := s.opt.Engine.Stats(ctx, c.ID)
		if err != nil {
			return err
		}
		size := int64(usage.RootfsBytes)
		all, err := s.opt.Engine.Images().RootfsSize(ctx, c.ID)
		if err != nil {
			return err
		}
		v.SizeRw, v.SizeRootFs = &size, &all
	}
	return writeJSON(w, http.StatusOK, v)
}

// graphDriver tells where a container's files are in the words of Docker's
// overlay2, which keeps them in the same way; nowhere, where its layers are gone.
func (s *Server) graphDriver(id string) *storage.DriverData {
	data := map[string]string{}
	dirs, err := s.opt.Engine.RootfsDirs(id)
	if err != nil {
		s.opt.Log.Debug("a container's layers", "container", id, "error", err)
	}
	for key, dir := range map[string]string{"LowerDir": dirs.Lower, "UpperDir": dirs.Upper, "WorkDir": dirs.Work, "MergedDir": dirs.Merged} {
		if dir != "" {
			data[key] = dir
		}
	}
	return &storage.DriverData{Name: "overlay2", Data: data}
}

func inspection(c engine.Container, pod engine.Pod, life supervise.View, on map[string]*apinetwork.EndpointSettings) legacyInspect {
	set := settingsOf(c)
	set.Config.Hostname = pod.Spec.Hostname
	if set.Config.Hostname == "" {
		set.Config.Hostname = pod.ID[:12]
	}
	v := legacyInspect{InspectResponse: container.InspectResponse{
		ID: c.ID, Name: "/" + c.Spec.Name, Created: c.CreatedAt.UTC().Format(time.RFC3339Nano), Path: c.Path, Args: c.Args,
		Image: c.ImageID, LogPath: c.LogPath, Driver: "overlayfs", Platform: "linux", HostConfig: &set.HostConfig,
		Config: &set.Config, Mounts: mountPoints(c), State: state(c, life), RestartCount: life.Restarts,
	}}
	n := container.NetworkSettings{SandboxID: pod.ID, SandboxKey: pod.NetnsPath, Ports: portMap(c, pod, set), Networks: on}
	v.NetworkSettings.NetworkSettings = n
	if e := on[apinetwork.NetworkBridge]; e != nil && e.IPAddress.IsValid() {
		v.NetworkSettings.IPAddress, v.NetworkSettings.IPPrefixLen = e.IPAddress.String(), e.IPPrefixLen
		v.NetworkSettings.Gateway, v.NetworkSettings.MacAddress = e.Gateway.String(), e.MacAddress.String()
	}
	return v
}

func state(c engine.Container, life supervise.View) *container.State {
	return &container.State{
		Status: container.ContainerState(c.State), Running: alive(c), Paused: c.State == engine.StatePaused,
		Restarting: c.State == stateRestarting, Health: life.Health,
		OOMKilled: c.Reason == "OOMKilled", Pid: c.PID, ExitCode: c.ExitCode, Error: c.Message,
		StartedAt: c.StartedAt.UTC().Format(time.RFC3339Nano), FinishedAt: c.FinishedAt.UTC().Format(time.RFC3339Nano),
	}
}

// portMap is what the container exposes while it runs, and where that is published.
func portMap(c engine.Container, pod engine.Pod, set settings) apinetwork.PortMap {
	out := apinetwork.PortMap{}
	if pod.State != engine.PodReady || !alive(c) {
		return out
	}
	for port := range set.Config.ExposedPorts {
		out[port] = nil
	}
	for _, p := range pod.Ports {
		ip := p.HostIP
		if !ip.IsValid() {
			ip = netip.IPv4Unspecified()
		}
		if port, ok := apinetwork.PortFrom(p.ContainerPort, apinetwork.IPProtocol(p.Protocol)); ok {
			out[port] = append(out[port], apinetwork.PortBinding{HostIP: ip, HostPort: strconv.Itoa(int(p.HostPort))})
		}
	}
	return out
}
