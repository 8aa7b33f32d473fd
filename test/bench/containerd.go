package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerd is a containerd with directories, a cgroup and a bridge of its
// own, in a mount namespace of its own. It shares the network, for the images
// come from Ferry's registry on loopback.
type containerd struct {
	cmd     *exec.Cmd
	root    string
	socket  string
	version string
}

// bridge is the interface of containerd's pods.
const bridge = "ferrybench0"

// startContainerd builds containerd if it is missing, and starts it. pause is the
// image of its pods' first process.
func startContainerd(ctx context.Context, dir, pause string) (*containerd, error) {
	built := exec.CommandContext(ctx, "scripts/containerd.sh")
	built.Stderr = os.Stderr
	out, err := built.Output()
	if err != nil {
		return nil, fmt.Errorf("build it: %w", err)
	}
	programs := strings.TrimSpace(string(out))
	c := &containerd{root: filepath.Join(dir, "containerd"), socket: filepath.Join(dir, "containerd.sock")}
	in := func(name string) string { return filepath.Join(c.root, name) }
	config := fmt.Sprintf(`version = 3
root = %q
state = %q
[grpc]
address = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%q]
conf_dir = %q
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = %q
`, in("root"), in("state"), c.socket, pause, programs, in("cni"), filepath.Join(programs, "runc"))
	network := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "bench", "plugins": [{"type": "bridge", "bridge": %q, "isGateway": true,
"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.83.0.0/16"}]]}}]}`, bridge, in("leases"))
	if err := errors.Join(os.MkdirAll(in("cni"), 0o711), os.WriteFile(in("config.toml"), []byte(config), 0o600),
		os.WriteFile(in("cni/bench.conflist"), []byte(network), 0o600)); err != nil {
		return nil, err
	}
	log, err := os.Create(in("log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd = exec.Command("unshare", "--mount", filepath.Join(programs, "containerd"), "-c", in("config.toml"))
	c.cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	if err := c.await(ctx); err != nil {
		text, _ := os.ReadFile(in("log"))
		return nil, errors.Join(fmt.Errorf("it does not come up: %w: %s", err, text[max(0, len(text)-3000):]), c.stop())
	}
	return c, nil
}

// await waits until it answers and has a network.
func (c *containerd) await(ctx context.Context) error {
	client, err := dialCRI(c.socket, "")
	if err != nil {
		return err
	}
	defer client.close()
	for range 300 {
		version, versionErr := client.runtime.Version(ctx, &runtimeapi.VersionRequest{})
		status, statusErr := client.runtime.Status(ctx, &runtimeapi.StatusRequest{})
		if err = errors.Join(versionErr, statusErr); err == nil {
			c.version = version.RuntimeName + " " + version.RuntimeVersion
			for _, condition := range status.Status.Conditions {
				if !condition.Status && strings.HasSuffix(condition.Type, "Ready") { // another tells of deprecations
					err = fmt.Errorf("%s: %s", condition.Type, condition.Message)
				}
			}
			if err == nil {
				return nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (c *containerd) cgroup() string { return "/ferrybench-cri" }

// stop ends it and takes away what it made; its pods are gone by then.
func (c *containerd) stop() error {
	err := c.cmd.Process.Signal(syscall.SIGTERM)
	if waitErr := c.cmd.Wait(); err == nil {
		err = waitErr
	}
	if out, linkErr := exec.Command("ip", "link", "delete", bridge).CombinedOutput(); linkErr != nil && !bytes.Contains(out, []byte("Cannot find device")) {
		err = errors.Join(err, fmt.Errorf("remove %s: %w: %s", bridge, linkErr, out))
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + c.cgroup(), "/sys/fs/cgroup" + c.cgroup()} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			_ = os.Remove(dir) // it is empty unless a pod lives
		}
	}
	return errors.Join(err, os.RemoveAll(c.root))
}
