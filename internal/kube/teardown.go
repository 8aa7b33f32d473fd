package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// Change is something of the machine that the cluster changed.
type Change struct{ Kind, Name string }

// Changes lists what Teardown takes away.
func Changes(opt Options) []Change {
	var out []Change
	if opt.KubeProxy {
		for _, table := range proxyTables() {
			out = append(out, Change{"nftables", "table " + table})
		}
	}
	if _, err := os.Stat(filepath.Join(opt.DataDir, "tunables.json")); err == nil {
		for _, name := range tunableNames {
			out = append(out, Change{"sysctl", strings.ReplaceAll(name, "/", ".")})
		}
	}
	if _, err := os.Stat(deviceSocket); err == nil {
		out = append(out, Change{"file", deviceSocket})
	}
	return out
}

// Teardown takes away what the cluster left on the machine, once its process
// has ended and its pods are gone: volumes' mounts, kube-proxy's tables, the
// kernel settings if a start was interrupted. Idempotent.
func Teardown(ctx context.Context, opt Options) error {
	errs := []error{unmountBelow(filepath.Join(opt.DataDir, "kubelet"))}
	if opt.KubeProxy {
		errs = append(errs, removeProxyTables(ctx))
	}
	errs = append(errs, removeDeviceSocket())
	errs = append(errs, tunables{file: filepath.Join(opt.DataDir, "tunables.json")}.restore())
	return errors.Join(errs...)
}

// deviceSocket is where the kubelet awaits device plugins: the one path of it
// that no setting moves.
const deviceSocket = pluginapi.KubeletSocket

// removeDeviceSocket removes the kubelet's socket, unless somebody else's
// kubelet answers there, and the directories if they are empty then.
func removeDeviceSocket() error {
	conn, err := net.Dial("unix", deviceSocket)
	if err == nil {
		return conn.Close()
	}
	if err := os.Remove(deviceSocket); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, dir := range []string{"/var/lib/kubelet/device-plugins", "/var/lib/kubelet"} {
		if os.Remove(dir) != nil {
			return nil // in use
		}
	}
	return nil
}

// unmountBelow unmounts everything at and below dir, the deepest first. The
// kubelet mounts its root on itself to have mounts below it shared.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			points = append(points, strings.ReplaceAll(fields[4], `\040`, " "))
		}
	}
	slices.SortFunc(points, func(a, b string) int { return len(b) - len(a) })
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// proxyTables are kube-proxy's tables that exist. kube-proxy runs nft itself,
// so it is there where they are.
func proxyTables() []string {
	var out []string
	for _, table := range []string{"ip kube-proxy", "ip6 kube-proxy"} {
		if exec.Command("nft", append([]string{"list", "table"}, strings.Fields(table)...)...).Run() == nil {
			out = append(out, table)
		}
	}
	return out
}

func removeProxyTables(ctx context.Context) error {
	var errs []error
	for _, table := range proxyTables() {
		out, err := exec.CommandContext(ctx, "nft", append([]string{"delete", "table"}, strings.Fields(table)...)...).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove table %s: %w: %s", table, err, out))
		}
	}
	return errors.Join(errs...)
}
