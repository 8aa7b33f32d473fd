package dockerapi

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/ferryos/ferry/internal/dockerapi/volume"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

// mounts translates -v, --mount and --tmpfs.
func (p *plan) mounts(h container.HostConfig) error {
	for _, spec := range h.Binds {
		m, req, err := parseBind(spec)
		if err != nil {
			return err
		}
		if !path.IsAbs(m.Source) {
			if err := p.askVolume(m, m.Source, req); err != nil {
				return err
			}
			continue
		}
		p.container.Mounts = append(p.container.Mounts, m)
		p.bindSources = append(p.bindSources, m.Source)
	}
	for _, m := range h.Mounts {
		if m.Type == mount.TypeVolume {
			if err := p.volumeMount(m); err != nil {
				return err
			}
			continue
		}
		em, err := p.mount(m)
		if err != nil {
			return err
		}
		p.container.Mounts = append(p.container.Mounts, em)
	}
	for _, dst := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		m := engine.Mount{Kind: engine.MountTmpfs, Destination: path.Clean(dst), Options: slices.Clone(tmpfsDefaults)}
		if opts := h.Tmpfs[dst]; opts != "" {
			m.Options = append(m.Options, strings.Split(opts, ",")...)
		}
		p.container.Mounts = append(p.container.Mounts, m)
	}
	sortMounts(p.container.Mounts)
	seen := map[string]bool{}
	for _, m := range p.container.Mounts {
		if !path.IsAbs(m.Destination) || m.Destination == "/" {
			return fault.New(fault.Invalid, "invalid mount destination %q: it must be an absolute path below /", m.Destination)
		}
		if seen[m.Destination] {
			return fault.New(fault.Invalid, "Duplicate mount point: %s", m.Destination)
		}
		seen[m.Destination] = true
	}
	return nil
}

// sortMounts puts parents first, or they would hide what is mounted in them.
func sortMounts(mounts []engine.Mount) {
	slices.SortStableFunc(mounts, func(a, b engine.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
}

// tmpfsDefaults are a tmpfs's options, which those given come after and may undo.
var tmpfsDefaults = []string{"noexec", "nosuid", "nodev"}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

// parseBind reads [SOURCE:]DESTINATION[:OPTIONS]. A source that is no absolute
// path names a volume, none a new one.
func parseBind(spec string) (engine.Mount, volumeRequest, error) {
	m, req := engine.Mount{Kind: engine.MountBind, Recursive: true}, volumeRequest{volumeUse: volumeUse{Mode: "z"}}
	parts := strings.Split(spec, ":")
	if len(parts) == 1 && path.IsAbs(spec) {
		m.Destination = path.Clean(spec)
		return m, volumeRequest{}, nil
	}
	if len(parts) == 1 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return m, req, fault.New(fault.Invalid, "invalid volume specification: '%s'", spec).Hint("write HOST-PATH:CONTAINER-PATH[:ro]")
	}
	m.Source, m.Destination = parts[0], path.Clean(parts[1])
	named := !path.IsAbs(m.Source)
	if named {
		if err := volume.CheckName(m.Source); err != nil {
			return m, req, err
		}
	} else {
		m.Source = path.Clean(m.Source)
	}
	if len(parts) < 3 {
		return m, req, nil
	}
	req.Mode = parts[2]
	for opt := range strings.SplitSeq(parts[2], ",") {
		switch {
		case opt == "ro":
			m.ReadOnly = true
		case opt == "nocopy" && named:
			req.noCopy = true
		case opt == "rw", opt == "z", opt == "Z": // relabelling is for SELinux, which is not used
		case opt == "cached", opt == "delegated", opt == "consistent": // always consistent
		case slices.Contains(propagations, opt) && !named:
			m.Propagation = recursive(opt)
		default:
			return m, req, fault.New(fault.Invalid, "invalid mode: %s", opt)
		}
	}
	return m, req, nil
}

// recursive is the propagation for a recursive bind mount, the only kind made.
func recursive(p string) string {
	if strings.HasPrefix(p, "r") {
		return p
	}
	return "r" + p
}

func (p *plan) mount(m mount.Mount) (engine.Mount, error) {
	out := engine.Mount{Source: m.Source, Destination: path.Clean(m.Target), ReadOnly: m.ReadOnly}
	switch m.Type {
	case mount.TypeBind:
		out.Kind, out.Recursive = engine.MountBind, true
		if o := m.BindOptions; o != nil {
			if o.NonRecursive || o.ReadOnlyForceRecursive {
				return out, unsupported("--mount type=bind: bind-recursive other than enabled and readonly-non-recursive")
			}
			out.Recursive = !o.ReadOnlyNonRecursive
			if o.Propagation != "" {
				if !slices.Contains(propagations, string(o.Propagation)) {
					return out, fault.New(fault.Invalid, "invalid propagation mode: %s", o.Propagation)
				}
				out.Propagation = recursive(string(o.Propagation))
			}
		}
		if !path.IsAbs(m.Source) {
			return out, fault.New(fault.Invalid, "invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		if m.BindOptions != nil && m.BindOptions.CreateMountpoint {
			p.bindSources = append(p.bindSources, m.Source)
			return out, nil
		}
		if _, err := os.Lstat(m.Source); err != nil {
			return out, fault.New(fault.Invalid, "invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
		}
	case mount.TypeTmpfs:
		out.Kind, out.Options = engine.MountTmpfs, slices.Clone(tmpfsDefaults)
		if o := m.TmpfsOptions; o != nil {
			if o.SizeBytes > 0 {
				out.Options = append(out.Options, "size="+strconv.FormatInt(o.SizeBytes, 10))
			}
			if o.Mode != 0 {
				out.Options = append(out.Options, fmt.Sprintf("mode=%o", o.Mode))
			}
			for _, pair := range o.Options {
				out.Options = append(out.Options, strings.Join(pair, "="))
			}
		}
		if m.ReadOnly {
			out.Options = append(out.Options, "ro")
		}
	case mount.TypeImage:
		out.Kind = engine.MountImage
		if m.ImageOptions != nil {
			out.SubPath = m.ImageOptions.Subpath
		}
	default:
		return out, fault.New(fault.Unsupported, "mounts of type %q are not supported yet", m.Type).
			Hint("use --mount type=bind,source=HOST-PATH,target=PATH, type=volume, type=tmpfs or type=image")
	}
	return out, nil
}

// makeBindSources makes the host directories that -v names and that are
// missing, all or none of them.
func (p *plan) makeBindSources() (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, dir := range slices.Backward(made) {
				err = errors.Join(err, os.Remove(dir))
			}
		}
	}()
	for _, source := range p.bindSources {
		var missing []string
		for dir := source; !exists(dir); dir = path.Dir(dir) {
			missing = append(missing, dir)
		}
		for _, dir := range slices.Backward(missing) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return fault.New(fault.Invalid, "make the bind mount's source: %w", err)
			}
			made = append(made, dir)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
