package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// TestKillDaemon kills the daemon at random moments, also while it starts, as
// containers run, stop and are removed, images are pulled and built. What the
// daemon has confirmed holds afterwards; what it has not may have happened or
// not, but nothing between.
func TestKillDaemon(t *testing.T) {
	f := newFerry(t)
	registry := newRegistry(t)
	before := f.Inventory()
	delete(before, "blobs") // the builder's history keeps some of each build
	l := &load{ferry: f, registry: registry, stop: make(chan struct{}), images: map[string]string{}}
	var workers sync.WaitGroup
	for i, work := range []func(name string){l.runs, l.runs, l.runs, l.stops, l.pulls, l.builds} {
		workers.Go(func() {
			for n := 0; !l.stopped(); n++ {
				work(fmt.Sprintf("w%d-%d", i, n))
			}
		})
	}
	for n := range pick(10, 200) {
		if n%4 == 3 {
			f.killStarting()
			continue
		}
		f.up()
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond)
		if err := f.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	f.up()
	close(l.stop)
	workers.Wait()
	t.Logf("%d containers run to their end, %d stopped, %d images pulled, %d built", l.ran, l.halted, l.pulled, l.built)
	if l.ran == 0 || l.halted == 0 || l.pulled+l.built == 0 {
		t.Error("not all of the load has worked")
	}
	l.check()
	f.settled(before)
}

// killStarting kills a daemon that is about to come up.
func (f *ferry) killStarting() {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	up := f.Command("ferry", "up")
	if err := up.Start(); err != nil {
		f.t.Fatal(err)
	}
	for f.PID() == 0 {
		if ctx.Err() != nil {
			f.t.Fatal("ferry up starts no daemon")
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
	if err := f.Kill(); err != nil {
		f.t.Fatal(err)
	}
	_ = up.Wait() // it may have been fast enough
}

// load is what goes on meanwhile.
type load struct {
	*ferry
	registry *registry
	stop     chan struct{}

	mu                         sync.Mutex
	ran, halted, pulled, built int
	images                     map[string]string // what /stamp of an image says, by its name
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// count adds to one of the numbers.
func (l *load) count(n *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*n++
}

// again repeats a call while the daemon does not answer, and returns the
// answer: nil, or an error that is one.
func (l *load) again(what string, call func(context.Context) error) error {
	end := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(l.t.Context(), patience)
		err := call(ctx)
		cancel()
		if !isAway(err) {
			return err
		}
		if time.Now().After(end) {
			l.t.Errorf("%s: after %v still: %v", what, patience, err)
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// isAway reports an error that is the daemon's end, or its not being there.
func isAway(err error) bool {
	if err == nil {
		return false
	}
	if client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	for _, text := range []string{"connection refused", "connection reset", "broken pipe", "no such file or directory", "EOF"} {
		if strings.Contains(err.Error(), text) && !errdefs.IsNotFound(err) {
			return true
		}
	}
	return errdefs.IsUnavailable(err)
}

// runs has a container write some lines and exit with a code, and looks at both.
func (l *load) runs(name string) {
	lines, code := rand.IntN(40), rand.IntN(100)
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; usleep 20000; done; exit %d", lines, code)
	if !l.made(name, script) {
		return
	}
	confirmed, ok := l.begun(name)
	if !ok {
		return
	}
	until(l.t, name+" to end", func() error {
		s, err := l.state(l.t.Context(), name)
		if err == nil && (s.Running || confirmed && s.Status == "created") {
			err = fmt.Errorf("it is %s", s.Status)
		}
		return err
	})
	var text string
	s, err := l.state(l.t.Context(), name)
	if again := l.again("logs", func(ctx context.Context) (err error) {
		if s, err = l.state(ctx, name); err != nil {
			return err
		}
		text, err = l.logs(ctx, name)
		return err
	}); again != nil {
		l.t.Errorf("%s: %v, %v", name, err, again)
		return
	}
	want := ""
	for i := range lines {
		want += fmt.Sprintf("line %d\n", i+1)
	}
	switch {
	case !confirmed && (s.Status == "created" || s.ExitCode == 128):
		// Its start was taken back.
	case s.ExitCode != code || text != want:
		l.t.Errorf("%s, start confirmed: %v: exit code %d, want %d, %q; %d lines, want %d:\n%s",
			name, confirmed, s.ExitCode, code, s.Error, strings.Count(text, "\n"), lines, text)
	default:
		l.count(&l.ran)
	}
	l.gone(name)
}

// made creates a container; a name that is taken is from a try that was not confirmed.
func (l *load) made(name, script string) bool {
	err := l.again("create "+name, func(ctx context.Context) error {
		_, err := l.create(ctx, name, script)
		return err
	})
	if err != nil && !errdefs.IsConflict(err) {
		l.t.Errorf("create %s: %v", name, err)
		return false
	}
	return true
}

// begun starts a container, once: to ask again may run it twice.
func (l *load) begun(name string) (confirmed, ok bool) {
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	_, err := l.ContainerStart(ctx, name, client.ContainerStartOptions{})
	if err != nil && !isAway(err) {
		l.t.Errorf("start %s: %v", name, err)
		return false, false
	}
	return err == nil, true
}

// gone removes a container.
func (l *load) gone(name string) {
	if err := l.again("remove "+name, func(ctx context.Context) error { return l.discard(ctx, name) }); err != nil && !errdefs.IsNotFound(err) {
		l.t.Errorf("remove %s: %v", name, err)
	}
}

// stops runs a container until it is told to stop, and has it work meanwhile.
func (l *load) stops(name string) {
	if !l.made(name, "trap 'exit 7' TERM; sleep 1000 & wait") {
		return
	}
	defer l.gone(name)
	if confirmed, ok := l.begun(name); !ok || !confirmed {
		return
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	out, code, err := l.exec(ctx, name, "echo", "hello")
	if !isAway(err) && (err != nil || out != "hello\n" || code != 0) {
		l.t.Errorf("exec in %s: %q, %d, %v", name, out, code, err)
	}
	seconds := 2
	if err := l.again("stop "+name, func(ctx context.Context) error {
		_, err := l.ContainerStop(ctx, name, client.ContainerStopOptions{Timeout: &seconds})
		return err
	}); err != nil {
		l.t.Errorf("stop %s: %v", name, err)
		return
	}
	err = l.again("inspect "+name, func(ctx context.Context) error {
		s, err := l.state(ctx, name)
		if err == nil && (s.Running || s.ExitCode != 7 && s.ExitCode != 137) {
			err = fmt.Errorf("is %s, exit code %d, %q", s.Status, s.ExitCode, s.Error)
		}
		return err
	})
	if err != nil {
		l.t.Errorf("stopped, %s %v", name, err)
		return
	}
	l.count(&l.halted)
}

// pulls fetches an image that nobody has had yet.
func (l *load) pulls(name string) {
	ref := l.registry.add(l.t, name)
	err := l.again("pull "+ref, func(ctx context.Context) error {
		r, err := l.ImagePull(ctx, ref, client.ImagePullOptions{})
		if err != nil {
			return err
		}
		return r.Wait(ctx)
	})
	l.note(ref, name, err, &l.pulled)
}

// builds builds one.
func (l *load) builds(name string) {
	dir := filepath.Join(l.Dir, "build")
	file := fmt.Sprintf("FROM box\nRUN echo %s > /stamp\nCMD cat /stamp\n", name)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644)); err != nil {
		l.t.Error(err)
		return
	}
	ref := "built:" + name
	until(l.t, "build "+ref, func() error { // its error says many things of a daemon that is killed
		_, err := l.Run("ferry", "build", "-q", "-t", ref, dir)
		return err
	})
	l.note(ref, name, nil, &l.built)
}

// note keeps in mind what an image must say, and removes every third.
func (l *load) note(ref, stamp string, err error, n *int) {
	if err != nil {
		l.t.Errorf("%s: %v", ref, err)
		return
	}
	l.count(n)
	if rand.IntN(3) > 0 {
		l.mu.Lock()
		l.images[ref] = stamp
		l.mu.Unlock()
		return
	}
	l.forget(ref)
}

func (l *load) forget(ref string) {
	if err := l.again("remove image "+ref, func(ctx context.Context) error {
		_, err := l.ImageRemove(ctx, ref, client.ImageRemoveOptions{})
		return err
	}); err != nil && !errdefs.IsNotFound(err) {
		l.t.Errorf("remove image %s: %v", ref, err)
	}
}

// check finds no container that should not be there, and every image complete;
// then it removes them.
func (l *load) check() {
	ctx := l.t.Context()
	list, err := l.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range list.Items {
		l.t.Errorf("left: container %v, %s", c.Names, c.Status)
	}
	for ref, stamp := range l.images {
		if out, err := l.Run("ferry", "run", "--rm", "--pull", "never", ref, "cat", "/stamp"); err != nil || strings.TrimSpace(out) != stamp {
			l.t.Errorf("image %s says %q, want %s: %v", ref, out, stamp, err)
		}
		l.forget(ref)
	}
	until(l.t, "an empty build cache", func() error { // a build that has just ended still holds some of it
		if _, err := l.BuildCachePrune(ctx, client.BuildCachePruneOptions{All: true}); err != nil {
			return err
		}
		use, err := l.DiskUsage(ctx, client.DiskUsageOptions{BuildCache: true, Verbose: true})
		if n := len(use.BuildCache.Items); err == nil && n > 0 {
			err = fmt.Errorf("%d records", n)
		}
		return err
	})
}
