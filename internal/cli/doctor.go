package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/cli/dockercontext"
	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/kube/kubeconfig"
	"github.com/ferryos/ferry/internal/term"
)

// check is one finding of `ferry doctor`.
type check struct {
	Code   string `json:"code"`
	State  string `json:"state"` // ok, warning or error
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// change is one thing on the machine that Ferry changed, as ferryd tells.
type change struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

type diagnosis struct {
	Checks  []check  `json:"checks"`
	Changes []change `json:"changes"`
}

func (e *env) doctorCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check the machine, and list what Ferry has changed on it", Args: noArgs,
		Long:    "Exits with 1 if something that Ferry needs is missing.",
		Example: "  ferry doctor\n  ferry doctor -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			cfg, err := e.config()
			if err != nil {
				return err
			}
			d := diagnosis{Checks: e.examine(ctx, cfg), Changes: e.changes(ctx, cfg)}
			if err := output.show(e.term, d, func() error { return e.showDiagnosis(d) }); err != nil {
				return err
			}
			for _, c := range d.Checks {
				if c.State == "error" {
					return exitError{1}
				}
			}
			return nil
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) showDiagnosis(d diagnosis) error {
	marks := map[string]string{"ok": e.term.Paint(term.Green, "✓"), "warning": e.term.Paint(term.Yellow, "!"), "error": e.term.Paint(term.Red, "✗")}
	for _, c := range d.Checks {
		e.term.Printf("%s %-12s %s\n", marks[c.State], c.Code, c.Text)
		if c.Remedy != "" {
			e.term.Printf("  %-12s → %s\n", "", c.Remedy)
		}
	}
	if len(d.Changes) == 0 {
		e.term.Printf("\nFerry has changed nothing on this machine.\n")
		return nil
	}
	e.term.Printf("\nChanged on this machine, and put back by `ferry down`:\n")
	var rows [][]string
	for _, c := range d.Changes {
		value := ""
		if c.New != "" {
			value = c.Old + " → " + c.New
		}
		rows = append(rows, []string{"  " + c.Kind, c.Name, value})
	}
	return e.term.Rows(nil, rows)
}

// changes asks the daemon's program, which keeps account of them, and adds the contexts.
func (e *env) changes(ctx context.Context, cfg config.Config) []change {
	list := []change{}
	out, err := exec.CommandContext(ctx, filepath.Join(cfg.LibexecDir, "ferryd"), "changes").Output()
	if err != nil || json.Unmarshal(out, &list) != nil {
		e.term.Notef("warning: the list of changes cannot be read: %v", err)
	}
	if path, err := kubeconfig.Path(e.getenv); err == nil && kubeconfig.Has(path, cfg.API.Context) {
		list = append(list, change{Kind: "kubeconfig", Name: "context " + cfg.API.Context + " in " + path})
	}
	if dir, err := dockercontext.Dir(e.getenv); err == nil && dockercontext.Has(dir, cfg.API.Context) {
		list = append(list, change{Kind: "docker", Name: "context " + cfg.API.Context + " in " + dir})
	}
	return list
}

// minFree is how much room the data directory should have: a few images.
const minFree = 2 << 30

// examine checks what Ferry needs of the machine.
func (e *env) examine(ctx context.Context, cfg config.Config) []check {
	pid, _ := daemonPID(cfg)
	checks := []check{
		verdict("root", os.Geteuid() == 0, "runs as root", "ferry's platform commands need root", "run them with sudo"),
		checkCgroups(cfg),
		checkFilesystem("overlay", "overlayfs"),
		checkProgram("nft", "nftables"),
		checkSeccomp(), checkDisk(cfg),
	}
	for _, name := range []string{"ferryd", "ferry-build", "ferry-runner", "ferry-init"} {
		_, err := os.Stat(filepath.Join(cfg.LibexecDir, name))
		checks = append(checks, verdict(name, err == nil, "is installed in "+cfg.LibexecDir, fmt.Sprint(err), "install it beside ferry, or set libexecDir"))
	}
	if pid != 0 {
		ready, why := e.nodeReady(ctx, cfg)
		return append(checks, verdict("node", ready, "is ready", why, "see "+cfg.LogFile()))
	}
	loopback, gateway := "127.0.0.1", cfg.Gateway().String()
	checks = append(checks,
		checkPort(ctx, "api.port", cfg.API.Port, loopback, gateway),
		checkPort(ctx, "api.kubeletPort", cfg.API.KubeletPort, gateway),
		checkPort(ctx, "registry.port", cfg.Registry.Port, loopback, gateway))
	return append(checks, check{"daemon", "warning", "Ferry is not running", "start it with `ferry up`"})
}

func verdict(code string, ok bool, good, bad, remedy string) check {
	if ok {
		return check{Code: code, State: "ok", Text: good}
	}
	return check{code, "error", bad, remedy}
}

func checkCgroups(cfg config.Config) check {
	missing := cgroups.Missing()
	if err := cgroups.CheckParent(cfg.CgroupParent); len(missing) == 0 && err != nil {
		return check{"cgroups", "error", "cgroupParent: " + err.Error(), cgroups.ParentRemedy}
	}
	return verdict("cgroups", len(missing) == 0, cgroups.Version()+" with all controllers needed",
		cgroups.Version()+" without "+strings.Join(missing, ", "), cgroups.Remedy)
}

func checkFilesystem(name, title string) check {
	data, err := os.ReadFile("/proc/filesystems")
	known := err == nil && strings.Contains(string(data), "\t"+name+"\n")
	if !known { // a module that is loaded on demand
		known = exec.Command("modprobe", "-n", name).Run() == nil
	}
	return verdict(title, known, "is there", "the kernel has no "+title, "use a kernel with "+title)
}

func checkProgram(name, pkg string) check {
	_, err := exec.LookPath(name)
	if err != nil {
		_, err = os.Stat("/usr/sbin/" + name)
	}
	return verdict(pkg, err == nil, name+" is installed", name+" is missing; Services need it", "apt-get install "+pkg)
}

func checkSeccomp() check {
	data, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	return verdict("seccomp", err == nil && strings.Contains(string(data), "errno"), "is there", "the kernel has no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER")
}

func checkDisk(cfg config.Config) check {
	dir := cfg.DataDir
	var fs unix.Statfs_t
	for unix.Statfs(dir, &fs) != nil {
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return check{"disk", "error", "the room for " + cfg.DataDir + " cannot be told", "set dataDir in the configuration"}
	}
	free := fs.Bavail * uint64(fs.Bsize)
	return verdict("disk", free >= minFree, fmt.Sprintf("%.1f GB free for %s", float64(free)/1e9, cfg.DataDir),
		fmt.Sprintf("only %.1f GB free for %s", float64(free)/1e9, cfg.DataDir), "make room, or set dataDir in the configuration")
}

// checkPort looks whether Ferry could listen on the port at each of the hosts.
func checkPort(ctx context.Context, field string, port int, hosts ...string) check {
	taken := false
	for _, host := range hosts {
		l, err := listenAnywhere.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			l.Close()
		}
		taken = taken || errors.Is(err, unix.EADDRINUSE)
	}
	return verdict(field, !taken, fmt.Sprintf("%d is free", port), fmt.Sprintf("port %d is taken", port),
		"end what uses it (`ss -ltnp`), or set "+field+" in the configuration")
}

// listenAnywhere takes addresses that the machine does not have yet, as the
// bridge's before the first start: who listens on all would be in the way.
var listenAnywhere = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) }); e != nil {
		return e
	}
	return err
}}
