package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/cdi"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/moby/sys/signal"
)

// prepare mounts the container's root and volumes and computes its spec; c.op
// is held. What it mounts, unmount takes away; both may be repeated.
func (e *Engine) prepare(ctx context.Context, c *container) (*specs.Spec, error) {
	rec := c.record()
	podRec := c.pod.record()
	pod, spec := podRec.Pod, rec.Container.Spec
	if !e.machine.hugetlb {
		spec.Resources.HugePages = nil
	}
	rootfs, err := e.mountRootfs(ctx, rec.Container.ID, pod.Spec.Users)
	if err != nil {
		return nil, err
	}
	named, err := groupIDs(rootfs, spec.Security.GroupNames)
	if err != nil {
		return nil, err
	}
	u, err := resolveUser(rootfs, cmp.Or(spec.Security.User, rec.Image.User), append(named, spec.Security.SupplementalGroups...), spec.Security.StrictGroups)
	if err != nil {
		return nil, err
	}
	mounts, err := e.fileMounts(pod, spec.Security.ReadonlyRootfs)
	if err != nil {
		return nil, err
	}
	volumes, err := e.volumeMounts(ctx, rec.Container, pod.Spec.Users)
	if err != nil {
		return nil, err
	}
	ns, err := e.namespacesFor(podRec, spec)
	if err != nil {
		return nil, err
	}
	profile, err := e.apparmor.profile(spec.Security)
	if err != nil {
		return nil, err
	}
	argv := append([]string{rec.Container.Path}, rec.Container.Args...)
	if spec.Init {
		mounts = append(mounts, specs.Mount{Destination: initPath, Type: "bind", Source: e.opt.InitBinary, Options: []string{"bind", "ro"}})
		argv = append([]string{initPath, "--"}, argv...)
	}
	shm, err := e.shmOf(pod, spec)
	if err != nil {
		return nil, err
	}
	out, err := buildSpec(specInput{
		apparmor:  profile,
		container: spec, id: rec.Container.ID, hostname: podHostname(pod), image: rec.Image,
		argv: argv, user: u, rootfs: rootfs, cgroup: rec.Cgroup,
		shm: shm, mounts: append(mounts, volumes...), ns: ns, sysctls: pod.Spec.Sysctls,
		hostIPC: pod.Spec.IPC == ModeHost, heldCaps: e.machine.caps, minOOMAdj: e.machine.minOOMAdj, cgroupV2: e.machine.cgroupV2,
	})
	if err == nil && len(spec.CDIDevices) > 0 {
		err = cdi.Inject(out, e.opt.CDIDirs, spec.CDIDevices)
	}
	return out, err
}

// initPath is where a container with Init has its process 1: Docker's name.
const initPath = "/sbin/docker-init"

// shmOf is what a container has as /dev/shm.
func (e *Engine) shmOf(pod Pod, spec ContainerSpec) (string, error) {
	if spec.IPCTarget != "" {
		target, err := e.findContainer(spec.IPCTarget)
		if err != nil {
			return "", err
		}
		pod = target.pod.snapshot()
	}
	return filepath.Join(e.podDir(pod.ID), "shm"), nil
}

// namespaceOf is the path of a namespace of a container that runs.
func (e *Engine) namespaceOf(id, kind string) (string, error) {
	target, err := e.findContainer(id)
	if err != nil {
		return "", err
	}
	s := target.snapshot()
	if s.PID == 0 {
		return "", fault.New(fault.Conflict, "cannot join %s namespace of a non running container: %s", kind, s.ID).Hint("start that container first")
	}
	return filepath.Join("/proc", strconv.Itoa(s.PID), "ns", kind), nil
}

// namespacesFor says which namespaces a container joins.
func (e *Engine) namespacesFor(p podRecord, spec ContainerSpec) (namespaces, error) {
	ns := namespaces{user: p.Namespaces.User, network: p.Pod.NetnsPath, ipc: p.Namespaces.IPC, uts: p.Namespaces.UTS}
	switch other, err := e.networkOf(p.Pod.Spec); {
	case err != nil:
		return ns, err
	case other != nil:
		ns.network = netnsOf(other.snapshot().PID)
	case p.Pod.Spec.Network == ModeHost:
		ns.network = hostNamespace
	}
	ns.ipc, ns.uts = cmp.Or(ns.ipc, hostNamespace), cmp.Or(ns.uts, hostNamespace)
	var err error
	if spec.IPCTarget != "" {
		if ns.ipc, err = e.namespaceOf(spec.IPCTarget, "ipc"); err != nil {
			return ns, err
		}
	}
	if spec.PIDTarget != "" {
		ns.pid, err = e.namespaceOf(spec.PIDTarget, "pid")
		return ns, err
	}
	switch cmp.Or(spec.PID, p.Pod.Spec.PID) {
	case ModeHost:
		ns.pid = hostNamespace
	case ModePod:
		ns.pid = p.Namespaces.PID
	}
	return ns, nil
}

// mountRootfs mounts the container's root unless it is mounted already.
func (e *Engine) mountRootfs(ctx context.Context, id string, users *Users) (string, error) {
	dir := e.rootfsDir(id)
	mounted, err := isMountPoint(dir)
	if err != nil || mounted {
		return dir, err
	}
	mounts, err := e.opt.Store.RootfsMounts(id)
	if err != nil {
		return "", err
	}
	if err := e.mountFor(id, mounts, dir, users); err != nil {
		return "", fmt.Errorf("mount root of container %s: %w", id, err)
	}
	return dir, nil
}

// mountFor mounts a file system of a container at dir, which it makes. None but
// the host's root may pass through the container's directory.
func (e *Engine) mountFor(id string, mounts []store.Mount, dir string, users *Users) error {
	parent := e.containerDir(id)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if users == nil {
		return e.opt.Store.MountAll(mounts, dir)
	}
	return e.opt.Store.MountMapped(mounts, dir, *users)
}

// isMountPoint reports whether dir is the root of a mount; false if it does not exist.
func isMountPoint(dir string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// volumeMounts turns the container's mounts into the runtime's, mounting image
// volumes on the way.
func (e *Engine) volumeMounts(ctx context.Context, c Container, users *Users) ([]specs.Mount, error) {
	var out []specs.Mount
	for i, m := range c.Spec.Mounts {
		switch m.Kind {
		case MountTmpfs:
			if m.Source != "" {
				source, err := e.mountShared(m)
				if err != nil {
					return nil, err
				}
				m.Options = nil // they were the tmpfs's
				out = append(out, specs.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: bindOptions(m)})
				continue
			}
			options := m.Options
			if len(options) == 0 {
				options = []string{"nosuid", "nodev", "noexec"}
			}
			out = append(out, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: options})
		case MountBind:
			if m.SubPath != "" {
				source, err := e.mountSubPath(c.ID, i, m)
				if err != nil {
					return nil, err
				}
				m.Source = source
			}
			options := bindOptions(m)
			if users != nil && m.IDMap {
				options = append(options, "idmap")
			}
			out = append(out, specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: options})
		case MountImage:
			source, err := e.mountImage(ctx, c.ID, i, m, users)
			if err != nil {
				return nil, err
			}
			m.ReadOnly = true
			out = append(out, specs.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: bindOptions(m)})
		default:
			return nil, fault.New(fault.Invalid, "mount %s: kind %q is not known", m.Destination, m.Kind)
		}
	}
	return out, nil
}

func bindOptions(m Mount) []string {
	options := append([]string{"rbind", cmp.Or(m.Propagation, "rprivate")}, m.Options...)
	switch {
	case m.ReadOnly && m.Recursive:
		options = append(options, "rro")
	case m.ReadOnly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return options
}

// volumeDir is where a container's i-th mount, an image, is mounted.
func (e *Engine) volumeDir(id string, i int) string {
	return filepath.Join(filepath.Dir(e.rootfsDir(id)), "volume-"+strconv.Itoa(i))
}

func volumeKey(id string, i int) string { return id + "-volume-" + strconv.Itoa(i) }

// mountImage mounts an image or artifact read-only and returns the path of
// what the mount asks for in it.
func (e *Engine) mountImage(ctx context.Context, id string, i int, m Mount, users *Users) (string, error) {
	dir := e.volumeDir(id, i)
	mounted, err := isMountPoint(dir)
	if err != nil {
		return "", err
	}
	if !mounted {
		img, err := e.opt.Store.Image(ctx, m.Source)
		if err != nil {
			return "", fmt.Errorf("image volume %s: %w", m.Destination, err)
		}
		mounts, err := e.opt.Store.ViewImage(ctx, volumeKey(id, i), img.Digest)
		if err != nil {
			return "", fmt.Errorf("image volume %s: %w", m.Destination, err)
		}
		if err := e.mountFor(id, mounts, dir, users); err != nil {
			return "", fmt.Errorf("image volume %s: %w", m.Destination, err)
		}
	}
	if m.SubPath == "" {
		return dir, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	// The image is read-only, so what is found inside the root stays there.
	if _, err := root.Stat(m.SubPath); err != nil {
		return "", fault.New(fault.NotFound, "image volume %s: sub path %q: %w", m.Destination, m.SubPath, err)
	}
	return filepath.EvalSymlinks(filepath.Join(dir, m.SubPath))
}

// unmount takes away what prepare mounted.
func (e *Engine) unmount(ctx context.Context, c *container) error {
	s := c.snapshot()
	dirs := []string{e.rootfsDir(s.ID)}
	for i, m := range s.Spec.Mounts {
		if m.Kind == MountImage || m.SubPath != "" {
			dirs = append(dirs, e.volumeDir(s.ID, i))
		}
	}
	for _, dir := range slices.Backward(dirs) {
		if err := store.UnmountAll(dir); err != nil {
			return err
		}
	}
	for i, m := range s.Spec.Mounts {
		if m.Kind == MountImage {
			if err := e.opt.Store.RemoveView(ctx, volumeKey(s.ID, i)); err != nil {
				return err
			}
		}
		if m.Kind == MountTmpfs && m.Source != "" {
			if err := e.dropShared(c, m); err != nil {
				return err
			}
		}
	}
	// Remove, not RemoveAll: should something still be mounted, its content is not ours to delete.
	for _, dir := range append(dirs, filepath.Dir(e.rootfsDir(s.ID))) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Unmount takes away the mounts of containers that do not run, which otherwise
// stay until the container is removed. A start mounts them again.
func (e *Engine) Unmount(ctx context.Context) error {
	e.mu.Lock()
	list := slices.Collect(maps.Values(e.ctrByID))
	e.mu.Unlock()
	var errs []error
	for _, c := range list {
		c.op.Lock()
		if !c.snapshot().State.alive() {
			errs = append(errs, e.unmount(ctx, c))
		}
		c.op.Unlock()
	}
	return errors.Join(errs...)
}

// stopSignal is the signal named by the container, else by its image, else SIGTERM.
func stopSignal(container, image string) (unix.Signal, error) {
	name := cmp.Or(container, image, "SIGTERM")
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, fault.New(fault.Invalid, "stop signal %q: %w", name, err).Hint("use a name or number of signal(7)")
	}
	return sig, nil
}
