package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/cli/dockercontext"
	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/instance"
	"github.com/ferryos/ferry/internal/kube/kubeconfig"
)

// downTime is how long the daemon gets to end in order.
const downTime = 40 * time.Second

// needRoot refuses what only root can do, before anything is begun.
func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "%s must run as root", what).Hint("run it with sudo")
	}
	return nil
}

// daemonPID returns the process id of the running daemon; 0 if none runs. The
// daemon holds a lock as long as it lives, so a stale file tells nothing.
func daemonPID(cfg config.Config) (int, error) {
	// The lock comes before the file, and goes after it with the process.
	for begin := time.Now(); time.Since(begin) < pidTime; {
		running, err := instance.Running(cfg.RunDir)
		if err != nil || !running {
			return 0, err
		}
		data, err := os.ReadFile(cfg.PIDFile())
		if pid, convErr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && convErr == nil {
			return pid, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, fault.New(fault.Internal, "ferryd runs, but %s does not tell its process id", cfg.PIDFile())
}

// pidTime is how long a daemon may have the lock and no process id in its file:
// on a busy disk a large process takes seconds to be gone.
const pidTime = 10 * time.Second

func (e *env) upCommand() *cobra.Command {
	return &cobra.Command{
		Use: "up", Short: "Start the platform and wait until it is ready", Args: noArgs,
		Long: "Starts ferryd in the background, shows its progress, and returns when pods and containers can be run.\n" +
			"Adds the context of its cluster to your kubeconfig, and one of the docker command. Where Ferry runs\n" +
			"already, nothing else changes.",
		Example: "  ferry up",
		RunE:    interruptible(func(ctx context.Context, _ []string) error { return e.runUp(ctx) }),
	}
}

func (e *env) runUp(ctx context.Context) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if err := needRoot("ferry up"); err != nil {
		return err
	}
	pid, err := e.waitReady(ctx, cfg)
	switch {
	case err != nil:
		return err
	case pid != 0:
		e.term.Notef("Ferry is up already (process %d)", pid)
	default:
		if err := e.launch(ctx, cfg); err != nil {
			return err
		}
	}
	if err := e.addContexts(cfg); err != nil {
		return err
	}
	e.term.Notef("kubectl --context %s, docker --context %[1]s and ferry are ready to use", cfg.API.Context)
	return nil
}

// addContexts tells kubectl and docker where Ferry is. A context of docker's
// that somebody else has made stays.
func (e *env) addContexts(cfg config.Config) error {
	path, err := kubeconfig.Path(e.getenv)
	if err != nil {
		return err
	}
	if err := kubeconfig.Merge(path, cfg.API.Context, cfg.AdminKubeconfig()); err != nil {
		return err
	}
	dir, err := dockercontext.Dir(e.getenv)
	if err != nil {
		return nil // who has no home has no contexts of docker's
	}
	if err := dockercontext.Add(dir, cfg.API.Context, cfg.DockerSocket()); err != nil {
		e.term.Notef("warning: %v", err)
	}
	return nil
}

func (e *env) removeContexts(cfg config.Config) error {
	path, err := kubeconfig.Path(e.getenv)
	if err != nil {
		return err
	}
	err = kubeconfig.Remove(path, cfg.API.Context)
	if dir, dirErr := dockercontext.Dir(e.getenv); dirErr == nil { // else there is none
		err = errors.Join(err, dockercontext.Remove(dir, cfg.API.Context))
	}
	return err
}

// launch starts the daemon and follows its progress until it is ready.
func (e *env) launch(ctx context.Context, cfg config.Config) error {
	binary := filepath.Join(cfg.LibexecDir, "ferryd")
	if _, err := os.Stat(binary); err != nil {
		return fault.New(fault.Unavailable, "the daemon is missing: %w", err).Hint("install ferryd beside ferry, or set libexecDir in the configuration")
	}
	if err := os.MkdirAll(filepath.Dir(cfg.LogFile()), 0o711); err != nil {
		return fault.New(fault.Unavailable, "%w", err).Hint("make room, or set dataDir in the configuration")
	}
	log, err := os.OpenFile(cfg.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fault.New(fault.Unavailable, "%w", err).Hint("make room, or set dataDir in the configuration")
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(binary, "--ready-fd", "3")
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fault.New(fault.Unavailable, "start ferryd: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if err := e.follow(r, cfg); err != nil {
		_ = cmd.Wait() // what it told is better than its exit code
		return err
	}
	return cmd.Process.Release()
}

// startPhase is a line of the daemon's progress, see docs/reference/ready-fd.md.
type startPhase struct {
	Phase, State, Error, Hint string
	TookMs                    int64
}

// follow shows the daemon's progress until it is ready or has failed.
func (e *env) follow(r *os.File, cfg config.Config) error {
	progress := e.term.Progress()
	defer progress.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var p startPhase
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return fmt.Errorf("ferryd's progress: %w", err)
		}
		took := (time.Duration(p.TookMs) * time.Millisecond).String()
		switch {
		case p.State == "failed":
			return fault.New(fault.Unavailable, "%s", p.Error).Hint("%s", orElse(p.Hint, "see "+cfg.LogFile()))
		case p.State == "starting":
			progress.Start(p.Phase)
		case p.Phase == "ready":
			progress.Done(p.Phase, took)
			return nil
		default:
			progress.Done(p.Phase, took)
		}
	}
	return fault.New(fault.Unavailable, "ferryd ended while it started: %s", lastError(cfg.LogFile())).Hint("see %s and `ferry doctor`", cfg.LogFile())
}

// lastError is the last error in the end of a log.
func lastError(path string) string {
	const unknown = "its log tells no error"
	f, err := os.Open(path)
	if err != nil {
		return unknown
	}
	defer f.Close()
	const window = 8 << 20 // behind the error there may be the stacks of thousands of goroutines
	if info, err := f.Stat(); err == nil && info.Size() > window {
		if _, err := f.Seek(-window, io.SeekEnd); err != nil {
			return unknown
		}
	}
	last := unknown
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, text, ok := strings.Cut(lines.Text(), "level=ERROR msg="); ok {
			last = text
		} else if strings.HasPrefix(lines.Text(), "panic: ") || strings.HasPrefix(lines.Text(), "fatal error: ") {
			last = lines.Text()
		}
	}
	return last
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

// waitReady waits for a daemon that runs already, and returns its process id; 0
// if none runs, or the one that did ends meanwhile.
func (e *env) waitReady(ctx context.Context, cfg config.Config) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		pid, err := daemonPID(cfg)
		if err != nil || pid == 0 {
			return 0, err
		}
		ready, why := e.nodeReady(ctx, cfg)
		if ready {
			return pid, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return 0, fault.New(fault.Unavailable, "Ferry runs but is not ready: %s", why).Hint("see %s and `ferry doctor`", cfg.LogFile())
		}
	}
}

// nodeReady asks the cluster whether its node is ready, and else says why not.
func (e *env) nodeReady(ctx context.Context, cfg config.Config) (bool, string) {
	k, err := e.kube()
	if err != nil {
		return false, err.Error()
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := k.getJSON(ctx, "/api/v1/nodes/"+cfg.NodeName, nil, &node); err != nil {
		return false, err.Error()
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True", c.Message
		}
	}
	return false, "the node has not reported yet"
}

func (e *env) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the platform and put the machine back", Args: noArgs,
		Long: "Stops ferryd, all pods and containers, and undoes what Ferry changed on the machine: bridge, firewall\n" +
			"tables, kernel settings, the contexts of kubectl and docker. Images, volumes, stopped containers and the\n" +
			"cluster's objects are kept: `ferry up` brings them back.",
		Example: "  ferry down",
		RunE:    interruptible(func(ctx context.Context, _ []string) error { return e.runDown(ctx) }),
	}
}

func (e *env) runDown(ctx context.Context) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	if err := needRoot("ferry down"); err != nil {
		return err
	}
	progress := e.term.Progress()
	defer progress.Close()
	begin := time.Now()
	progress.Start("daemon")
	pid, err := daemonPID(cfg)
	if err != nil {
		return err
	}
	if pid != 0 {
		if err := endDaemon(ctx, cfg, pid); err != nil {
			return err
		}
	}
	progress.Done("daemon", time.Since(begin).Round(time.Millisecond).String())
	begin = time.Now()
	progress.Start("containers and network")
	out, err := exec.CommandContext(ctx, filepath.Join(cfg.LibexecDir, "ferryd"), "teardown").CombinedOutput()
	if err != nil {
		text, hint := spoken(string(out))
		return fault.New(fault.Internal, "put the machine back: %s", orElse(text, err.Error())).
			Hint("%s", orElse(hint, "run `ferry down` again; `ferry doctor` lists what is left"))
	}
	progress.Done("containers and network", time.Since(begin).Round(time.Millisecond).String())
	return e.removeContexts(cfg)
}

// spoken is the error and the hint that ferryd ended with, without the log before.
func spoken(output string) (text, hint string) {
	_, said, found := strings.Cut("\n"+output, "\nerror: ")
	if !found {
		said = output
	}
	text, hint, _ = strings.Cut(strings.TrimSpace(said), "\nhint: ")
	return text, hint
}

// endDaemon asks the daemon to end and waits until it has.
func endDaemon(ctx context.Context, cfg config.Config, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end ferryd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, downTime)
	defer cancel()
	for {
		running, err := instance.Running(cfg.RunDir)
		if err != nil || !running {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "ferryd (process %d) has not ended after %v", pid, downTime).Hint("see %s; `kill -9 %d` loses nothing, then `ferry down` again", cfg.LogFile(), pid)
		}
	}
}
