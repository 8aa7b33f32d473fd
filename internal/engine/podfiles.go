package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// writePodFiles writes resolv.conf, hosts and hostname.
func (e *Engine) writePodFiles(p Pod) error {
	resolv, hosts, err := e.nameFiles(p)
	if err != nil {
		return err
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

// nameFiles are the contents of resolv.conf and hosts.
func (e *Engine) nameFiles(p Pod) (resolv, hosts []byte, err error) {
	if resolv, err = resolvConf(p); err != nil {
		return nil, nil, err
	}
	if p.Spec.Network == ModeHost {
		if own, err := os.ReadFile("/etc/hosts"); err == nil {
			return resolv, own, nil
		}
	}
	links, err := e.linkEntries(p)
	if err != nil {
		return nil, nil, err
	}
	name := podHostname(p)
	if p.Spec.Domain != "" {
		name += "." + p.Spec.Domain
	}
	return resolv, network.HostsFile(name, p.IPs, slices.Concat(p.Spec.Hosts, links)), nil
}

// changePodFiles writes the files again for what has changed from before to
// after: in place, for containers have them bind-mounted, and not over what
// somebody inside has made of them.
func (e *Engine) changePodFiles(before, after Pod) error {
	before.Spec.Links, after.Spec.Links = nil, nil // those they were for may have stopped
	wasResolv, wasHosts, err := e.nameFiles(before)
	if err != nil {
		return err
	}
	resolv, hosts, err := e.nameFiles(after)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name     string
		was, now []byte
	}{{"resolv.conf", wasResolv, resolv}, {"hosts", wasHosts, hosts}} {
		path := filepath.Join(e.podDir(after.ID), f.name)
		there, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rest, ours := bytes.CutPrefix(there, f.was)
		if !ours || bytes.Equal(f.was, f.now) {
			continue
		}
		if err := os.WriteFile(path, slices.Concat(f.now, rest), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func resolvConf(p Pod) ([]byte, error) {
	if named(p) {
		c, err := network.HostDNS()
		if p.Spec.DNS != nil {
			c, err = *p.Spec.DNS, nil
		}
		return withResolver(c).ResolvConf(), err
	}
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

// withResolver is c for a pod on networks that have names: their resolver asks
// the servers, and a name without a dot may be one of theirs.
func withResolver(c network.DNSConfig) network.DNSConfig {
	c.Servers = []string{network.ResolverAddr.String()}
	if !slices.ContainsFunc(c.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		c.Options = slices.Concat(c.Options, []string{"ndots:0"})
	}
	return c
}

// fileMounts binds the pod's files, or those of whom it shares the network
// with, into a container, except where the container's own mounts (kubelet's
// /etc/hosts, say) take the place.
func (e *Engine) fileMounts(p Pod, readonly bool) ([]specs.Mount, error) {
	dir := e.podDir(p.ID)
	other, err := e.networkOf(p.Spec)
	if err != nil {
		return nil, err
	}
	if other != nil {
		dir = e.podDir(other.pod.id)
	}
	options := []string{"rbind", "rprivate"}
	if readonly {
		options = append(options, "ro")
	}
	var out []specs.Mount
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		out = append(out, specs.Mount{
			Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(dir, name), Options: options})
	}
	return out, nil
}

// PodFile is where a pod has the file that is /etc/NAME in its containers: hosts,
// hostname or resolv.conf; "" where there is none, as while the pod is not ready.
func (e *Engine) PodFile(p Pod, name string) string {
	id := p.ID
	if other, err := e.networkOf(p.Spec); err == nil && other != nil {
		id = other.pod.id
	}
	path := filepath.Join(e.podDir(id), name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

func (e *Engine) removePodFiles(p Pod) error {
	shm := filepath.Join(e.podDir(p.ID), "shm")
	if err := unix.Unmount(shm, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", shm, err)
	}
	return errors.Join(os.RemoveAll(e.podDir(p.ID)), os.RemoveAll(e.runnerDir(p.ID)))
}
