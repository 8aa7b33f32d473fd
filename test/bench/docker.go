package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ferryos/ferry/test/machine"
)

// dockerd is a Docker daemon in network and mount namespaces of its own, so
// that the machine does not notice it.
type dockerd struct {
	cmd  *exec.Cmd
	host string
	root string
}

// besideDocker is a measurement that needs a Docker daemon beside, which it ends.
func besideDocker(measure func(*machine.Machine, *dockerd) error) func(*machine.Machine) error {
	return func(m *machine.Machine) error {
		docker, err := startDocker(m.Dir)
		if err != nil {
			return fmt.Errorf("docker, the peer: %w", err)
		}
		return errors.Join(measure(m, docker), docker.stop())
	}
}

// install installs the Debian packages of a peer whose program is missing.
func install(program, packages string) error {
	if _, err := exec.LookPath(program); err == nil {
		return nil
	}
	fmt.Printf("installing %s, to measure beside it\n", packages)
	if out, err := exec.Command("sh", "-c", "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "+packages).CombinedOutput(); err != nil {
		return fmt.Errorf("install %s: %w: %s", packages, err, out)
	}
	return nil
}

// startDocker installs Debian's Docker if it is missing, and starts it.
func startDocker(dir string) (*dockerd, error) {
	if err := install("/usr/sbin/dockerd", "docker.io iptables"); err != nil {
		return nil, err
	}
	d := &dockerd{root: filepath.Join(dir, "docker"), host: "unix://" + filepath.Join(dir, "docker.sock")}
	in := func(name string) string { return filepath.Join(d.root, name) }
	if err := os.MkdirAll(d.root, 0o711); err != nil {
		return nil, err
	}
	log, err := os.Create(in("log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command("unshare", "--net", "--mount", "sh", "-c", `ip link set lo up && exec dockerd "$@"`, "dockerd",
		"--data-root", in("data"), "--exec-root", in("exec"), "--pidfile", in("pid"), "-H", d.host,
		"--cgroup-parent", d.cgroup(), "--containerd-namespace", "ferrybench", "--containerd-plugins-namespace", "ferrybench-plugins")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for range 300 {
		if d.command("version").Run() == nil {
			return d, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	text, _ := os.ReadFile(in("log"))
	return nil, errors.Join(fmt.Errorf("dockerd does not come up: %s", text), d.stop())
}

// loadFrom takes an image over from a Ferry.
func (d *dockerd) loadFrom(m *machine.Machine, image string) error {
	tar, err := m.Command("ferry", "save", image).Output()
	if err != nil {
		return err
	}
	load := d.command("load")
	load.Stdin = bytes.NewReader(tar)
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("docker load: %w: %s", err, out)
	}
	return nil
}

func (d *dockerd) cgroup() string { return "/ferrybench" }

// command is Debian's own client, of the daemon's version.
func (d *dockerd) command(args ...string) *exec.Cmd {
	return exec.Command("/usr/bin/docker", append([]string{"-H", d.host}, args...)...)
}

// stop ends the daemon and its containerd; its namespaces, with all mounts and links, go with it.
func (d *dockerd) stop() error {
	err := d.cmd.Process.Signal(syscall.SIGTERM)
	if waitErr := d.cmd.Wait(); err == nil {
		err = waitErr
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + d.cgroup(), "/sys/fs/cgroup" + d.cgroup()} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			_ = os.Remove(dir) // it is empty unless a container of docker's lives
		}
	}
	return errors.Join(err, os.RemoveAll(d.root))
}
