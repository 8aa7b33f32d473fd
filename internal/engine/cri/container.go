package cri

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// CreateContainer makes a container in a pod.
func (s *Service) CreateContainer(ctx context.Context, podID string, config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	p, err := s.pod(ctx, podID)
	if err != nil {
		return "", err
	}
	spec, err := containerSpec(config, p.Spec)
	if err != nil {
		return "", asStatus(err)
	}
	c, err := s.opt.Engine.CreateContainer(ctx, p.ID, spec)
	return c.ID, asStatus(err)
}

// StartContainer starts a created container.
func (s *Service) StartContainer(ctx context.Context, id string) error {
	if _, err := s.container(ctx, id); err != nil {
		return err
	}
	return asStatus(s.opt.Engine.StartContainer(ctx, id))
}

// StopContainer stops a container within timeout seconds. Idempotent.
func (s *Service) StopContainer(ctx context.Context, id string, timeout int64) error {
	return asStatus(s.opt.Engine.StopContainer(ctx, id, time.Duration(timeout)*time.Second))
}

// RemoveContainer removes a container, killing it if it runs. Idempotent.
func (s *Service) RemoveContainer(ctx context.Context, id string) error {
	return asStatus(s.opt.Engine.RemoveContainer(ctx, id, true))
}

// ListContainers returns the containers that a filter lets through.
func (s *Service) ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	var out []*runtimeapi.Container
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerCRI) {
		if f != nil && (!strings.HasPrefix(c.ID, f.Id) || !strings.HasPrefix(c.PodID, f.PodSandboxId) ||
			f.State != nil && f.State.State != containerState(c.State) || !matches(c.Spec.Labels, f.LabelSelector)) {
			continue
		}
		out = append(out, &runtimeapi.Container{Id: c.ID, PodSandboxId: c.PodID, Metadata: containerMetadata(c),
			Image: &runtimeapi.ImageSpec{Image: c.Spec.Image}, ImageRef: c.ImageID, ImageId: c.ImageID, State: containerState(c.State),
			CreatedAt: nanos(c.CreatedAt), Labels: c.Spec.Labels, Annotations: c.Spec.Annotations})
	}
	return out, nil
}

// ContainerStatus returns a container's state.
func (s *Service) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.container(ctx, id)
	if err != nil {
		return nil, err
	}
	r := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(ctx, c)}
	if verbose {
		info, err := json.Marshal(c)
		if err != nil {
			return nil, asStatus(err)
		}
		r.Info = map[string]string{"info": string(info)}
	}
	return r, nil
}

func (s *Service) containerStatus(ctx context.Context, c engine.Container) *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: containerMetadata(c), State: containerState(c.State), CreatedAt: nanos(c.CreatedAt),
		StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt), ExitCode: int32(c.ExitCode),
		Image: &runtimeapi.ImageSpec{Image: c.Spec.Image}, ImageRef: c.ImageID, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: c.Spec.Labels, Annotations: c.Spec.Annotations, LogPath: c.LogPath, Resources: resourcesOf(c.Spec.Resources),
	}
	if img, err := s.opt.Engine.Images().Image(ctx, c.ImageID); err == nil {
		if names := img.RepoTags(); len(names) > 0 {
			st.Image.Image = names[0]
		}
		if digests := img.RepoDigests(); len(digests) > 0 {
			st.ImageRef = digests[0]
		}
	}
	for _, m := range c.Spec.Mounts {
		st.Mounts = append(st.Mounts, mountOf(m))
	}
	return st
}

func containerMetadata(c engine.Container) *runtimeapi.ContainerMetadata {
	return &runtimeapi.ContainerMetadata{Name: c.Spec.Name, Attempt: c.Spec.Attempt}
}

func containerState(s engine.ContainerState) runtimeapi.ContainerState {
	switch s {
	case engine.StateCreated:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case engine.StateRunning, engine.StatePaused:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	default:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
}

// UpdateContainerResources changes the limits that are given.
func (s *Service) UpdateContainerResources(ctx context.Context, id string, r *runtimeapi.ContainerResources) error {
	c, err := s.container(ctx, id)
	if err != nil {
		return err
	}
	if c.State == engine.StateExited {
		return asStatus(fault.New(fault.Conflict, "container %s has exited", id))
	}
	limits := c.Spec.Resources
	applyResources(&limits, r.GetLinux())
	return asStatus(s.opt.Engine.UpdateContainer(ctx, id, limits))
}

// ReopenContainerLog has the log written to its path anew.
func (s *Service) ReopenContainerLog(ctx context.Context, id string) error {
	c, err := s.container(ctx, id)
	if err != nil {
		return err
	}
	if c.State != engine.StateRunning && c.State != engine.StatePaused {
		return asStatus(fault.New(fault.Conflict, "container %s is not running", id))
	}
	return asStatus(s.opt.Engine.ReopenLog(ctx, id))
}

// CheckpointContainer is not supported.
func (s *Service) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) error {
	return asStatus(errNoCheckpoint)
}

// GetContainerEvents sends every container's and pod's changes until ctx ends.
func (s *Service) GetContainerEvents(ctx context.Context, out chan *runtimeapi.ContainerEventResponse, established func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	events := s.opt.Engine.Subscribe(ctx)
	if established != nil {
		established(nil)
	}
	for ev := range events {
		if r := s.event(ctx, ev); r != nil {
			select {
			case out <- r:
			case <-ctx.Done():
			}
		}
	}
	return ctx.Err()
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
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerCRI) {
		if c.PodID == ev.Pod.ID {
			r.ContainersStatuses = append(r.ContainersStatuses, s.containerStatus(ctx, c))
		}
	}
	return r
}

// PodChanges returns the UID of a pod whenever it or one of its containers has
// changed. The channel is closed once ctx ends.
func (s *Service) PodChanges(ctx context.Context) <-chan string {
	out := make(chan string)
	events := s.opt.Engine.Subscribe(ctx)
	go func() {
		defer close(out)
		for ev := range events {
			if ev.Pod.Spec.Owner != engine.OwnerCRI {
				continue
			}
			select {
			case out <- ev.Pod.Spec.UID:
			case <-ctx.Done():
			}
		}
	}()
	return out
}
