package cri

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// namespaceModes translates a sandbox's namespaces.
func namespaceModes(o *runtimeapi.NamespaceOption) (network, pid, ipc engine.NamespaceMode, err error) {
	// Its zero value means "the pod's own", so only one that is there counts.
	if u := o.GetUsernsOptions(); u != nil && u.Mode != runtimeapi.NamespaceMode_NODE {
		return "", "", "", fault.New(fault.Unsupported, "user namespaces are not supported").
			Hint("remove hostUsers: false from the pod")
	}
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

// namespaceOptions is namespaceModes the other way round.
func namespaceOptions(s engine.PodSpec) *runtimeapi.NamespaceOption {
	back := map[engine.NamespaceMode]runtimeapi.NamespaceMode{
		engine.ModePod: runtimeapi.NamespaceMode_POD, engine.ModeHost: runtimeapi.NamespaceMode_NODE,
		engine.ModeContainer: runtimeapi.NamespaceMode_CONTAINER,
	}
	return &runtimeapi.NamespaceOption{Network: back[s.Network], Pid: back[s.PID], Ipc: back[s.IPC]}
}
