package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/network"
)

const defaultShmSize = 64 << 20

// podDir holds the files and mounts a pod's containers share: shm, hosts,
// hostname, resolv.conf.
func (e *Engine) podDir(id string) string { return filepath.Join(e.opt.RunDir, "p", id[:12]) }

func podHostname(p Pod) string {
	switch {
	case p.Spec.Hostname != "":
		return p.Spec.Hostname
	case p.Spec.Network == ModeHost, p.Spec.UTS == ModeHost:
		name, err := os.Hostname()
		if err == nil {
			return name
		}
	}
	return p.ID[:12]
}

func (e *Engine) mountShm(p Pod) error {
	if p.Spec.IPC == ModeHost {
		return os.MkdirAll(e.podDir(p.ID), 0o711)
	}
	shm := filepath.Join(e.podDir(p.ID), "shm")
	if err := os.MkdirAll(shm, 0o711); err != nil {
		return err
	}
	size := p.Spec.ShmSize
	if size == 0 {
		size = defaultShmSize
	}
	uid, gid := rootOf(p.Spec.Users)
	err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", size, uid, gid))
	if err != nil {
		return fmt.Errorf("mount %s: %w", shm, err)
	}
	return nil
}

// writePodFiles writes resolv.conf, hosts and hostname. The files are changed
// in place on a later call, for containers have them bind-mounted.
func (e *Engine) writePodFiles(p Pod) error {
	resolv, err := resolvConf(p)
	if err != nil {
		return err
	}
	var ip netip.Addr
	if len(p.IPs) > 0 {
		ip = p.IPs[0]
	}
	hosts := network.HostsFile(podHostname(p), ip, p.Spec.Hosts)
	if p.Spec.Network == ModeHost {
		if own, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = own
		}
	}
	uid, gid := rootOf(p.Spec.Users)
	for name, data := range map[string][]byte{"resolv.conf": resolv, "hosts": hosts, "hostname": []byte(podHostname(p) + "\n")} {
		path := filepath.Join(e.podDir(p.ID), name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
		if p.Spec.Users == nil {
			continue
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func resolvConf(p Pod) ([]byte, error) {
	switch {
	case p.Spec.DNS != nil:
		return p.Spec.DNS.ResolvConf(), nil
	case p.Spec.Network == ModeHost:
		own, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return own, err
	}
	c, err := network.HostDNS()
	return c.ResolvConf(), err
}

// fileMounts binds the pod's files into a container, except where the
// container's own mounts (kubelet's /etc/hosts, say) take the place.
func (e *Engine) fileMounts(p Pod, readonly bool) []specs.Mount {
	options := []string{"rbind", "rprivate"}
	if readonly {
		options = append(options, "ro")
	}
	var out []specs.Mount
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		out = append(out, specs.Mount{
			Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(e.podDir(p.ID), name), Options: options})
	}
	return out
}

func (e *Engine) removePodFiles(p Pod) error {
	shm := filepath.Join(e.podDir(p.ID), "shm")
	if err := unix.Unmount(shm, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", shm, err)
	}
	return errors.Join(os.RemoveAll(e.podDir(p.ID)), os.RemoveAll(e.runnerDir(p.ID)))
}
