package kube

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
)

// noPodCgroups answers for the cgroups of pods, of which there are none: limits
// are the containers' (CgroupsPerQOS is off). The kubelet's own answer is nil,
// which it does not expect itself where it changes a running pod's resources:
// it panics, and with it the whole process.
type noPodCgroups struct{ cm.ContainerManager }

// NewPodContainerManager implements cm.ContainerManager.
func (m noPodCgroups) NewPodContainerManager() cm.PodContainerManager {
	return emptyPodCgroups{m.ContainerManager.NewPodContainerManager()}
}

type emptyPodCgroups struct{ cm.PodContainerManager }

// GetPodCgroupConfig implements cm.PodContainerManager: nothing is limited.
func (emptyPodCgroups) GetPodCgroupConfig(*v1.Pod, v1.ResourceName) (*cm.ResourceConfig, error) {
	return &cm.ResourceConfig{Memory: new(int64), CPUQuota: new(int64), CPUPeriod: new(uint64), CPUShares: new(uint64)}, nil
}
