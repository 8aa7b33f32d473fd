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
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/files"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// Files opens the files of a container as its processes see them, with what is
// mounted in it; of one that does not run as they would be but for tmpfs, which
// is empty then, and images. The caller closes it.
func (e *Engine) Files(ctx context.Context, id string) (*files.Root, error) {
	return e.openFiles(ctx, id, true)
}

// OwnFiles opens the files of a container's root alone, without what is mounted
// in it. The caller closes it.
func (e *Engine) OwnFiles(ctx context.Context, id string) (*files.Root, error) {
	return e.openFiles(ctx, id, false)
}

func (e *Engine) openFiles(ctx context.Context, id string, mounts bool) (*files.Root, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.isRemoved() {
		return nil, fault.New(fault.NotFound, "container %s was removed", id)
	}
	rec, users := c.record(), c.pod.snapshot().Spec.Users
	var root *files.Root
	defer func() {
		if root != nil && users != nil {
			root.SetOwners(ownersOf(*users))
		}
	}()
	if mounts && rec.Container.State.alive() {
		root, err = openRunning(rec)
	}
	if err != nil || root != nil {
		return root, err
	}
	dir, err := e.mountRootfs(ctx, rec.Container.ID, users)
	if err != nil {
		return nil, err
	}
	if !mounts {
		root, err = files.Open(dir)
		return root, err
	}
	var view []files.Mount
	for _, m := range rec.Container.Spec.Mounts {
		if m.Kind == MountBind {
			view = append(view, files.Mount{Source: m.Source, SubPath: m.SubPath, Destination: m.Destination, ReadOnly: m.ReadOnly})
		}
	}
	root, err = files.OpenView(dir, rec.Container.Spec.Security.ReadonlyRootfs, view)
	if err != nil {
		return nil, fmt.Errorf("files of container %s: %w", rec.Container.ID, err)
	}
	return root, nil
}

// openRunning opens what a running container sees; nil if it has ended since.
func openRunning(rec containerRecord) (*files.Root, error) {
	pid := rec.Container.PID
	root, err := files.OpenProcess(pid)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("files of container %s: %w", rec.Container.ID, err)
	}
	// The process may have ended and its number be another's by now. What was
	// opened is the container's if the process is it afterwards.
	groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil || !strings.Contains(string(groups), rec.Container.ID) {
		return nil, root.Close()
	}
	return root, nil
}

// UserOf returns the user and group that a container's processes have by default.
func (e *Engine) UserOf(ctx context.Context, id string) (uid, gid int, err error) {
	c, err := e.findContainer(id)
	if err != nil {
		return 0, 0, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	rec := c.record()
	root, err := e.mountRootfs(ctx, rec.Container.ID, c.pod.snapshot().Spec.Users)
	if err != nil {
		return 0, 0, err
	}
	u, err := resolveUser(root, cmp.Or(rec.Container.Spec.Security.User, rec.Image.User), nil, true)
	return int(u.uid), int(u.gid), err
}

// placeholders are what the runtime makes in every root to mount something on.
var placeholders = []string{"/dev", "/dev/console", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys",
	"/etc", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}

// Changes tells how a container's files differ from those of its image. What is
// mounted in it does not count.
func (e *Engine) Changes(ctx context.Context, id string) ([]files.Change, error) {
	c, err := e.findContainer(id)
	if err != nil {
		return nil, err
	}
	return e.opt.Store.Changes(ctx, c.snapshot().ID, placeholders)
}

// Commit makes an image of a container's files, as they are at one moment if
// pause is set: what runs in it stands still meanwhile.
func (e *Engine) Commit(ctx context.Context, id string, pause bool, img store.NewImage) (_ store.Image, err error) {
	c, err := e.findContainer(id)
	if err != nil {
		return store.Image{}, err
	}
	s := c.snapshot()
	if pause && s.State == StateRunning {
		err := e.Pause(ctx, s.ID)
		if err != nil && !fault.Is(err, fault.Conflict) { // it has ended since
			return store.Image{}, fmt.Errorf("commit container %s: %w", s.ID, err)
		}
		if err == nil {
			end := context.WithoutCancel(ctx)
			defer func() {
				if resumeErr := e.Resume(end, s.ID); resumeErr != nil && !fault.Is(resumeErr, fault.Conflict) {
					err = errors.Join(err, resumeErr)
				}
			}()
		}
	}
	return e.opt.Store.Commit(ctx, s.ID, s.ImageID, placeholders, img)
}

// mountSubPath mounts a part of a bind mount's source where nothing can exchange
// it any more, and returns that path.
func (e *Engine) mountSubPath(id string, i int, m Mount) (string, error) {
	dir := e.volumeDir(id, i)
	mounted, err := isMountPoint(dir)
	if err != nil || mounted {
		return dir, err
	}
	root, err := files.Open(m.Source)
	if err != nil {
		return "", fault.New(fault.Invalid, "mount %s: %w", m.Destination, err)
	}
	defer root.Close()
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return "", err
	}
	if err := root.Bind(m.SubPath, dir); err != nil {
		return "", fmt.Errorf("mount %s: sub path %q: %w", m.Destination, m.SubPath, err)
	}
	return dir, nil
}

// sharedDir is where a tmpfs is mounted that containers share by its name.
func (e *Engine) sharedDir(name string) string { return filepath.Join(e.opt.RunDir, "v", name, "fs") }

// mountShared mounts a tmpfs that all containers see which name it, until the
// last of them is removed or, at the platform's end, unmounted.
func (e *Engine) mountShared(m Mount) (string, error) {
	e.shared.Lock()
	defer e.shared.Unlock()
	dir := e.sharedDir(m.Source)
	mounted, err := isMountPoint(dir)
	if err != nil || mounted {
		return dir, err
	}
	if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o700)); err != nil {
		return "", err
	}
	if err := e.opt.Store.MountAll([]store.Mount{{Type: "tmpfs", Source: "tmpfs", Options: m.Options}}, dir); err != nil {
		return "", fault.New(fault.Invalid, "mount %s: tmpfs with options %s: %w", m.Destination, strings.Join(m.Options, ","), err)
	}
	return dir, nil
}

// dropShared unmounts the tmpfs that only container c has named.
func (e *Engine) dropShared(c *container, m Mount) error {
	e.shared.Lock()
	defer e.shared.Unlock()
	dir := e.sharedDir(m.Source)
	if mounted, err := isMountPoint(dir); err != nil || !mounted {
		return err
	}
	if e.sharedBy(m.Source, c) {
		return nil
	}
	if err := store.UnmountAll(dir); err != nil {
		return err
	}
	return errors.Join(os.Remove(dir), os.Remove(filepath.Dir(dir)))
}

// sharedBy reports whether a container besides except has mounted a shared tmpfs.
func (e *Engine) sharedBy(name string, except *container) bool {
	e.mu.Lock()
	all := slices.Collect(maps.Values(e.ctrByID))
	e.mu.Unlock()
	return slices.ContainsFunc(all, func(c *container) bool {
		s := c.snapshot()
		names := func(m Mount) bool { return m.Kind == MountTmpfs && m.Source == name }
		if c == except || !slices.ContainsFunc(s.Spec.Mounts, names) {
			return false
		}
		mounted, err := isMountPoint(e.rootfsDir(s.ID))
		return err == nil && mounted // else it has not run, or is unmounted
	})
}
