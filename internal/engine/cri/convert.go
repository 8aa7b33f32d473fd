package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// containerSpec translates a container's configuration.
func containerSpec(c *runtimeapi.ContainerConfig) (engine.ContainerSpec, error) {
	if c.GetMetadata().GetName() == "" || c.GetImage().GetImage() == "" {
		return engine.ContainerSpec{}, fault.New(fault.Invalid, "a container needs a name and an image")
	}
	if len(c.CDIDevices) > 0 {
		return engine.ContainerSpec{}, fault.New(fault.Unsupported, "container %s asks for CDI devices, which are not supported", c.Metadata.Name)
	}
	spec := engine.ContainerSpec{
		Name: c.Metadata.Name, Attempt: c.Metadata.Attempt, Image: c.Image.Image, Labels: c.Labels, Annotations: c.Annotations,
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, LogPath: c.LogPath, TTY: c.Tty, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
	}
	spec.StopSignal = signalName(c.StopSignal)
	if seconds, err := strconv.ParseInt(c.Annotations[gracePeriod], 10, 32); err == nil {
		grace := time.Duration(seconds) * time.Second
		spec.StopGrace = &grace
	}
	for _, kv := range c.Envs {
		spec.Env = append(spec.Env, kv.Key+"="+string(kv.Value))
	}
	for _, d := range c.Devices {
		spec.Devices = append(spec.Devices, engine.Device{HostPath: d.HostPath, ContainerPath: d.ContainerPath, Permissions: d.Permissions})
	}
	for _, m := range c.Mounts {
		mount, err := mountSpec(m)
		if err != nil {
			return spec, fmt.Errorf("container %s: %w", spec.Name, err)
		}
		spec.Mounts = append(spec.Mounts, mount)
	}
	applyResources(&spec.Resources, c.GetLinux().GetResources())
	sec := c.GetLinux().GetSecurityContext()
	ns := sec.GetNamespaceOptions()
	switch {
	case ns.GetTargetId() != "":
		spec.PIDTarget = ns.GetTargetId()
	case ns != nil && ns.Pid == runtimeapi.NamespaceMode_CONTAINER:
		spec.PID = engine.ModeContainer
	case ns != nil && ns.Pid == runtimeapi.NamespaceMode_NODE:
		spec.PID = engine.ModeHost
	}
	var err error
	if spec.Security, err = security(sec); err != nil {
		return spec, fmt.Errorf("container %s: %w", spec.Name, err)
	}
	if spec.Security.Privileged { // sees the machine's cgroups, as in other runtimes: agents in pods rely on it
		spec.CgroupNS = engine.ModeHost
	}
	return spec, nil
}

// gracePeriod is the annotation in which the kubelet keeps the pod's
// terminationGracePeriodSeconds, as it does for itself after a restart.
const gracePeriod = "io.kubernetes.pod.terminationGracePeriod"

// signalName is the signal's name as in signal(7); "" is the image's, or the default.
func signalName(s runtimeapi.Signal) string {
	name, given := strings.CutPrefix(s.String(), signalPrefix)
	if !given || s == 0 {
		return ""
	}
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
}

// signalOf is signalName the other way round; what has no name here is the default.
func signalOf(name string) runtimeapi.Signal {
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(strings.ToUpper(name))
	return runtimeapi.Signal(runtimeapi.Signal_value[signalPrefix+"SIG"+strings.TrimPrefix(name, "SIG")])
}

const signalPrefix = "SIGNAL_"

var propagation = map[runtimeapi.MountPropagation]string{
	runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           "rprivate",
	runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "rslave",
	runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "rshared",
}

// mountOptions are those that the interface has.
var mountOptions = []string{"nodev", "noexec", "nosuid"}

func mountSpec(m *runtimeapi.Mount) (engine.Mount, error) {
	if (len(m.UidMappings) > 0) != (len(m.GidMappings) > 0) {
		return engine.Mount{}, fault.New(fault.Invalid, "mount %s: mapped user ids go with mapped group ids", m.ContainerPath)
	}
	for _, option := range m.MountOptions {
		if !slices.Contains(mountOptions, option) {
			return engine.Mount{}, fault.New(fault.Invalid, "mount %s: option %q is none of %s", m.ContainerPath, option, strings.Join(mountOptions, ", "))
		}
	}
	out := engine.Mount{IDMap: len(m.UidMappings) > 0, Kind: engine.MountBind, Source: m.HostPath, Destination: m.ContainerPath, ReadOnly: m.Readonly,
		Recursive: m.RecursiveReadOnly, Propagation: propagation[m.Propagation], Options: m.MountOptions}
	if image := m.GetImage().GetImage(); image != "" {
		out.Kind, out.Source, out.SubPath, out.Propagation = engine.MountImage, image, m.ImageSubPath, ""
		return out, nil
	}
	if m.RecursiveReadOnly && (!m.Readonly || m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE) {
		return out, fault.New(fault.Invalid, "mount %s: recursively read-only asks for read-only and private propagation", m.ContainerPath)
	}
	// A path given as a link is mounted where it leads to, as every runtime does;
	// one that does not exist is made a directory, as the interface asks.
	path, err := filepath.EvalSymlinks(m.HostPath)
	if os.IsNotExist(err) {
		path, err = m.HostPath, os.MkdirAll(m.HostPath, 0o755)
	}
	if err != nil {
		return out, fault.New(fault.Invalid, "mount %s: %w", m.ContainerPath, err)
	}
	out.Source = path
	return out, nil
}

func mountOf(m engine.Mount) *runtimeapi.Mount {
	out := &runtimeapi.Mount{ContainerPath: m.Destination, HostPath: m.Source, Readonly: m.ReadOnly, RecursiveReadOnly: m.Recursive, MountOptions: m.Options}
	for p, name := range propagation {
		if name == m.Propagation {
			out.Propagation = p
		}
	}
	if m.Kind == engine.MountImage {
		out.HostPath, out.Image, out.ImageSubPath, out.Readonly = "", &runtimeapi.ImageSpec{Image: m.Source}, m.SubPath, true
	}
	return out
}

// security translates what a container may do.
func security(s *runtimeapi.LinuxContainerSecurityContext) (engine.Security, error) {
	out := engine.Security{
		Privileged: s.GetPrivileged(), AddCaps: s.GetCapabilities().GetAddCapabilities(), DropCaps: s.GetCapabilities().GetDropCapabilities(),
		ReadonlyRootfs: s.GetReadonlyRootfs(), NoNewPrivileges: s.GetNoNewPrivs(),
		StrictGroups: s.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict,
		// As given: an empty list masks nothing, the defaults are the kubelet's to send.
		MaskedPaths: append([]string{}, s.GetMaskedPaths()...), ReadonlyPaths: append([]string{}, s.GetReadonlyPaths()...),
	}
	if len(s.GetCapabilities().GetAddAmbientCapabilities()) > 0 {
		return out, fault.New(fault.Unsupported, "ambient capabilities are not supported")
	}
	for _, g := range s.GetSupplementalGroups() {
		out.SupplementalGroups = append(out.SupplementalGroups, uint32(g))
	}
	out.AppArmor = appArmor(s)
	var err error
	if out.User, err = user(s); err != nil {
		return out, err
	}
	switch p := s.GetSeccomp(); {
	case p == nil || p.ProfileType == runtimeapi.SecurityProfile_Unconfined:
		out.Seccomp = engine.SeccompUnconfined
	case p.ProfileType == runtimeapi.SecurityProfile_Localhost:
		out.Seccomp = engine.SeccompLocalhost
		if out.SeccompProfile, err = os.ReadFile(strings.TrimPrefix(p.LocalhostRef, "localhost/")); err != nil {
			return out, fault.New(fault.Invalid, "seccomp profile: %w", err).Hint("put the profile below the kubelet's seccomp directory")
		}
	}
	return out, nil
}

// appArmor is the profile a container asks for, by the field or its predecessor;
// "" is the runtime's default.
func appArmor(s *runtimeapi.LinuxContainerSecurityContext) string {
	if p := s.GetApparmor(); p != nil {
		switch p.ProfileType {
		case runtimeapi.SecurityProfile_Unconfined:
			return engine.AppArmorUnconfined
		case runtimeapi.SecurityProfile_Localhost:
			return strings.TrimPrefix(p.LocalhostRef, "localhost/")
		}
		return ""
	}
	//lint:ignore SA1019 kubelets still send it
	name := strings.TrimPrefix(s.GetApparmorProfile(), "localhost/")
	if name == "runtime/default" {
		return ""
	}
	return name
}

// user is "user[:group]" by name or number; "" is the image's.
func user(s *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	name := s.GetRunAsUsername()
	if u := s.GetRunAsUser(); u != nil {
		name = strconv.FormatInt(u.Value, 10)
	}
	if g := s.GetRunAsGroup(); g != nil {
		if name == "" {
			return "", fault.New(fault.Invalid, "a group to run as asks for a user to run as")
		}
		name += ":" + strconv.FormatInt(g.Value, 10)
	}
	return name, nil
}

// applyResources sets the limits that are given; CRI's zero is "not given".
func applyResources(to *engine.Resources, r *runtimeapi.LinuxContainerResources) {
	if r == nil {
		return
	}
	given := func(to *int64, from int64) {
		if from != 0 {
			*to = from
		}
	}
	given(&to.CPUShares, r.CpuShares)
	given(&to.CPUQuota, r.CpuQuota)
	given(&to.CPUPeriod, r.CpuPeriod)
	given(&to.Memory, r.MemoryLimitInBytes)
	given(&to.MemorySwap, r.MemorySwapLimitInBytes)
	if r.CpusetCpus != "" {
		to.CpusetCPUs = r.CpusetCpus
	}
	if r.CpusetMems != "" {
		to.CpusetMems = r.CpusetMems
	}
	adj := int(r.OomScoreAdj)
	to.OOMScoreAdj = &adj
	for _, h := range r.HugepageLimits {
		if to.HugePages == nil {
			to.HugePages = map[string]uint64{}
		}
		to.HugePages[h.PageSize] = h.Limit
	}
	if len(r.Unified) > 0 {
		to.Unified = r.Unified
	}
}

// resourcesOf is applyResources the other way round.
func resourcesOf(r engine.Resources) *runtimeapi.ContainerResources {
	out := &runtimeapi.LinuxContainerResources{CpuShares: r.CPUShares, CpuQuota: r.CPUQuota, CpuPeriod: r.CPUPeriod,
		MemoryLimitInBytes: r.Memory, MemorySwapLimitInBytes: r.MemorySwap, CpusetCpus: r.CpusetCPUs, CpusetMems: r.CpusetMems, Unified: r.Unified}
	if r.OOMScoreAdj != nil {
		out.OomScoreAdj = int64(*r.OOMScoreAdj)
	}
	for size, limit := range r.HugePages {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: size, Limit: limit})
	}
	return &runtimeapi.ContainerResources{Linux: out}
}
