package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// CreateContainer makes a container in a pod.
func (s *Service) CreateContainer(ctx context.Context, podID string, config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	p, err := s.pod(ctx, podID)
	if err != nil {
		return "", err
	}
	if p.State != engine.PodReady {
		return "", asStatus(fault.New(fault.Conflict, "pod %s is not running", p.ID))
	}
	spec, err := containerSpec(config)
	if err != nil {
		return "", asStatus(err)
	}
	if err := checkUsers(config, p.Spec.Users); err != nil {
		return "", asStatus(err)
	}
	if spec.PIDTarget != "" {
		target, err := s.container(ctx, spec.PIDTarget)
		if err != nil {
			return "", err
		}
		if target.PodID != p.ID {
			return "", asStatus(fault.New(fault.Invalid, "container %s, whose processes are to be seen, is of another pod", target.ID))
		}
	}
	release, err := s.making.hold(fmt.Sprintf("container %s (attempt %d) of pod %s", spec.Name, spec.Attempt, p.ID), func() bool {
		return slices.ContainsFunc(s.opt.Engine.Containers(ctx, engine.OwnerCRI), func(c engine.Container) bool {
			return c.PodID == p.ID && c.Spec.Name == spec.Name && c.Spec.Attempt == spec.Attempt
		})
	})
	if err != nil {
		return "", err
	}
	defer release()
	c, err := s.opt.Engine.CreateContainer(ctx, p.ID, spec)
	return c.ID, asStatus(err)
}

// StartContainer starts a created container.
func (s *Service) StartContainer(ctx context.Context, id string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	c, err := s.container(ctx, id)
	if err != nil {
		return err
	}
	// The engine would start an exited one again; here each start is a container of its own.
	if c.State != engine.StateCreated {
		return asStatus(fault.New(fault.Conflict, "container %s is %s, not created", c.ID, c.State))
	}
	return asStatus(s.opt.Engine.StartContainer(ctx, c.ID))
}

// StopContainer stops a container within timeout seconds. Idempotent.
func (s *Service) StopContainer(ctx context.Context, id string, timeout int64) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	c, err := s.container(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return asStatus(s.opt.Engine.StopContainer(ctx, c.ID, time.Duration(timeout)*time.Second))
}

// noLog is where a container without a log is said to have it. To "" the
// kubelet, which removes a container's log with all files whose names begin like
// it, would take those of its working directory: of a machine's root, /bin.
const noLog = "/nonexistent/"

// RemoveContainer removes a container, killing it if it runs. Idempotent.
func (s *Service) RemoveContainer(ctx context.Context, id string) error {
	leave, err := s.gate.enter()
	if err != nil {
		return err
	}
	defer leave()
	c, err := s.container(ctx, id)
	if err != nil {
		return ignoreNotFound(err)
	}
	return asStatus(s.opt.Engine.RemoveContainer(ctx, c.ID, true))
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
		Labels: c.Spec.Labels, Annotations: c.Spec.Annotations, LogPath: cmp.Or(c.LogPath, noLog+c.ID), Resources: resourcesOf(c.Spec.Resources),
	}
	stop := c.Spec.StopSignal
	if img, err := s.opt.Engine.Images().Image(ctx, c.ImageID); err == nil {
		stop = cmp.Or(stop, img.Config.StopSignal)
		if names := img.RepoTags(); len(names) > 0 {
			st.Image.Image = names[0]
		}
		if digests := img.RepoDigests(); len(digests) > 0 {
			st.ImageRef = digests[0]
		}
	}
	if c.PID != 0 {
		if table, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.PID), "status")); err == nil { // else it has just ended
			st.User = userOf(string(table))
		}
	}
	st.StopSignal = signalOf(cmp.Or(stop, "SIGTERM"))
	for _, m := range c.Spec.Mounts {
		st.Mounts = append(st.Mounts, mountOf(m))
	}
	return st
}

// userOf reads who a process is from /proc/PID/status. Groups hold the primary
// one, as `id -G` does; nil if the table does not say.
func userOf(table string) *runtimeapi.ContainerUser {
	var user runtimeapi.LinuxContainerUser
	found := false
	for line := range strings.Lines(table) {
		name, value, _ := strings.Cut(line, ":")
		var ids []int64
		switch name {
		case "Uid", "Gid", "Groups":
			for _, field := range strings.Fields(value) {
				id, err := strconv.ParseInt(field, 10, 64)
				if err != nil {
					return nil
				}
				ids = append(ids, id)
			}
		}
		// Real, effective, saved and file system's; the effective one counts.
		switch {
		case name == "Uid" && len(ids) > 1:
			user.Uid, found = ids[1], true
		case name == "Gid" && len(ids) > 1:
			user.Gid = ids[1]
		case name == "Groups":
			user.SupplementalGroups = ids
		}
	}
	if !found {
		return nil
	}
	if !slices.Contains(user.SupplementalGroups, user.Gid) {
		user.SupplementalGroups = append(user.SupplementalGroups, user.Gid)
	}
	slices.Sort(user.SupplementalGroups)
	return &runtimeapi.ContainerUser{Linux: &user}
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
	limits.HugePages = maps.Clone(limits.HugePages)
	applyResources(&limits, r.GetLinux())
	if r.GetLinux().GetOomScoreAdj() == 0 {
		limits.OOMScoreAdj = c.Spec.Resources.OOMScoreAdj // set when it started
	}
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
