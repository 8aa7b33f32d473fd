package dockerapi

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	apivolume "github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/dockerapi/volume"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/files"
	"github.com/ferryos/ferry/internal/fault"
)

// volumeDriver is the one there is, Docker's name for volumes of this machine.
const volumeDriver = "local"

// anonymousLabel is how Docker's clients know a volume that nobody named.
const anonymousLabel = "com.docker.volume.anonymous"

// volumeUse is a volume among the mounts of a container.
type volumeUse struct {
	Name   string
	Source string // where the volume is kept
	Mode   string `json:",omitempty"` // as inspect shows it
	// Anonymous is set if the container's removal may take the volume along.
	Anonymous bool `json:",omitempty"`
}

// volumeRequest is what a create request asks of a volume.
type volumeRequest struct {
	volumeUse
	create volume.Volume // its labels and options should it be made
	noCopy bool
}

// askVolume adds a mount of a volume, of a new one if name is empty. Where its
// content is will be known once the volume is.
func (p *plan) askVolume(m engine.Mount, name string, req volumeRequest) error {
	if name == "" {
		req.Anonymous, name = true, volume.NewName()
		req.create.Labels = maps.Clone(req.create.Labels)
		if req.create.Labels == nil {
			req.create.Labels = map[string]string{}
		}
		req.create.Labels[anonymousLabel] = ""
	}
	if err := volume.CheckName(name); err != nil {
		return err
	}
	req.Name, req.create.Name, req.create.Anonymous = name, name, req.Anonymous
	m.Kind, m.Recursive = engine.MountBind, true
	p.container.Mounts = append(p.container.Mounts, m)
	if p.volumes == nil {
		p.volumes, p.settings.Volumes = map[string]volumeRequest{}, map[string]volumeUse{}
	}
	p.volumes[m.Destination], p.settings.Volumes[m.Destination] = req, req.volumeUse
	return nil
}

// volumeMount translates --mount type=volume.
func (p *plan) volumeMount(m mount.Mount) error {
	req := volumeRequest{volumeUse: volumeUse{Mode: "z"}}
	out := engine.Mount{Destination: path.Clean(m.Target), ReadOnly: m.ReadOnly}
	if m.BindOptions != nil || m.TmpfsOptions != nil {
		return fault.New(fault.Invalid, "invalid mount config for type \"volume\": field BindOptions or TmpfsOptions must not be specified")
	}
	if o := m.VolumeOptions; o != nil {
		req.noCopy, req.create.Labels = o.NoCopy, o.Labels
		if d := o.DriverConfig; d != nil {
			if err := checkDriver(d.Name); err != nil {
				return err
			}
			req.create.Options = d.Options
		}
		if out.SubPath = o.Subpath; out.SubPath != "" {
			if clean := path.Clean(out.SubPath); path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
				return fault.New(fault.Invalid, "volume-subpath %q must be a relative path within the volume", out.SubPath)
			}
			if m.Source == "" {
				return fault.New(fault.Invalid, "must not set Subpath when using anonymous volumes")
			}
			req.noCopy = true // as Docker has it
		}
	}
	return p.askVolume(out, m.Source, req)
}

func checkDriver(name string) error {
	if name != "" && name != volumeDriver {
		return fault.New(fault.NotFound, "error looking up volume plugin %s: plugin %q not found", name, name).Hint("volumes have the driver local alone")
	}
	return nil
}

// imageVolumes adds a new volume for each path that the image or -v asks one
// for and that has nothing mounted yet.
func (p *plan) imageVolumes() error {
	for _, dst := range slices.Sorted(maps.Keys(p.settings.Config.Volumes)) {
		clean := path.Clean(dst)
		if !path.IsAbs(clean) || clean == "/" {
			return fault.New(fault.Invalid, "invalid mount destination %q: it must be an absolute path below /", dst)
		}
		if p.mounted(clean) {
			continue
		}
		if err := p.askVolume(engine.Mount{Destination: clean}, "", volumeRequest{}); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) mounted(destination string) bool {
	return slices.ContainsFunc(p.container.Mounts, func(m engine.Mount) bool { return m.Destination == destination })
}

// findVolumes completes a plan's mounts: with those of --volumes-from, with new
// volumes where they are asked for, and with where each volume's content is.
func (s *Server) findVolumes(ctx context.Context, p *plan) error {
	for _, spec := range p.settings.HostConfig.VolumesFrom {
		if err := s.volumesFrom(ctx, p, spec); err != nil {
			return err
		}
	}
	if err := p.imageVolumes(); err != nil {
		return err
	}
	for i := range p.container.Mounts {
		m := &p.container.Mounts[i]
		req, ok := p.volumes[m.Destination]
		if !ok {
			continue
		}
		v, err := s.volumes.Get(req.Name)
		if fault.Is(err, fault.NotFound) {
			v, err = req.create, nil
		}
		if err != nil {
			return err
		}
		opt, err := volume.ParseOptions(v.Options)
		if err != nil {
			return err
		}
		m.ReadOnly = m.ReadOnly || opt.ReadOnly
		req.Source = s.volumes.Path(v.Name)
		p.settings.Volumes[m.Destination] = req.volumeUse
		switch {
		case opt.Tmpfs:
			m.Kind, m.Source, m.Options = engine.MountTmpfs, v.Name, opt.Mount
			if m.SubPath != "" {
				return unsupported("volume-subpath of a volume of type tmpfs")
			}
		case opt.Bind != "":
			m.Source = opt.Bind
		default:
			m.Source = req.Source
		}
	}
	sortMounts(p.container.Mounts)
	return nil
}

// volumesFrom adds the mounts of another container where there is none yet.
func (s *Server) volumesFrom(ctx context.Context, p *plan, spec string) error {
	name, mode, _ := strings.Cut(spec, ":")
	readOnly := false
	for opt := range strings.SplitSeq(mode, ",") {
		switch opt {
		case "", "rw", "z", "Z":
		case "ro":
			readOnly = true
		default:
			return fault.New(fault.Invalid, "invalid mode for volumes-from: %s", mode)
		}
	}
	from, err := s.findOther(ctx, name)
	if err != nil {
		return err
	}
	uses := settingsOf(from).Volumes
	for _, m := range from.Spec.Mounts {
		use, ok := uses[m.Destination]
		if p.mounted(m.Destination) || !ok && m.Kind != engine.MountBind {
			continue
		}
		m.ReadOnly = m.ReadOnly || readOnly
		if !ok {
			p.container.Mounts = append(p.container.Mounts, m)
			continue
		}
		use.Anonymous = false // it goes with the container that it was made for, not with a borrower
		if err := p.askVolume(m, use.Name, volumeRequest{volumeUse: use, noCopy: true}); err != nil {
			return err
		}
	}
	return nil
}

// makeVolumes makes the volumes of a new container that are missing and returns
// the anonymous ones among them.
func (s *Server) makeVolumes(p *plan) (made []string, err error) {
	for _, dst := range slices.Sorted(maps.Keys(p.volumes)) {
		v, isNew, err := s.createVolume(p.volumes[dst].create)
		if err != nil {
			return made, err
		}
		if isNew && v.Anonymous {
			made = append(made, v.Name)
		}
	}
	return made, nil
}

// readyVolumes copies into the volumes of a new container that are empty what its
// image has in their place.
func (s *Server) readyVolumes(ctx context.Context, p plan, id string) error {
	for _, dst := range slices.Sorted(maps.Keys(p.volumes)) {
		v, err := s.volumes.Get(p.volumes[dst].create.Name)
		if err != nil {
			return err
		}
		if err := s.readyVolume(ctx, id, dst, v, p.volumes[dst].noCopy); err != nil {
			return err
		}
	}
	return nil
}

// createVolume makes a volume, or returns the one of that name, and tells it.
func (s *Server) createVolume(v volume.Volume) (_ volume.Volume, made bool, err error) {
	if v, made, err = s.volumes.Create(v); made {
		s.publish(events.VolumeEventType, events.ActionCreate, v.Name, map[string]string{"driver": volumeDriver})
	}
	return v, made, err
}

// dropVolume removes a volume that nothing uses and tells it.
func (s *Server) dropVolume(name string) error {
	if err := s.volumes.Remove(name); err != nil {
		return err
	}
	s.publish(events.VolumeEventType, events.ActionDestroy, name, map[string]string{"driver": volumeDriver})
	return nil
}

// publishMounts tells that the volumes of a container are mounted, or no more.
func (s *Server) publishMounts(at time.Time, action events.Action, c engine.Container) {
	uses := settingsOf(c).Volumes
	for _, m := range c.Spec.Mounts {
		use, ok := uses[m.Destination]
		if !ok {
			continue
		}
		attributes := map[string]string{"driver": volumeDriver, "container": c.ID}
		if action == events.ActionMount {
			attributes["destination"], attributes["read/write"], attributes["propagation"] = m.Destination, strconv.FormatBool(!m.ReadOnly), m.Propagation
		}
		s.publishAt(at, events.VolumeEventType, action, use.Name, attributes)
	}
}

// readyVolume sees to it that a volume of a container can be mounted at dst.
func (s *Server) readyVolume(ctx context.Context, id, dst string, v volume.Volume, noCopy bool) error {
	opt, err := volume.ParseOptions(v.Options)
	if err != nil {
		return err
	}
	source := cmp.Or(opt.Bind, s.volumes.Path(v.Name))
	if opt.Bind != "" && !exists(source) {
		return fault.New(fault.Invalid, "failed to mount local volume: mount %s:%s: no such file or directory", source, s.volumes.Path(v.Name))
	}
	if opt.Tmpfs || noCopy && !v.Filling {
		return nil
	}
	return s.fillVolume(ctx, id, dst, v.Name, source)
}

// fillVolume copies what a container's image has at dst into an empty volume. One
// whose filling was interrupted is emptied before.
func (s *Server) fillVolume(ctx context.Context, id, dst, name, source string) (err error) {
	s.filling.Lock(source) // two containers may be made on one new volume, or two volumes be of one directory
	defer func() { err = errors.Join(err, s.filling.Unlock(source)) }()
	v, err := s.volumes.Get(name)
	if err != nil {
		return err
	}
	to, err := files.Open(source)
	if err != nil {
		return err
	}
	defer to.Close()
	if v.Filling {
		if err := to.Clear("/"); err != nil {
			return err
		}
	}
	if empty, err := to.Empty("/"); err != nil || !empty {
		return err
	}
	image, err := s.opt.Engine.OwnFiles(ctx, id)
	if err != nil {
		return err
	}
	defer image.Close()
	_, err = image.Stat(dst + "/.")
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Invalid, "cannot mount volume over existing file, file exists %s", dst)
	}
	if err != nil {
		return err
	}
	if err := s.volumes.Update(v.Name, func(v *volume.Volume) { v.Filling = true }); err != nil {
		return err
	}
	if err := files.Copy(ctx, image, dst, to, "/"); err != nil {
		return err
	}
	return s.volumes.Update(v.Name, func(v *volume.Volume) { v.Filling = false })
}

// restoreVolumes makes the volumes of a container that are missing: the daemon
// ended between the making of the one and the others.
func (s *Server) restoreVolumes(ctx context.Context, c engine.Container) error {
	uses := settingsOf(c).Volumes
	for _, dst := range slices.Sorted(maps.Keys(uses)) {
		v, err := s.volumes.Get(uses[dst].Name)
		if err == nil && !v.Filling {
			continue
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		create := volume.Volume{Name: uses[dst].Name, Anonymous: uses[dst].Anonymous}
		if create.Anonymous {
			create.Labels = map[string]string{anonymousLabel: ""}
		}
		if v, _, err = s.createVolume(create); err != nil {
			return err
		}
		if err := s.readyVolume(ctx, c.ID, dst, v, false); err != nil {
			return err
		}
	}
	return nil
}

// volumeUsers returns the containers that have each volume mounted.
func (s *Server) volumeUsers(ctx context.Context) map[string][]string {
	users := map[string][]string{}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
		for _, use := range settingsOf(c).Volumes {
			if !slices.Contains(users[use.Name], c.ID) {
				users[use.Name] = append(users[use.Name], c.ID)
			}
		}
	}
	return users
}

// removeContainer removes a container with its pod and, if volumes is set, the
// anonymous volumes that nothing else uses. They are marked before: should the
// daemon end in between, its next start removes them.
func (s *Server) removeContainer(ctx context.Context, c engine.Container, volumes bool) error {
	var names []string
	if volumes {
		for _, use := range settingsOf(c).Volumes {
			if use.Anonymous {
				names = append(names, use.Name)
			}
		}
	}
	if err := s.doom(names, true); err != nil {
		return err
	}
	if err := s.opt.Engine.RemovePod(ctx, c.PodID); err != nil {
		return errors.Join(err, s.doom(names, false))
	}
	if len(names) == 0 {
		return nil
	}
	s.using.Lock()
	defer s.using.Unlock()
	return s.dropUnused(ctx, names)
}

// dropUnused removes volumes that were to go with their container. One that
// another container has stays for good: its mark is taken away, or the next
// removal would take it from whoever keeps data in it. s.using is held.
func (s *Server) dropUnused(ctx context.Context, names []string) error {
	users := s.volumeUsers(ctx)
	var errs []error
	for _, name := range names {
		var err error
		if len(users[name]) > 0 {
			err = s.doom([]string{name}, false)
		} else if err = s.dropVolume(name); fault.Is(err, fault.NotFound) {
			err = nil // by another hand
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Server) doom(names []string, doomed bool) error {
	for _, name := range names {
		err := s.volumes.Update(name, func(v *volume.Volume) { v.Doomed = doomed })
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// removeDoomed ends the removals that an earlier daemon did not come to the end
// of. While containers are removed it would take the marks of their volumes away.
func (s *Server) removeDoomed(ctx context.Context) error {
	s.using.Lock()
	defer s.using.Unlock()
	var names []string
	for _, v := range s.volumes.List() {
		if v.Doomed {
			names = append(names, v.Name)
		}
	}
	return s.dropUnused(ctx, names)
}

// volumeView is a volume as clients see it.
func (s *Server) volumeView(v volume.Volume) apivolume.Volume {
	out := apivolume.Volume{Name: v.Name, Driver: volumeDriver, Scope: "local", Mountpoint: s.volumes.Path(v.Name), Labels: v.Labels,
		Options: v.Options, CreatedAt: v.CreatedAt.UTC().Format(time.RFC3339)}
	if len(out.Options) == 0 {
		out.Options = nil
	}
	return out
}

// volume reports whether v, of which used tells whether a container has it, is
// one of those asked for.
func (f filters) volume(v volume.Volume, used bool) bool {
	return f.labels(v.Labels) && f.noLabels(v.Labels) &&
		f.any("name", func(want string) bool { return strings.Contains(v.Name, want) }) &&
		f.any("driver", func(want string) bool { return want == volumeDriver }) &&
		f.any("dangling", func(want string) bool { dangling, _ := strconv.ParseBool(want); return dangling != used })
}

func (s *Server) volumeList(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "name", "label", "dangling", "driver")
	if err != nil {
		return err
	}
	users := s.volumeUsers(r.Context())
	out := apivolume.ListResponse{Volumes: []apivolume.Volume{}, Warnings: []string{}}
	for _, v := range s.volumes.List() {
		if match.volume(v, len(users[v.Name]) > 0) {
			out.Volumes = append(out.Volumes, s.volumeView(v))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) volumeInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := s.volumes.Get(r.PathValue("volume"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.volumeView(v))
}

func (s *Server) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	var req apivolume.CreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil {
		return unsupported("a volume of a cluster")
	}
	if err := checkDriver(req.Driver); err != nil {
		return err
	}
	v := volume.Volume{Name: req.Name, Labels: req.Labels, Options: req.DriverOpts}
	if v.Name == "" {
		v.Name, v.Anonymous, v.Labels = volume.NewName(), true, maps.Clone(req.Labels)
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels[anonymousLabel] = ""
	}
	v, _, err := s.createVolume(v)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, s.volumeView(v))
}

func (s *Server) volumeRemove(w http.ResponseWriter, r *http.Request) error {
	s.using.Lock()
	defer s.using.Unlock()
	name := r.PathValue("volume")
	if users := s.volumeUsers(r.Context())[name]; len(users) > 0 {
		return fault.New(fault.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(users, ", ")).Hint("remove the container first")
	}
	err := s.dropVolume(name)
	if err != nil && !(fault.Is(err, fault.NotFound) && flag(r, "force")) {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// volumePrune removes anonymous volumes that nothing uses, named ones too with
// the filter all, which clients before API version 1.42 do not know but mean.
func (s *Server) volumePrune(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "label", "label!", "all")
	if err != nil {
		return err
	}
	all := versionBefore(r, "1.42")
	for _, v := range match["all"] {
		if all, err = strconv.ParseBool(v); err != nil {
			return fault.New(fault.Invalid, "filter all=%s: neither true nor false", v)
		}
	}
	s.using.Lock()
	defer s.using.Unlock()
	users := s.volumeUsers(r.Context())
	report := apivolume.PruneReport{VolumesDeleted: []string{}}
	for _, v := range s.volumes.List() {
		if len(users[v.Name]) > 0 || !all && !v.Anonymous || !match.volume(v, false) {
			continue
		}
		size, err := s.volumes.Size(r.Context(), v.Name)
		if err == nil {
			err = s.dropVolume(v.Name)
		}
		if err != nil {
			return err
		}
		report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
		report.SpaceReclaimed += uint64(size)
	}
	return writeJSON(w, http.StatusOK, report)
}
