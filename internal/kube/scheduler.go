package kube

import (
	"context"

	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// startScheduler starts the scheduler with its default profile.
func (c *Cluster) startScheduler(_, run context.Context) error {
	config, err := latest.Default()
	if err != nil {
		return err
	}
	clientConfig := c.configOf(scheduling)
	client, err := clientset.NewForConfig(clientConfig)
	if err != nil {
		return err
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	informers := scheduler.NewInformerFactory(client, 0, nil)
	sched, err := scheduler.New(run, client, informers, nil, profile.NewRecorderFactory(broadcaster),
		scheduler.WithComponentConfigVersion(config.APIVersion), scheduler.WithKubeConfig(clientConfig),
		scheduler.WithProfiles(config.Profiles...))
	if err != nil {
		return err
	}
	c.goRun(run, "scheduler", func(ctx context.Context) error {
		if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
			return err
		}
		informers.StartWithContext(ctx)
		informers.WaitForCacheSyncWithContext(ctx)
		if err := sched.WaitForHandlersSync(ctx); err != nil {
			return err
		}
		sched.Run(ctx)
		informers.Shutdown()
		broadcaster.Shutdown()
		return nil
	})
	return nil
}
