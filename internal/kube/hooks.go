package kube

import (
	"context"
	"fmt"
	"reflect"
	"time"
	"unsafe"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/pleg"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"
	volumetypes "k8s.io/kubernetes/pkg/volume/util/types"
)

// The kubelet polls where a slow runtime is expected. These hooks reach into
// its unexported fields, once, before it runs; a field that is not there (a new
// Kubernetes) fails the start rather than be silently without effect. Why each,
// with figures: docs/adr/002-kubelet-hooks.md.
const (
	volumeLoop = 10 * time.Millisecond // upstream 100 ms
	volumePoll = 3 * time.Millisecond  // upstream 300 ms
)

func (c *Cluster) hook(run context.Context, k *kubelet.Kubelet) error {
	root := reflect.ValueOf(k).Elem()
	if err := replace(root, func(h kubecontainer.RuntimeHelper) kubecontainer.RuntimeHelper { return quietHelper{h} },
		"containerRuntime", "runtimeHelper"); err != nil {
		return err
	}
	for _, path := range [][]string{
		{"volumeManager", "desiredStateOfWorldPopulator", "loopSleepDuration"}, {"volumeManager", "reconciler", "loopSleepDuration"},
	} {
		if err := replace(root, func(time.Duration) time.Duration { return volumeLoop }, path...); err != nil {
			return err
		}
	}
	if err := replace(root, func(m volumemanager.VolumeManager) volumemanager.VolumeManager {
		return &quickVolumes{VolumeManager: m}
	},
		"volumeManager"); err != nil {
		return err
	}
	var events *pleg.GenericPLEG
	if err := replace(root, func(p pleg.PodLifecycleEventGenerator) pleg.PodLifecycleEventGenerator {
		events, _ = p.(*pleg.GenericPLEG)
		return p
	}, "pleg"); err != nil {
		return err
	}
	if events == nil {
		return fmt.Errorf("kubelet: the pod lifecycle event generator is of another type")
	}
	relist := func(uid types.UID) { events.RequestRelist(klog.FromContext(run), uid) }
	if err := replace(root, func(c kubecontainer.ROCache) kubecontainer.ROCache { return promptCache{c, relist} },
		"podWorkers", "podCache"); err != nil {
		return err
	}
	c.parts.Go(func() {
		for uid := range c.opt.PodChanged(run) {
			relist(types.UID(uid))
		}
	})
	return nil
}

// replace sets the unexported field at the end of a path of fields, following
// interfaces and pointers, to what f makes of its value.
func replace[T any](v reflect.Value, f func(T) T, path ...string) error {
	for i, name := range path {
		for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct || !v.FieldByName(name).IsValid() || !v.FieldByName(name).CanAddr() {
			return fmt.Errorf("kubelet: no field %v in this Kubernetes (at %d)", path, i)
		}
		v = v.FieldByName(name)
		// Fields that are not exported cannot be read through reflect as they are.
		v = reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
	}
	if v.Type() != reflect.TypeFor[T]() {
		return fmt.Errorf("kubelet: field %v is of type %v, not %v", path, v.Type(), reflect.TypeFor[T]())
	}
	v.Set(reflect.ValueOf(f(v.Interface().(T))))
	return nil
}

// quietHelper leaves out the kubelet's early write of PodReadyToStartContainers:
// it reads and writes the pod's status in a goroutine of its own and can undo a
// later write that says Running, which leaves a fast pod at ContainerCreating
// until the next sync. The ordinary sync sets the condition as well.
type quietHelper struct{ kubecontainer.RuntimeHelper }

// OnPodSandboxReady implements kubecontainer.RuntimeHelper.
func (quietHelper) OnPodSandboxReady(context.Context, *v1.Pod) error { return nil }

// promptCache asks for a look at the pod that somebody waits for a newer status
// of: the pod's worker does between terminating and terminated, twice, and would
// wait for the next look at all pods, a second apart.
type promptCache struct {
	kubecontainer.ROCache
	relist func(types.UID)
}

// GetNewerThan implements kubecontainer.ROCache.
func (p promptCache) GetNewerThan(id types.UID, minTime time.Time) (*kubecontainer.PodStatus, error) {
	p.relist(id)
	return p.ROCache.GetNewerThan(id, minTime)
}

// quickVolumes looks every few milliseconds whether a pod's volumes are
// mounted, before it leaves the waiting, and all errors, to the kubelet's own.
type quickVolumes struct{ volumemanager.VolumeManager }

// patience is how long quickVolumes looks: what takes longer is not helped by looking often.
const patience = 2 * time.Second

// WaitForAttachAndMount implements volumemanager.VolumeManager.
func (q *quickVolumes) WaitForAttachAndMount(ctx context.Context, pod *v1.Pod) error {
	// A volume that no container mounts is not mounted either.
	mounts, devices, _ := volumeutil.GetPodVolumeNames(pod, false)
	expected := len(mounts.Union(devices))
	q.watch(ctx, func() bool {
		return len(q.GetMountedVolumesForPod(volumetypes.UniquePodName(pod.UID))) >= expected
	})
	return q.VolumeManager.WaitForAttachAndMount(ctx, pod)
}

// WaitForUnmount implements volumemanager.VolumeManager.
func (q *quickVolumes) WaitForUnmount(ctx context.Context, pod *v1.Pod) error {
	q.watch(ctx, func() bool { return !q.HasPossiblyMountedVolumesForPod(volumetypes.UniquePodName(pod.UID)) })
	return q.VolumeManager.WaitForUnmount(ctx, pod)
}

func (q *quickVolumes) watch(ctx context.Context, done func() bool) {
	tick := time.NewTicker(volumePoll)
	defer tick.Stop()
	end := time.After(patience)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}
