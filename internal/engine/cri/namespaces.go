package cri

import (
	"reflect"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// namespaceModes translates a sandbox's namespaces.
func namespaceModes(o *runtimeapi.NamespaceOption) (network, pid, ipc engine.NamespaceMode, err error) {
	if network, err = namespaceMode("network", o.GetNetwork()); err != nil {
		return
	}
	if ipc, err = namespaceMode("IPC", o.GetIpc()); err != nil {
		return
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET:
		pid = engine.ModeContainer
	case runtimeapi.NamespaceMode_NODE:
		pid = engine.ModeHost
	default:
		pid = engine.ModePod
	}
	return
}

func namespaceMode(what string, m runtimeapi.NamespaceMode) (engine.NamespaceMode, error) {
	switch m {
	case runtimeapi.NamespaceMode_POD:
		return engine.ModePod, nil
	case runtimeapi.NamespaceMode_NODE:
		return engine.ModeHost, nil
	default:
		return "", fault.New(fault.Invalid, "the %s namespace of a pod is the pod's or the node's, not %s", what, m)
	}
}

// users translates a sandbox's user namespace; nil is the node's.
func users(u *runtimeapi.UserNamespace) (*engine.Users, error) {
	// Its zero value means "the pod's own", so only one that is there counts.
	if u == nil || u.Mode == runtimeapi.NamespaceMode_NODE {
		return nil, nil
	}
	if u.Mode != runtimeapi.NamespaceMode_POD {
		return nil, fault.New(fault.Invalid, "the user namespace of a pod is the pod's or the node's, not %s", u.Mode)
	}
	return &engine.Users{UIDs: idMaps(u.Uids), GIDs: idMaps(u.Gids)}, nil
}

func idMaps(in []*runtimeapi.IDMapping) []engine.IDMap {
	var out []engine.IDMap
	for _, m := range in {
		out = append(out, engine.IDMap{Inside: m.GetContainerId(), Host: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

// checkUsers refuses a container that has other ids than its pod.
func checkUsers(c *runtimeapi.ContainerConfig, pod *engine.Users) error {
	if u := c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); u != nil {
		own, err := users(u)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(own, pod) {
			return fault.New(fault.Invalid, "container %s has another user namespace than its pod", c.GetMetadata().GetName())
		}
	}
	for _, m := range c.GetMounts() {
		if len(m.GetUidMappings()) == 0 {
			continue
		}
		if own := (&engine.Users{UIDs: idMaps(m.UidMappings), GIDs: idMaps(m.GidMappings)}); !reflect.DeepEqual(own, pod) {
			return fault.New(fault.Invalid, "mount %s: its ids are not mapped as the pod's", m.ContainerPath)
		}
	}
	return nil
}

// usersOf is users the other way round.
func usersOf(u *engine.Users) *runtimeapi.UserNamespace {
	if u == nil {
		return nil
	}
	back := func(in []engine.IDMap) (out []*runtimeapi.IDMapping) {
		for _, m := range in {
			out = append(out, &runtimeapi.IDMapping{ContainerId: m.Inside, HostId: m.Host, Length: m.Size})
		}
		return out
	}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: back(u.UIDs), Gids: back(u.GIDs)}
}

// namespaceOptions is namespaceModes the other way round.
func namespaceOptions(s engine.PodSpec) *runtimeapi.NamespaceOption {
	back := map[engine.NamespaceMode]runtimeapi.NamespaceMode{
		engine.ModePod: runtimeapi.NamespaceMode_POD, engine.ModeHost: runtimeapi.NamespaceMode_NODE,
		engine.ModeContainer: runtimeapi.NamespaceMode_CONTAINER,
	}
	return &runtimeapi.NamespaceOption{Network: back[s.Network], Pid: back[s.PID], Ipc: back[s.IPC], UsernsOptions: usersOf(s.Users)}
}
