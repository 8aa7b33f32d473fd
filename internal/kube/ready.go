package kube

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ferryos/ferry/internal/fault"
)

// WaitReady waits until pods can be run: the kubelet of this start has reported
// the node as ready and knows the pods of earlier ones, nothing keeps pods off
// the node and the default service account exists.
func (c *Cluster) WaitReady(ctx context.Context) error {
	last := "nothing was heard of the node"
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		why, err := c.notReady(ctx)
		if err == nil && why == "" {
			return c.tunables.restore()
		}
		if why != "" {
			last = why
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case err := <-c.failed:
			return err
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "the node is not ready after %v: %s", readyTime, last).Hint("the log tells more; see `ferry doctor`")
		}
	}
}

// notReady says what is still missing, "" for nothing.
func (c *Cluster) notReady(ctx context.Context) (string, error) {
	node, err := c.client.CoreV1().Nodes().Get(ctx, c.opt.NodeName, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return "", err
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type != v1.NodeReady {
			continue
		}
		// API times have whole seconds.
		if cond.LastHeartbeatTime.Time.Before(c.started.Truncate(time.Second)) {
			return "the kubelet has not reported since this start", nil
		}
		if cond.Status != v1.ConditionTrue {
			return cond.Message, nil
		}
		for _, taint := range node.Spec.Taints {
			// Others are its owner's wish (kubectl cordon), or pressure that may last: no reason to wait.
			if taint.Key == v1.TaintNodeNotReady {
				return fmt.Sprintf("it has the taint %s", taint.Key), nil
			}
		}
		if _, err := c.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
			return "the default service account does not exist yet", nil
		}
		return c.unknownPod(ctx)
	}
	return "it has no Ready condition", nil
}

// unknownPod names a pod of this node of which the kubelet has not heard yet
// since it started: until then it would deny it to `kubectl exec`.
func (c *Cluster) unknownPod(ctx context.Context) (string, error) {
	pods, err := c.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: "spec.nodeName=" + c.opt.NodeName, ResourceVersion: "0"})
	if err != nil {
		return "", err
	}
	for _, p := range pods.Items {
		if _, known := c.kubelet.GetPodByName(p.Namespace, p.Name); !known {
			return fmt.Sprintf("the kubelet has not heard of pod %s/%s yet", p.Namespace, p.Name), nil
		}
	}
	return "", nil
}
