package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) containerCreate(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var body json.RawMessage
	if err := readJSON(r, &body); err != nil {
		return err
	}
	req, err := parseCreate(body)
	if err != nil {
		return err
	}
	if req.Config == nil || req.Image == "" {
		return fault.New(fault.Invalid, "container create: no image given")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if err := checkPlatform(r); err != nil {
		return err
	}
	image, err := s.opt.Engine.Images().Image(ctx, req.Image)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "No such image: %s", withTag(req.Image)).
			Hint("build it with `ferry build`, load it with `ferry load`, or pull it with `ferry pull`")
	}
	if err != nil {
		return err
	}
	name, release, err := s.reserve(ctx, param(r, "name"))
	if err != nil {
		return err
	}
	defer release()
	plan, err := makePlan(req, name, image.Config, s.gatewayFor(req.HostConfig.NetworkMode))
	if err == nil {
		err = plan.isolate(*req.HostConfig, s.opt.Defaults)
	}
	if err != nil {
		return err
	}
	if err := s.join(ctx, &plan); err != nil {
		return err
	}
	if err := s.findNetworks(ctx, &plan); err != nil {
		return err
	}
	place := s.events.Now()
	id, err := s.make(ctx, plan)
	if err != nil {
		return err
	}
	s.told(ctx, place, id, events.ActionCreate)
	warnings := plan.warnings
	if warnings == nil {
		warnings = []string{} // clients expect a list
	}
	return writeJSON(w, http.StatusCreated, container.CreateResponse{ID: id, Warnings: warnings})
}

// make creates the pod and the container in it, with its volumes, or nothing.
func (s *Server) make(ctx context.Context, p plan) (string, error) {
	podID, made, err := s.makeContainer(ctx, &p)
	if err == nil {
		err = s.readyVolumes(ctx, p, podID) // which may take long
	}
	if err == nil {
		return podID, nil
	}
	if podID != "" {
		err = errors.Join(err, s.opt.Engine.RemovePod(context.WithoutCancel(ctx), podID))
	}
	if len(made) > 0 {
		s.using.Lock()
		defer s.using.Unlock()
		err = errors.Join(err, s.dropUnused(context.WithoutCancel(ctx), made))
	}
	return "", err
}

// makeContainer creates the pod, the container in it and the volumes that are
// missing. Whatever was made by the time of an error is returned too: the ID of
// the pod, which is the container's, and the names of new anonymous volumes.
// No volume is removed from when it is looked for to when it has this user.
func (s *Server) makeContainer(ctx context.Context, p *plan) (podID string, made []string, err error) {
	s.using.RLock()
	defer s.using.RUnlock()
	if err := s.findVolumes(ctx, p); err != nil {
		return "", nil, err
	}
	p.mapVolumes()
	extra, err := json.Marshal(p.settings)
	if err != nil {
		return "", nil, fmt.Errorf("create %s: %w", p.pod.Name, err)
	}
	p.pod.LogDir, p.container.Extra = s.opt.LogDir, extra
	pod, err := s.opt.Engine.CreatePod(ctx, p.pod)
	if err != nil {
		return "", nil, err
	}
	if p.logged {
		p.container.LogPath = pod.ID + "/0.log"
	}
	if _, err := s.opt.Engine.CreateContainer(ctx, pod.ID, p.container); err != nil {
		return pod.ID, nil, err
	}
	if err := p.makeBindSources(); err != nil {
		return pod.ID, nil, err
	}
	made, err = s.makeVolumes(p)
	return pod.ID, made, err
}

// checkPlatform refuses a request for another platform than the machine's.
func checkPlatform(r *http.Request) error {
	for _, p := range r.URL.Query()["platform"] {
		var object ocispec.Platform // the form of the requests about images
		if json.Unmarshal([]byte(p), &object) == nil {
			p = path.Join(object.OS, object.Architecture)
		}
		if p != "" && !ownPlatform(p) {
			return fault.New(fault.Unsupported, "platform %s is not that of this machine, linux/%s", p, runtime.GOARCH)
		}
	}
	return nil
}

// ownPlatform reports whether OS/ARCH[/VARIANT] is the machine's; either part may be missing.
func ownPlatform(p string) bool {
	parts := strings.Split(p, "/")
	if len(parts) == 1 {
		return parts[0] == "linux" || parts[0] == runtime.GOARCH
	}
	return parts[0] == "linux" && parts[1] == runtime.GOARCH
}

// withTag adds :latest to a name that has neither tag nor digest, as Docker's messages do.
func withTag(ref string) string {
	if strings.Contains(ref, "@") || strings.Contains(ref[strings.LastIndex(ref, "/")+1:], ":") {
		return ref
	}
	return ref + ":latest"
}

// settings are what Docker's clients gave at create and read back by inspect.
// They travel in the engine's record of the container.
type settings struct {
	Config     container.Config
	HostConfig container.HostConfig
	Volumes    map[string]volumeUse `json:",omitempty"` // by where they are mounted
}

// settingsOf returns what c was created with; the zero settings if its record
// is not one of ours.
func settingsOf(c engine.Container) settings {
	var s settings
	if json.Unmarshal(c.Spec.Extra, &s) != nil {
		return settings{}
	}
	return s
}
