// Package chaos breaks Ferry while it works: daemons and runners are killed,
// containers come by the hundreds, disks are full. Each test has a Ferry of its
// own and talks to it as Docker's client does. The tests are short in `make
// e2e` and long in `make chaos`.
package chaos

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/test/machine"
)

var (
	bin  = flag.String("bin", "../../bin", "directory of the programs under test")
	long = flag.Bool("long", false, "as long as it takes to find what is rare")
)

// pick is how much of something there is, in the short and in the long form.
func pick(short, all int) int {
	if *long {
		return all
	}
	return short
}

// patience is how long anything may take on a slow machine. It is no measurement.
const patience = 3 * time.Minute

// ferry is a Ferry that is up, and Docker's client of it.
type ferry struct {
	*machine.Machine
	*client.Client
	t *testing.T
}

// newFerry starts a Ferry with the image box, which has busybox, once its
// machine is prepared.
func newFerry(t *testing.T, prepare ...func(*machine.Machine)) *ferry {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs containers")
	}
	m, err := machine.New(*bin)
	if err != nil {
		t.Fatal(err)
	}
	f := &ferry{Machine: m, t: t}
	t.Cleanup(f.remove)
	for _, p := range prepare {
		p(m)
	}
	f.Client, err = client.New(client.WithHost("unix://" + filepath.Join(m.RunDir, "docker.sock")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Client.Close() })
	f.up()
	f.loadBox()
	f.keepBox()
	time.Sleep(2 * time.Second) // network namespaces are made ahead of time; let there be all of them
	return f
}

// remove takes everything away; what Ferry left is an error.
func (f *ferry) remove() {
	tellLog(f.t, f.Machine)
	if err := f.Machine.Remove(); err != nil {
		f.t.Error(err)
	}
}

// tellLog shows the end of the daemon's log if the test has failed.
func tellLog(t *testing.T, m *machine.Machine) {
	log, err := os.ReadFile(filepath.Join(m.DataDir, "ferryd.log"))
	if err != nil || !t.Failed() {
		return
	}
	var own []byte // Kubernetes says a lot
	for line := range bytes.Lines(log) {
		if !bytes.Contains(line, []byte("part=kubernetes")) {
			own = append(own, line...)
		}
	}
	t.Logf("ferryd.log ends with:\n%s", own[max(0, len(own)-8000):])
}

// up brings the daemon up, which it may be already.
func (f *ferry) up() {
	f.t.Helper()
	if _, err := f.Run("ferry", "up"); err != nil {
		f.t.Fatal(err)
	}
}

// loadBox brings the image box, of busybox.
func (f *ferry) loadBox() {
	f.t.Helper()
	ref := newRegistry(f.t).add(f.t, "box")
	r, err := f.ImagePull(f.t.Context(), ref, client.ImagePullOptions{})
	if err == nil {
		err = r.Wait(f.t.Context())
	}
	if err == nil {
		_, err = f.ImageTag(f.t.Context(), client.ImageTagOptions{Source: ref, Target: "box"})
	}
	if err == nil {
		_, err = f.ImageRemove(f.t.Context(), ref, client.ImageRemoveOptions{})
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// keepBox makes a first container of box: from then on its layers are kept for
// all that follow.
func (f *ferry) keepBox() {
	f.t.Helper()
	id, err := f.create(f.t.Context(), "first", "true")
	if err == nil {
		err = f.discard(f.t.Context(), id)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// start creates and starts a container of box that runs a shell script.
func (f *ferry) start(ctx context.Context, name, script string) (id string, err error) {
	id, err = f.create(ctx, name, script)
	if err != nil {
		return "", err
	}
	_, err = f.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return id, err
}

func (f *ferry) create(ctx context.Context, name, script string) (id string, err error) {
	made, err := f.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name,
		Config: &container.Config{Image: "box", Cmd: []string{"sh", "-c", script}}})
	return made.ID, err
}

// discard removes a container, whatever it does.
func (f *ferry) discard(ctx context.Context, id string) error {
	_, err := f.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true})
	return err
}

// exec runs a command in a container and returns what it wrote and its code.
func (f *ferry) exec(ctx context.Context, id string, cmd ...string) (out string, code int, err error) {
	made, err := f.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: cmd, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return "", 0, err
	}
	stream, err := f.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
	if err != nil {
		return "", 0, err
	}
	defer stream.Close()
	stop := context.AfterFunc(ctx, stream.Close)
	defer stop()
	var buf bytes.Buffer
	if _, err := stdcopy.StdCopy(&buf, &buf, stream.Reader); err != nil {
		return "", 0, err
	}
	state, err := f.ExecInspect(ctx, made.ID, client.ExecInspectOptions{})
	if err == nil && state.Running {
		err = fmt.Errorf("exec %s runs after its output has ended", made.ID)
	}
	return buf.String(), state.ExitCode, err
}

// logs is what a container has written so far.
func (f *ferry) logs(ctx context.Context, id string) (string, error) {
	r, err := f.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return "", err
	}
	defer r.Close()
	var buf bytes.Buffer
	_, err = stdcopy.StdCopy(&buf, &buf, r)
	return buf.String(), err
}

// state is a container's.
func (f *ferry) state(ctx context.Context, id string) (container.State, error) {
	r, err := f.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return container.State{}, err
	}
	return *r.Container.State, nil
}

// until calls f again and again until it is content; its last error fails the test.
func until(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s: %v", what, err)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// settled waits until Ferry holds no more of the machine than before.
func (f *ferry) settled(before map[string][]string) {
	f.t.Helper()
	until(f.t, "what is held once everything is removed", func() error {
		var differ []string
		now := f.Inventory()
		for what, was := range before {
			if len(now[what]) > len(was) { // less is what was still being taken away before
				differ = append(differ, fmt.Sprintf("%s: %d before, %d now: %s", what, len(was), len(now[what]), strings.Join(now[what], " ")))
			}
		}
		if differ == nil {
			return nil
		}
		return errors.New(strings.Join(differ, "\n"))
	})
}
