package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
)

// TestMany runs hundreds of containers at once: all run, all answer, all go.
func TestMany(t *testing.T) {
	f := newFerry(t)
	before := f.Inventory()
	n := pick(50, 500)
	begin := time.Now()
	each(t, n, func(ctx context.Context, name string) error {
		_, err := f.start(ctx, name, "echo up; sleep 100000")
		return err
	})
	t.Logf("%d containers started in %v", n, time.Since(begin).Round(time.Millisecond))
	list, err := f.ContainerList(t.Context(), client.ContainerListOptions{})
	if err != nil || len(list.Items) != n {
		t.Fatalf("%d of %d containers run, %v", len(list.Items), n, err)
	}
	begin = time.Now()
	each(t, n, func(ctx context.Context, name string) error {
		if out, code, err := f.exec(ctx, name, "echo", name); err != nil || code != 0 || out != name+"\n" {
			return fmt.Errorf("exec: %q, %d, %w", out, code, err)
		}
		if text, err := f.logs(ctx, name); err != nil || text != "up\n" {
			return fmt.Errorf("log: %q, %w", text, err)
		}
		return nil
	})
	t.Logf("each has answered after %v; %s", time.Since(begin).Round(time.Millisecond), f.usage())
	// They outlive the daemon all together.
	if err := f.Kill(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	f.up()
	t.Logf("taken up again, with Kubernetes, in %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	each(t, n, func(ctx context.Context, name string) error {
		if out, code, err := f.exec(ctx, name, "echo", name); err != nil || code != 0 || out != name+"\n" {
			return fmt.Errorf("exec after the daemon's end: %q, %d, %w", out, code, err)
		}
		return f.discard(ctx, name)
	})
	t.Logf("removed in %v", time.Since(begin).Round(time.Millisecond))
	f.settled(before)
}

// each calls f for names of n containers, some at a time.
func each(t *testing.T, n int, f func(ctx context.Context, name string) error) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			name := fmt.Sprintf("many-%d", i)
			if err := f(ctx, name); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestChurn starts and removes thousands one after the other: the daemon is
// then as it was.
func TestChurn(t *testing.T) {
	f := newFerry(t)
	churn := func(from, to int) {
		for i := from; i < to; i++ {
			name := fmt.Sprintf("churn-%d", i)
			if _, err := f.start(t.Context(), name, "sleep 100000"); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := f.discard(t.Context(), name); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	const warm = 50
	before := f.Inventory()
	churn(0, warm)
	was := f.usage()
	begin := time.Now()
	n := pick(200, 5000)
	for part := range 5 { // what grows shows here
		churn(warm+part*n/5, warm+(part+1)*n/5)
		t.Logf("after %d: %s", (part+1)*n/5, f.usage())
	}
	took := time.Since(begin)
	t.Logf("%d containers started and removed in %v, %v each; before: %s; at once after: %s",
		n, took.Round(time.Second), (took / time.Duration(n)).Round(time.Millisecond), was, f.usage())
	f.settled(before)
	// Kubernetes, which lives in the same process, opens and allocates on its own: so much is not ours to judge.
	const spareFiles, spareMemory = 20, 96 << 10
	until(t, "the daemon to be as it was", func() error {
		now := f.usage()
		var errs []error
		if now.files > was.files+spareFiles {
			errs = append(errs, fmt.Errorf("%d files open, %d before", now.files, was.files))
		}
		if now.memory > was.memory+spareMemory {
			errs = append(errs, fmt.Errorf("%d kB of memory, %d before", now.memory, was.memory))
		}
		return errors.Join(errs...)
	})
	t.Logf("in the end: %s", f.usage())
}

// usage is what the daemon takes of the machine.
type usage struct {
	files, threads int
	memory         int // kB, without what is of its program's file
}

func (u usage) String() string {
	return fmt.Sprintf("%d files open, %d threads, %d MB of memory", u.files, u.threads, u.memory>>10)
}

func (f *ferry) usage() (u usage) {
	f.t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", f.PID()))
	if err != nil {
		f.t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.PID()))
	if err != nil {
		f.t.Fatal(err)
	}
	u.files = len(files)
	for line := range strings.Lines(string(status)) {
		for name, to := range map[string]*int{"RssAnon:": &u.memory, "Threads:": &u.threads} {
			if value, ok := strings.CutPrefix(line, name); ok {
				if _, err := fmt.Sscan(value, to); err != nil {
					f.t.Fatal(err)
				}
			}
		}
	}
	return u
}
