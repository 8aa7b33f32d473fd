// Package machine gives tests and benchmarks a Ferry of their own: with
// directories, ports, ranges, a bridge and a cgroup that nothing else on the
// machine has. It runs the real programs and takes away what they leave.
//
// Only packages below test import it. Everything needs root.
package machine

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a Ferry's configuration and where it keeps what.
type Machine struct {
	Bin        string // the programs' directory
	Dir        string // everything below is in it
	ConfigFile string
	DataDir    string
	RunDir     string
	Kubeconfig string
	Cgroup     string
	Bridge     string
	Gateway    string // the node's address
	APIPort    int
	Registry   int // the registry's port
}

// New writes the configuration of a Ferry that can run beside others, but for
// kube-proxy's tables, of which a machine has one set: New fails where somebody
// else uses them. Nothing is started. Call Remove at the end.
func New(bin string) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if exec.Command("nft", "list", "table", "ip", "kube-proxy").Run() == nil {
		return nil, errors.New("another kube-proxy runs on this machine (nft table ip kube-proxy): end it first, for example with `ferry down`")
	}
	dir, err := os.MkdirTemp("", "ferry-e2e-")
	if err != nil {
		return nil, err
	}
	// Programs in containers, as other users, reach what is mounted from here.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(dir))
	id := fmt.Sprintf("%x", sum[:3])
	pods, services, third := 100+int(sum[0])%70, 180+int(sum[0])%70, int(sum[1])&^3
	m := &Machine{Bin: bin, Dir: dir, ConfigFile: filepath.Join(dir, "config.yaml"), DataDir: filepath.Join(dir, "data"),
		RunDir: filepath.Join(dir, "run"), Kubeconfig: filepath.Join(dir, "kubeconfig"), Cgroup: "/ferry-e2e-" + id, Bridge: "fe" + id,
		Gateway: fmt.Sprintf("10.%d.%d.1", pods, third), APIPort: ports[0], Registry: ports[2]}
	config := map[string]any{
		"dataDir": m.DataDir, "runDir": m.RunDir, "cgroupParent": m.Cgroup,
		"network": map[string]any{"bridge": m.Bridge,
			"podCIDR": fmt.Sprintf("10.%d.%d.0/22", pods, third), "serviceCIDR": fmt.Sprintf("10.%d.%d.0/24", services, third)},
		"api":      map[string]any{"port": m.APIPort, "kubeletPort": ports[1]},
		"registry": map[string]any{"port": m.Registry},
		"cdiDirs":  []string{m.cdiDir()},
	}
	data, err := json.Marshal(config) // JSON is YAML
	if err != nil {
		return nil, err
	}
	return m, os.WriteFile(m.ConfigFile, data, 0o644)
}

// freePorts returns n ports in sequence that nobody listens on now.
func freePorts(n int) ([]int, error) {
	for base := 20000 + os.Getpid()%20000; base < 60000; base += n {
		ports := []int{}
		for p := base; p < base+n; p++ {
			l, err := net.Listen("tcp", ":"+strconv.Itoa(p))
			if err != nil {
				break
			}
			l.Close()
			ports = append(ports, p)
		}
		if len(ports) == n {
			return ports, nil
		}
	}
	return nil, errors.New("no free ports")
}

// cdiDir is where files say what devices given by name are.
func (m *Machine) cdiDir() string { return filepath.Join(m.Dir, "cdi") }

// Env is the environment in which ferry, kubectl and docker mean this Ferry.
func (m *Machine) Env() []string {
	return []string{
		"FERRY_CONFIG=" + m.ConfigFile, "KUBECONFIG=" + m.Kubeconfig, "DOCKER_HOST=unix://" + filepath.Join(m.RunDir, "docker.sock"),
		"PATH=" + m.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + m.Dir, "NO_COLOR=1", "LANG=C.UTF-8",
		"BRIDGE=" + m.Bridge, "GATEWAY=" + m.Gateway, "DATA_DIR=" + m.DataDir, "RUN_DIR=" + m.RunDir, "CDI_DIR=" + m.cdiDir(), "CGROUP=" + m.Cgroup,
		"API_PORT=" + strconv.Itoa(m.APIPort), "REGISTRY_PORT=" + strconv.Itoa(m.Registry),
	}
}

// Command is a command in that environment.
func (m *Machine) Command(name string, args ...string) *exec.Cmd {
	path := name
	if own := filepath.Join(m.Bin, name); !strings.Contains(name, "/") {
		if _, err := os.Stat(own); err == nil {
			path = own
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = m.Env()
	return cmd
}

// Run runs a command to its end and returns its standard output; an error has
// what it wrote on standard error.
func (m *Machine) Run(name string, args ...string) (string, error) {
	out, err := m.Command(name, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// PID is the daemon's process id, 0 if it does not run.
func (m *Machine) PID() int {
	data, err := os.ReadFile(filepath.Join(m.RunDir, "ferryd.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || !strings.HasPrefix(exe, filepath.Join(m.Bin, "ferryd")) {
		return 0
	}
	return pid
}

// Kill ends the daemon as a crash would, and waits for that.
func (m *Machine) Kill() error {
	pid := m.PID()
	if pid == 0 {
		return errors.New("ferryd does not run")
	}
	return kill(pid)
}

func kill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for range 1000 {
		// The first thread ends before the others, which hold files and locks.
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		stat, statErr := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || statErr != nil || len(threads) <= 1 && strings.Contains(string(stat), ") Z ") {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d does not end", pid)
}

// PowerOff leaves what a power cut does: no process, no mount, no interface, no
// run directory; only the data directory as it was.
func (m *Machine) PowerOff() error {
	var errs []error
	for {
		pids := m.processes()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if err := kill(pid); err != nil {
				return err
			}
		}
	}
	for _, point := range slices.Backward(m.mounts()) {
		errs = append(errs, unix.Unmount(point, unix.MNT_DETACH))
	}
	errs = append(errs, os.RemoveAll(m.RunDir))
	for _, dir := range slices.Backward(m.cgroups()) {
		errs = append(errs, os.Remove(dir))
	}
	// These may be gone already; Leftovers tells of what stays.
	for _, name := range m.bridges() {
		_ = exec.Command("ip", "link", "delete", name).Run()
	}
	for _, table := range m.tables() {
		_ = exec.Command("nft", append([]string{"delete", "table"}, strings.Fields(table)...)...).Run()
	}
	return errors.Join(errs...)
}

// Remove takes everything away, whatever state it is in, and then reports what
// was left all the same: a defect of Ferry.
func (m *Machine) Remove() error {
	var errs []error
	if pid := m.PID(); pid != 0 {
		errs = append(errs, kill(pid))
	}
	if _, err := os.Stat(m.DataDir); err == nil {
		if out, err := m.Command("ferryd", "teardown").CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("teardown: %w: %s", err, out))
		}
	}
	errs = append(errs, m.Leftovers(), m.PowerOff())
	if len(m.mounts()) == 0 { // what is mounted below is not ours to delete
		errs = append(errs, os.RemoveAll(m.Dir))
	}
	return errors.Join(errs...)
}

// Leftovers is an error that lists what there is of a Ferry that is down.
func (m *Machine) Leftovers() error {
	var left []string
	for _, point := range m.mounts() {
		left = append(left, "mount "+point)
	}
	for _, pid := range m.processes() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d: %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	for _, name := range m.bridges() {
		left = append(left, "interface "+name)
	}
	for _, table := range m.tables() {
		left = append(left, "nftables table "+table)
	}
	for _, dir := range m.cgroups() {
		left = append(left, "cgroup "+dir)
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
}

// bridges are this Ferry's own bridge and those of the networks that were made,
// whose names begin as its does.
func (m *Machine) bridges() []string {
	links, _ := net.Interfaces()
	var list []string
	for _, l := range links {
		if l.Name == m.Bridge || strings.HasPrefix(l.Name, m.Bridge[:6]+"-") {
			list = append(list, l.Name)
		}
	}
	return list
}

// cgroups are the directories of this Ferry's cgroups in every hierarchy, outer ones first.
func (m *Machine) cgroups() []string {
	var list []string
	for _, glob := range []string{"/sys/fs/cgroup/*" + m.Cgroup, "/sys/fs/cgroup" + m.Cgroup} {
		tops, _ := filepath.Glob(glob)
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					list = append(list, path)
				}
				return nil
			})
		}
	}
	return list
}

// tables are the nftables tables of this Ferry and of its kube-proxy.
func (m *Machine) tables() []string {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return nil
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		name := strings.TrimSpace(strings.TrimPrefix(line, "table "))
		if strings.HasSuffix(name, "kube-proxy") || strings.Contains(name, m.Bridge) {
			list = append(list, name)
		}
	}
	return list
}

// mounts are the mount points in the directory, outer ones first.
func (m *Machine) mounts() []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], m.Dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points
}

// processes are those of the containers and of Ferry's own programs, this one excepted.
func (m *Machine) processes() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var pids []int
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == os.Getpid() {
			continue
		}
		cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil {
			continue
		}
		// A runner and a daemon write their logs in the directory. What a runner
		// executes is a copy in memory, but it is called by the path.
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		log, _ := os.Readlink(filepath.Join(dir, "fd", "2"))
		program := filepath.Join(m.Bin, "ferry")
		ours := (strings.HasPrefix(exe, program) || strings.HasPrefix(string(cmdline), program)) && strings.HasPrefix(log, m.Dir+"/")
		if strings.Contains(string(cgroups), ":"+m.Cgroup+"/") || ours {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Inventory is what a Ferry holds of the machine and of its data directory, by
// kind, so that tests can tell whether it gives all of it back.
func (m *Machine) Inventory() map[string][]string {
	list := func(dirs ...string) (names []string) {
		for _, dir := range dirs {
			entries, _ := os.ReadDir(dir) // none is none
			for _, entry := range entries {
				names = append(names, filepath.Join(filepath.Base(dir), entry.Name()))
			}
		}
		return names
	}
	run, data := func(name string) string { return filepath.Join(m.RunDir, name) }, func(name string) string { return filepath.Join(m.DataDir, name) }
	out := map[string][]string{
		"mounts": m.mounts(), "cgroups": slices.DeleteFunc(m.cgroups(), func(dir string) bool { return strings.HasSuffix(dir, m.Cgroup) }),
		"run directories":    list(run("r"), run("c"), run("p")),
		"network namespaces": list(run("netns")),
		"records":            list(data("engine/pods"), data("engine/containers")),
		"leases":             list(data("network/leases")),
		"writable layers":    list(data("images/containers")),
		"snapshots":          list(data("images/snapshots/snapshots")),
		"blobs":              list(data("images/content/blobs/sha256")),
		"unfinished pulls":   list(data("images/content/ingest")),
		"temporary files":    list(data("images/tmp")),
	}
	out["run directories"] = slices.DeleteFunc(out["run directories"], isSpare)
	for _, pid := range m.processes() {
		if log, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid)); isSpare(log) {
			continue
		}
		out["processes"] = append(out["processes"], strconv.Itoa(pid))
	}
	return out
}

// isSpare tells the directory of a runner that waits for a pod.
func isSpare(path string) bool { return strings.Contains(path, "/spare-") }
