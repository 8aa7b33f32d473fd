package cri_test

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMetrics: each value has a descriptor with as many labels, and they tell of what runs.
func TestMetrics(t *testing.T) {
	_, service := newService(t)
	ctx := t.Context()
	config := sandbox(t, "p")
	podID, err := service.RunPodSandbox(ctx, config, "")
	if err != nil {
		t.Fatal(err)
	}
	id, err := service.CreateContainer(ctx, podID, shell("c", "sleep 1000"), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := service.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	descriptors, err := service.ListMetricDescriptors(ctx)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, d := range descriptors {
		labels[d.Name] = len(d.LabelKeys)
	}
	pods, err := service.ListPodSandboxMetrics(ctx)
	if err != nil || len(pods) != 1 || pods[0].PodSandboxId != podID || len(pods[0].ContainerMetrics) != 1 || pods[0].ContainerMetrics[0].ContainerId != id {
		t.Fatalf("%v, %v", pods, err)
	}
	values := map[string]uint64{}
	for _, m := range slices.Concat(pods[0].Metrics, pods[0].ContainerMetrics[0].Metrics) {
		if n, described := labels[m.Name]; !described || n != len(m.LabelValues) {
			t.Errorf("%s has labels %v, its descriptor %d", m.Name, m.LabelValues, n)
		}
		values[m.Name] = m.Value.GetValue()
	}
	for _, name := range []string{"container_memory_usage_bytes", "container_start_time_seconds", "container_processes"} {
		if values[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	if len(values) != len(descriptors) {
		t.Errorf("%d of %d described metrics have a value", len(values), len(descriptors))
	}
}

// TestMountOptions: an option of a mount holds, one that the interface does not have is refused.
func TestMountOptions(t *testing.T) {
	_, service := newService(t)
	ctx := t.Context()
	pod := sandbox(t, "p")
	podID, err := service.RunPodSandbox(ctx, pod, "")
	if err != nil {
		t.Fatal(err)
	}
	config := shell("c", "cp /bin/busybox /m/true; /m/true; echo $? > /m/code; sleep 1000")
	mount := &runtimeapi.Mount{HostPath: t.TempDir(), ContainerPath: "/m", MountOptions: []string{"noexec", "nosuid"}}
	config.Mounts = []*runtimeapi.Mount{mount}
	id, err := service.CreateContainer(ctx, podID, config, pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := service.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	out, _, err := service.ExecSync(ctx, id, []string{"sh", "-c", "until [ -s /m/code ]; do sleep 0.1; done; cat /m/code"}, 0)
	if err != nil || string(out) != "126\n" {
		t.Errorf("a program below noexec ended with %q, %v", out, err)
	}
	config.Metadata.Name, mount.MountOptions = "d", []string{"lazytime"}
	if _, err := service.CreateContainer(ctx, podID, config, pod); err == nil {
		t.Error("option lazytime is accepted")
	}
}
