// Command bench measures what docs/benchmarks.md promises and writes it there:
// `make bench`. Everything is measured from outside, on the real programs, with
// Debian's Docker beside in the same run. It needs root, and a quiet machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ferryos/ferry/test/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	bin := flag.String("bin", "bin", "directory of the programs under test")
	out := flag.String("o", "docs/benchmarks.md", "file to write")
	cold := flag.Bool("cold", false, "measure a build with an empty build cache too: ten minutes")
	only := flag.String("only", "", "measure only `pods`, containers, build, cri or pull, print it and write nothing")
	flag.Parse()
	if err := run(ctx, *bin, *out, *cold, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench gathers the results.
type bench struct {
	bin     string
	rows    []row
	details []string
}

// row is a line of the table.
type row struct{ what, bar, measured, beside string }

func (b *bench) add(what, bar, measured, beside string) {
	b.rows = append(b.rows, row{what, bar, measured, beside})
	fmt.Printf("%-60s %-30s %s\n", what, measured, beside)
}

func run(ctx context.Context, bin, out string, cold bool, only string) error {
	b := &bench{bin: bin}
	if only != "" {
		return b.only(ctx, only)
	}
	for _, step := range []func(context.Context) error{b.version, b.starts, b.running, b.demo} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if cold {
		if err := b.coldBuild(ctx); err != nil {
			return err
		}
	}
	return b.write(out)
}

// only measures one thing, for who works on it.
func (b *bench) only(ctx context.Context, what string) error {
	parts := map[string]func(*machine.Machine) error{
		"pods": func(m *machine.Machine) error { return b.pods(ctx, m) }, "containers": besideDocker(b.containers),
		"build": besideDocker(b.builds), "cri": func(m *machine.Machine) error { return b.cri(ctx, m) }, "pull": besideDocker(b.pulls)}
	part, known := parts[what]
	if !known {
		return fmt.Errorf("-only %s: none of pods, containers, build, cri and pull", what)
	}
	return b.withMachine(func(m *machine.Machine) error {
		if _, err := m.Run("ferry", "up"); err != nil {
			return err
		}
		if err := busyboxImage(m); err != nil {
			return err
		}
		err := part(m)
		for _, detail := range b.details {
			fmt.Println(detail)
		}
		return err
	})
}

// durations are repeated measurements.
type durations []time.Duration

func (d durations) quantile(q float64) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[int(q*float64(len(s)-1)+0.5)]
}

func (d durations) median() time.Duration { return d.quantile(0.5) }

// String shows the median and the range.
func (d durations) String() string {
	return fmt.Sprintf("%s (%s–%s, %d runs)", show(d.median()), show(slices.Min(d)), show(slices.Max(d)), len(d))
}

func show(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// timed is how long f takes.
func timed(f func() error) (time.Duration, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin), err
}

// repeat measures f n times.
func repeat(n int, f func() error) (durations, error) {
	var d durations
	for range n {
		took, err := timed(f)
		if err != nil {
			return d, err
		}
		d = append(d, took)
	}
	return d, nil
}

func (b *bench) version(context.Context) error {
	program := filepath.Join(b.bin, "ferry")
	d, err := repeat(50, func() error { return exec.Command(program, "version").Run() })
	if err != nil {
		return err
	}
	b.add("`ferry version`", "≤ 20 ms", d.String(), "")
	return nil
}

// withMachine runs f with a Ferry's configuration and takes everything away after.
func (b *bench) withMachine(f func(m *machine.Machine) error) (err error) {
	m, err := machine.New(b.bin)
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := m.Remove(); err == nil {
			err = removeErr
		}
	}()
	return f(m)
}

// starts measures the time until pods can be scheduled, which `ferry up` waits
// for, and the time that `ferry down` takes. Each counts the whole command.
func (b *bench) starts(context.Context) error {
	var first, again, down durations
	for range 3 {
		err := b.withMachine(func(m *machine.Machine) error {
			up := func() error {
				if _, err := m.Run("ferry", "up"); err != nil {
					return err
				}
				return schedulable(m)
			}
			took, err := timed(up)
			if err != nil {
				return err
			}
			first = append(first, took)
			for range 3 {
				took, err := timed(func() error { _, err := m.Run("ferry", "down"); return err })
				if err != nil {
					return err
				}
				down = append(down, took)
				if took, err = timed(up); err != nil {
					return err
				}
				again = append(again, took)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	b.add("`ferry up` to a node that is Ready and schedulable, restart", "≤ 2 s", again.String(), "")
	b.add("the same, first start on an empty data directory", "≤ 4.5 s", first.String(), "")
	b.add("`ferry down`", "", down.String(), "")
	return nil
}

// schedulable is an error unless the node is Ready and has no taint.
func schedulable(m *machine.Machine) error {
	out, err := m.Run("kubectl", "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status} {.items[*].spec.taints}`)
	if err == nil && strings.TrimSpace(out) != "True" {
		err = fmt.Errorf("the node is not schedulable after `ferry up`: %s", out)
	}
	return err
}

// running measures a Ferry that is up: at rest, its pods, its containers.
func (b *bench) running(ctx context.Context) error {
	return b.withMachine(func(m *machine.Machine) error {
		if _, err := m.Run("ferry", "up"); err != nil {
			return err
		}
		if err := b.idle(m, "`ferryd` 30 s after Ready", "≤ 400 MB", "≤ 4 % of a core"); err != nil {
			return err
		}
		if err := busyboxImage(m); err != nil {
			return err
		}
		if err := b.pods(ctx, m); err != nil {
			return err
		}
		if err := besideDocker(b.containers)(m); err != nil {
			return err
		}
		if err := besideDocker(b.pulls)(m); err != nil {
			return err
		}
		if err := besideDocker(b.builds)(m); err != nil {
			return err
		}
		return b.cri(ctx, m)
	})
}

func (b *bench) demo(context.Context) error {
	return b.withMachine(func(m *machine.Machine) error {
		dir := filepath.Join(m.Dir, "digits")
		if err := exec.Command("cp", "-r", "examples/digits", dir).Run(); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := exec.Command("sed", "-i", fmt.Sprintf("s/localhost:5000/localhost:%d/", m.Registry), file).Run(); err != nil {
				return err
			}
		}
		var out string
		took, err := timed(func() (err error) { out, err = m.Run(filepath.Join(dir, "demo.sh")); return err })
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		b.add("the demo, `ferry up` to RESULT", "≤ 90 s, accuracy ≥ 0.97", show(took), "")
		b.details = append(b.details, "The demo's last line:\n\n    "+lines[len(lines)-1])
		return b.idle(m, "`ferryd` 30 s after the demo, three replicas serving", "", "")
	})
}

// coldBuild builds with nothing cached but the sources of the modules.
func (b *bench) coldBuild(ctx context.Context) error {
	cache, err := os.MkdirTemp("", "ferry-gocache-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(cache) }()
	took, err := timed(func() error {
		cmd := exec.CommandContext(ctx, "make", "build", "BIN="+filepath.Join(cache, "bin"))
		cmd.Env = append(os.Environ(), "GOCACHE="+cache)
		cmd.Stderr = os.Stderr
		return cmd.Run()
	})
	if err != nil {
		return err
	}
	b.add("cold `make`, modules downloaded, nothing compiled", "as short as can be", show(took), "")
	return nil
}
