// Package app is the composition root of ferryd: configuration in, running
// components out. It is the one place where every part is visible, so it holds
// wiring and nothing else. Only cmd/ferryd imports it.
package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/lifecycle"
	"github.com/ferryos/ferry/internal/logfile"
)

// stopTime is how long the parts get to stop in order.
const stopTime = 20 * time.Second

const usage = `usage: ferryd [--ready-fd N]   run the platform until SIGTERM
       ferryd teardown         end containers and put the machine back, while ferryd does not run
       ferryd changes          print what Ferry has changed on the machine, as JSON
       ferryd version
`

// Main runs ferryd with the arguments after the program's name and returns its
// exit code. It ends when ctx does.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("ferryd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, usage) }
	readyFD := flags.Int("ready-fd", 0, "write start-up progress to this descriptor")
	if err := flags.Parse(args); err != nil {
		return fault.ExitUsage
	}
	var err error
	switch cmd := flags.Arg(0); cmd {
	case "":
		progress := newProgress(*readyFD)
		err = run(ctx, progress, stderr)
		progress.end(err)
	case "teardown":
		err = teardown(ctx, stderr)
	case "changes":
		err = changes(stdout, stderr)
	case "version":
		fmt.Fprintln(stdout, "ferryd", Version)
	default:
		err = fault.New(fault.Invalid, "unknown command %q", cmd).Hint("see `ferryd -h`")
	}
	if err != nil {
		fmt.Fprintln(stderr, "error:", err)
		if hint := fault.HintOf(err); hint != "" {
			fmt.Fprintln(stderr, "hint:", hint)
		}
	}
	return fault.ExitCode(err)
}

// run starts everything, waits for the node to be ready and for ctx to end,
// and stops everything.
func run(ctx context.Context, progress *progress, stderr io.Writer) error {
	begin := time.Now()
	tellInit := initNotifier() // first: Kubernetes would tell it too soon
	cfg, log, err := setUp(stderr)
	if err != nil {
		return err
	}
	unlock, err := lockInstance(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkRoom(cfg.DataDir); err != nil {
		return err
	}
	if err := useTempDir(cfg); err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	parts, err := newParts(cfg, log, progress)
	if err != nil {
		return err
	}
	group := lifecycle.New(log, parts.list...)
	knowsPods := false
	group.OnState(func(name, state string, took time.Duration) {
		knowsPods = knowsPods || name == parts.engine.Name() && state == "started"
		progress.component(name, state, took)
	})
	if err := group.Start(ctx); err != nil {
		if knowsPods && !parts.engine.Running() { // else there is something to come back to
			err = errors.Join(err, parts.putBack(context.WithoutCancel(ctx), cfg, log))
		}
		return err
	}
	err = parts.cluster.WaitReady(ctx)
	if err == nil {
		log.Info("ready", "took", time.Since(begin))
		progress.ready(time.Since(begin))
		if err := tellInit("READY=1"); err != nil {
			log.Warn("tell systemd that the start is over", "error", err)
		}
		settled := time.AfterFunc(settleTime, func() { settle(log) })
		defer settled.Stop()
		select {
		case <-ctx.Done():
		case err = <-parts.cluster.Failed():
		}
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if stopErr := group.Stop(stopCtx); stopErr != nil {
		log.Error("stop", "error", stopErr)
	}
	if ctx.Err() != nil {
		return nil // told to end
	}
	return err
}

// setUp loads the configuration, checks for root and makes the logger.
func setUp(stderr io.Writer) (config.Config, *slog.Logger, error) {
	cfg, err := config.Load()
	if err != nil {
		return cfg, nil, err
	}
	if os.Geteuid() != 0 {
		return cfg, nil, fault.New(fault.Denied, "ferryd must run as root").Hint("run it with sudo")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return cfg, nil, fault.New(fault.Invalid, "log level: %w", err)
	}
	logrus.SetOutput(io.Discard) // containerd's and BuildKit's: their errors come back as errors
	return cfg, slog.New(slog.NewTextHandler(logfile.Bounded(stderr, cfg.LogFile()), &slog.HandlerOptions{Level: level})), nil
}

// progress tells `ferry up` how the start goes: one JSON object a line, see
// docs/reference/ready-fd.md.
type progress struct{ out *os.File }

type phase struct {
	Phase  string `json:"phase"`
	State  string `json:"state"` // starting, started or failed
	TookMs int64  `json:"tookMs,omitempty"`
	Error  string `json:"error,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

func newProgress(fd int) *progress {
	if fd <= 2 {
		return &progress{}
	}
	return &progress{os.NewFile(uintptr(fd), "ready")}
}

func (p *progress) write(ph phase) {
	if p.out == nil {
		return
	}
	line, err := json.Marshal(ph)
	if err == nil {
		_, err = p.out.Write(append(line, '\n'))
	}
	if err != nil { // nobody listens any more
		p.out.Close()
		p.out = nil
	}
}

// component is a lifecycle.Group's OnState; failures come with their error from end.
func (p *progress) component(name, state string, took time.Duration) {
	if state != "failed" {
		p.write(phase{Phase: name, State: state, TookMs: took.Milliseconds()})
	}
}

func (p *progress) ready(took time.Duration) {
	p.write(phase{Phase: "ready", State: "started", TookMs: took.Milliseconds()})
	if p.out != nil {
		p.out.Close()
		p.out = nil
	}
}

func (p *progress) end(err error) {
	if err != nil {
		p.write(phase{Phase: "ferryd", State: "failed", Error: err.Error(), Hint: fault.HintOf(err)})
	}
}
