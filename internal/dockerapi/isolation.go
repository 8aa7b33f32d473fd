package dockerapi

import (
	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// Defaults are what containers get that ask for nothing else.
type Defaults struct {
	UserNamespaces bool  // a user namespace of their own
	PidsLimit      int64 // processes and threads; 0: no limit
}

// ownUsers reports whether a container asks for a user namespace of its own.
// docker's command knows "host" alone, podman has the other two words.
func ownUsers(mode container.UsernsMode) bool { return mode == "private" || mode == "auto" }

// isolate applies the defaults.
func (p *plan) isolate(h container.HostConfig, d Defaults) error {
	if h.PidsLimit == nil || *h.PidsLimit == 0 { // docker's command sends 0 for nothing said
		p.container.Resources.Pids = d.PidsLimit
	}
	p.pod.AutoUsers = ownUsers(h.UsernsMode) || h.UsernsMode == "" && d.UserNamespaces
	if !p.pod.AutoUsers {
		return nil
	}
	for _, bad := range []struct {
		is   bool
		says string
	}{
		{h.Privileged, "privileged mode is incompatible with user namespaces"},
		{p.pod.Network == engine.ModeHost, "cannot share the host's network namespace when user namespaces are enabled"},
		{p.container.PID == engine.ModeHost, "cannot share the host PID namespace when user namespaces are enabled"},
		{p.pod.IPC == engine.ModeHost, "cannot share the host's IPC namespace when user namespaces are enabled"},
	} {
		if bad.is {
			return fault.New(fault.Invalid, "%s", bad.says).Hint("give the container --userns=host")
		}
	}
	return nil
}

// mapVolumes has volumes, which are the container's own, keep the owners that
// it gives their files. Paths of the host keep those that the host gave.
func (p *plan) mapVolumes() {
	for i, m := range p.container.Mounts {
		if _, volume := p.volumes[m.Destination]; volume {
			p.container.Mounts[i].IDMap = p.pod.AutoUsers
		}
	}
}

// securityOptions are what /info says of the defaults.
func (s *Server) securityOptions() []string {
	options := []string{"name=seccomp,profile=builtin"}
	if s.opt.Engine.AppArmor() {
		options = append(options, "name=apparmor")
	}
	if s.opt.Defaults.UserNamespaces {
		options = append(options, "name=userns")
	}
	return options
}
