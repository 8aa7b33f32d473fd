package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// GetContainerEvents sends every container's and pod's changes until ctx ends.
func (s *Service) GetContainerEvents(ctx context.Context, out chan *runtimeapi.ContainerEventResponse, established func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	events := s.opt.Engine.Subscribe(ctx)
	if established != nil {
		established(nil)
	}
	return s.sendEvents(ctx, events, func(r *runtimeapi.ContainerEventResponse) error {
		select {
		case out <- r:
		case <-ctx.Done():
		}
		return nil
	})
}

// sendEvents translates events until they end, which is an error: after
// missing some, the caller must begin again.
func (s *Service) sendEvents(ctx context.Context, events <-chan engine.Event, send func(*runtimeapi.ContainerEventResponse) error) error {
	for ev := range events {
		if r := s.event(ctx, ev); r != nil {
			if err := send(r); err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return asStatus(fault.New(fault.Unavailable, "events were read too slowly and some are lost"))
}

var eventTypes = map[engine.EventType]runtimeapi.ContainerEventType{
	engine.EventCreated: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	engine.EventStarted: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	engine.EventExited:  runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	engine.EventDeleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
	engine.EventPodUp:   runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	engine.EventPodDown: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	engine.EventPodGone: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func (s *Service) event(ctx context.Context, ev engine.Event) *runtimeapi.ContainerEventResponse {
	kind, known := eventTypes[ev.Type]
	if !known || ev.Pod.Spec.Owner != engine.OwnerCRI {
		return nil
	}
	r := &runtimeapi.ContainerEventResponse{ContainerId: ev.Pod.ID, ContainerEventType: kind, CreatedAt: nanos(ev.Time), PodSandboxStatus: podStatus(ev.Pod)}
	if ev.Container != nil {
		r.ContainerId = ev.Container.ID
	}
	r.ContainersStatuses = s.containerStatuses(ctx, ev.Pod.ID)
	return r
}

func (s *Service) containerStatuses(ctx context.Context, podID string) (out []*runtimeapi.ContainerStatus) {
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerCRI) {
		if c.PodID == podID {
			out = append(out, s.containerStatus(ctx, c))
		}
	}
	return out
}

// PodChanges returns the UID of a pod whenever it or one of its containers has
// changed, and those of all pods where changes may have been missed. The
// channel is closed once ctx ends.
func (s *Service) PodChanges(ctx context.Context) <-chan string {
	out := make(chan string)
	send := func(p engine.Pod) {
		if p.Spec.Owner != engine.OwnerCRI {
			return
		}
		select {
		case out <- p.Spec.UID:
		case <-ctx.Done():
		}
	}
	events := s.opt.Engine.Subscribe(ctx)
	go func() {
		defer close(out)
		for {
			for ev := range events {
				send(ev.Pod)
			}
			if ctx.Err() != nil {
				return
			}
			events = s.opt.Engine.Subscribe(ctx)
			for _, p := range s.opt.Engine.Pods(ctx, engine.OwnerCRI) {
				send(p)
			}
		}
	}()
	return out
}
