package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ferryos/ferry/test/machine"
)

// podman is Debian's podman with directories and a cgroup of its own, in network
// and mount namespaces that a process holds.
type podman struct {
	hold *exec.Cmd
	root string
}

const podmanCgroup = "/ferrybench-podman"

// startPodman installs podman if it is missing, and gives it an image of a Ferry.
func startPodman(m *machine.Machine, image string) (_ *podman, err error) {
	if err := install("podman", "podman netavark runc"); err != nil {
		return nil, err
	}
	p := &podman{root: filepath.Join(m.Dir, "podman")}
	p.hold = exec.Command("unshare", "--net", "--mount", "sh", "-c", "ip link set lo up && echo && exec sleep infinity")
	ready, err := p.hold.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.hold.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("make its namespaces: %w", err)
	}
	tar, err := m.Command("ferry", "save", image).Output()
	if err != nil {
		return nil, err
	}
	load := p.command("load")
	load.Stdin = bytes.NewReader(tar)
	if out, err := load.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("podman load: %w: %s", err, out)
	}
	return p, nil
}

func (p *podman) command(args ...string) *exec.Cmd {
	in := func(name string) string { return filepath.Join(p.root, name) }
	return exec.Command("nsenter", append([]string{"-t", strconv.Itoa(p.hold.Process.Pid), "-n", "-m", "podman", "--root", in("data"), "--runroot", in("run"),
		"--tmpdir", in("tmp"), "--network-config-dir", in("net"), "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"}, args...)...)
}

// container is what a container is run with where nobody may raise limits.
func (p *podman) container(args ...string) []string {
	return append([]string{"run", "--cgroup-parent", podmanCgroup, "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, args...)
}

// stop ends all that podman runs; its namespaces, with mounts and links, go with their holder.
func (p *podman) stop() error {
	_ = p.command("rm", "-fa", "-t", "0").Run() // there may be none
	err := p.hold.Process.Kill()
	_ = p.hold.Wait() // says that it was killed
	for _, pattern := range []string{podmanCgroup + "/*/*", podmanCgroup + "/*", podmanCgroup} {
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, _ := filepath.Glob(root + pattern)
			for _, dir := range dirs {
				_ = os.Remove(dir) // takes empty cgroups alone
			}
		}
	}
	return errors.Join(err, os.RemoveAll(p.root))
}

// besidePodman measures run and exec beside podman, where that runs.
func (b *bench) besidePodman(m *machine.Machine) error {
	const what = "`ferry run --rm IMAGE true` beside podman"
	p, err := startPodman(m, "box")
	if err != nil {
		b.add(what, "", "", fmt.Sprintf("podman does not run here: %s", err))
		return nil
	}
	measure := func() (err error) {
		version, err := p.command("--version").Output()
		if err != nil {
			return err
		}
		peer := strings.TrimSpace(strings.Replace(string(version), " version", "", 1)) + " with runc"
		if out, err := p.command(p.container("--rm", "box", "true")...).CombinedOutput(); err != nil {
			b.add(what, "", "", fmt.Sprintf("%s does not run here: %s", peer, bytes.TrimSpace(out)))
			return nil
		}
		ours, theirs, err := inTurns(containerRuns, func() error { _, err := m.Run("ferry", "run", "--rm", "box", "true"); return err },
			func() error { return p.command(p.container("--rm", "box", "true")...).Run() })
		if err != nil {
			return err
		}
		b.add(what, "", ours.String(), beside(peer, ours, theirs))
		if _, err := m.Run("ferry", "run", "-d", "--name", "rest", "box", "sleep", "10000"); err != nil {
			return err
		}
		defer func() {
			_, rmErr := m.Run("ferry", "rm", "-f", "rest")
			err = errors.Join(err, rmErr)
		}()
		if out, err := p.command(p.container("-d", "--name", "rest", "box", "sleep", "10000")...).CombinedOutput(); err != nil {
			return fmt.Errorf("podman run: %w: %s", err, out)
		}
		ours, theirs, err = inTurns(containerRuns, func() error { _, err := m.Run("ferry", "exec", "rest", "true"); return err },
			func() error { return p.command("exec", "rest", "true").Run() })
		if err != nil {
			return err
		}
		b.add("`ferry exec CONTAINER true` beside podman", "", ours.String(), beside(peer, ours, theirs))
		return nil
	}
	return errors.Join(measure(), p.stop())
}
