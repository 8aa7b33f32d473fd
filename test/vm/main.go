// Command vm runs Ferry's tests on machines with cgroup v2, whatever this
// machine has: `make test-vm`. It boots Debian's cloud kernel under QEMU, once
// with a shell script as its init and once with systemd, and runs the tests of
// suites.go on each. The machines are thrown away; the disk image they start
// from is kept and made anew when what it is made of changes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	source string // the repository
	bin    string
	// clients has Docker's own, see scripts/clients.
	clients string
	// critest has that suite and its packages, see scripts/conformance-cri.sh.
	critest string
	cache   string
	accel   string
	memory  int // MB
	boots   []string
	run     *regexp.Regexp
	all     bool
	tests   string
	limit   time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := 0
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string) (err error) {
	opt, err := parse(args)
	if err != nil {
		return err
	}
	base, err := baseImage(ctx, opt.cache)
	if err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	if opt.accel == "auto" {
		opt.accel = base.accelerator(ctx)
	}
	work, err := os.MkdirTemp(opt.cache, "run-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	logs := filepath.Join(opt.cache, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	var failed []string
	for _, boot := range opt.boots {
		jobs := opt.jobs(boot)
		if len(jobs) == 0 {
			continue
		}
		fmt.Printf("== %s: %s, %d MB, %d suites\n", boot, opt.accel, opt.memory, len(jobs))
		payload, err := payloadImage(ctx, opt, jobs, filepath.Join(work, boot))
		if err != nil {
			return fmt.Errorf("payload: %w", err)
		}
		r, err := base.boot(ctx, opt, boot, payload, logs)
		r.print(os.Stdout)
		if err != nil {
			return fmt.Errorf("%s: %w; see %s", boot, err, logs)
		}
		failed = append(failed, r.failures(boot, jobs)...)
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s; see %s", strings.Join(failed, ", "), logs)
	}
	return nil
}

func parse(args []string) (options, error) {
	var opt options
	flags := flag.NewFlagSet("vm", flag.ContinueOnError)
	flags.StringVar(&opt.source, "source", ".", "the repository")
	flags.StringVar(&opt.bin, "bin", "bin", "directory of the programs under test")
	flags.StringVar(&opt.clients, "clients", "", "directory with docker-buildx and docker-compose, as scripts/clients prints; e2e needs it")
	flags.StringVar(&opt.critest, "critest", "", "directory with critest and its packages, as scripts/conformance-cri.sh prints; cri needs it")
	flags.StringVar(&opt.cache, "cache", "", "where the disk image and logs are kept; default: ferry/vm in the user's cache directory")
	flags.StringVar(&opt.accel, "accel", "auto", "QEMU's accelerator: kvm, tcg, or auto to try")
	flags.IntVar(&opt.memory, "memory", 6144, "a machine's memory in MB")
	flags.DurationVar(&opt.limit, "limit", 3*time.Hour, "how long one machine may run")
	flags.StringVar(&opt.tests, "tests", "", "these tests, as for go test -run, of each suite on each boot")
	flags.BoolVar(&opt.all, "all", false, "all tests of all suites on each boot, which takes hours where they are emulated")
	boots := flags.String("boots", "plain,systemd", "what to boot, separated by commas")
	suites := flags.String("run", ".", "only suites with names that match")
	if err := flags.Parse(args); err != nil {
		return opt, err
	}
	opt.boots = strings.Split(*boots, ",")
	for _, b := range opt.boots {
		if !slices.Contains(allBoots, b) {
			return opt, fmt.Errorf("-boots %s: know only %s", b, strings.Join(allBoots, " and "))
		}
	}
	var err error
	if opt.run, err = regexp.Compile(*suites); err != nil {
		return opt, fmt.Errorf("-run: %w", err)
	}
	if opt.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return opt, fmt.Errorf("where to keep the disk image: %w; name a directory with -cache", err)
		}
		opt.cache = filepath.Join(dir, "ferry", "vm")
	}
	for _, dir := range []*string{&opt.cache, &opt.source, &opt.bin, &opt.clients, &opt.critest} {
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return opt, err
		}
	}
	return opt, nil
}
