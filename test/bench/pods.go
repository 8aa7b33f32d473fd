package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ferryos/ferry/test/machine"
)

// podRuns is how many pods are measured, one after the other.
const podRuns = 30

// busyboxImage builds the image "box" of the machine's static busybox.
func busyboxImage(m *machine.Machine) error {
	dir := filepath.Join(m.Dir, "box")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	file := "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "busybox"), data, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644); err != nil {
		return err
	}
	_, err = m.Run("ferry", "build", "-q", "-t", "box", dir)
	return err
}

// pods measures pods with the default service account's volume and a program
// that ends as soon as it is told to, from the client's call to what its watch sees.
func (b *bench) pods(ctx context.Context, m *machine.Machine) error {
	config, err := clientcmd.BuildConfigFromFlags("", m.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	var started, gone durations
	for i := range podRuns {
		up, down, err := onePod(ctx, client, fmt.Sprintf("bench-%d", i))
		if err != nil {
			return err
		}
		started, gone = append(started, up), append(gone, down)
	}
	p95 := func(d durations) string { return d.String() + ", p95 " + show(d.quantile(0.95)) }
	b.add("pod create → Running, image present, default service-account volume", "p50 ≤ 110 ms", p95(started), "")
	b.add("pod delete → gone, process that exits at once", "p50 ≤ 400 ms", p95(gone), "")
	return nil
}

func onePod(ctx context.Context, client kubernetes.Interface, name string) (up, down time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pods := client.CoreV1().Pods("default")
	events, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, 0, err
	}
	defer events.Stop()
	begin := time.Now()
	_, err = pods.Create(ctx, &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{Containers: []v1.Container{{
		Name: "c", Image: "box", ImagePullPolicy: v1.PullNever,
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"}}}}}, metav1.CreateOptions{})
	if err != nil {
		return 0, 0, err
	}
	if err := until(events, func(ev watch.Event) bool {
		pod, ok := ev.Object.(*v1.Pod)
		return ok && pod.Status.Phase == v1.PodRunning && len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Running != nil
	}); err != nil {
		return 0, 0, fmt.Errorf("pod %s to run: %w", name, err)
	}
	up = time.Since(begin)
	time.Sleep(300 * time.Millisecond) // let the shell set its trap, and what follows a start ebb away
	begin = time.Now()
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return 0, 0, err
	}
	if err := until(events, func(ev watch.Event) bool { return ev.Type == watch.Deleted }); err != nil {
		return 0, 0, fmt.Errorf("pod %s to go: %w", name, err)
	}
	return up, time.Since(begin), nil
}

func until(events watch.Interface, done func(watch.Event) bool) error {
	for ev := range events.ResultChan() {
		if done(ev) {
			return nil
		}
	}
	return fmt.Errorf("the watch ended first")
}

// idle measures the daemon at rest: 30 s after now, then the processor time of 30 s more.
func (b *bench) idle(m *machine.Machine, what, memoryBar, cpuBar string) error {
	time.Sleep(30 * time.Second)
	pid := m.PID()
	before, err := cpuTime(pid)
	if err != nil {
		return err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	field := func(name string) int {
		var kb int
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				_, _ = fmt.Sscanf(rest, "%d", &kb) // the kernel's own format
			}
		}
		return kb / 1024
	}
	const window = 30 * time.Second
	time.Sleep(window)
	after, err := cpuTime(pid)
	if err != nil {
		return err
	}
	b.add("RSS of "+what, memoryBar, fmt.Sprintf("%d MB (%d anonymous, %d of the program's file)", field("VmRSS"), field("RssAnon"), field("RssFile")), "")
	b.add("CPU of "+what, cpuBar, fmt.Sprintf("%.1f %% of a core over 30 s", 100*(after-before).Seconds()/window.Seconds()), "")
	return nil
}

// cpuTime is the processor time that a process has used, in steps of 10 ms (proc(5), utime and stime).
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	var user, system int
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
