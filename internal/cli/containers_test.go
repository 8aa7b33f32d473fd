package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
)

const image = enginetest.Busybox

// on splits a command line at its spaces; SCRIPT stands for script.
func on(t *testing.T, line, script string) result {
	t.Helper()
	args := strings.Fields(line)
	for i, arg := range args {
		if arg == "SCRIPT" {
			args[i] = script
		}
	}
	return ferry(t, args...)
}

// none checks that no container is left.
func none(t *testing.T, m *enginetest.Machine) {
	t.Helper()
	for _, c := range m.Containers(t.Context(), engine.OwnerDocker) {
		t.Errorf("container %s is left, %s", c.Spec.Name, c.State)
	}
}

func TestRun(t *testing.T) {
	m := running(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "from here\n")
	t.Setenv("HERE", "value")
	for _, tt := range []struct {
		line, script string
		code         int
		out, err     string
	}{
		{"run --rm " + image + " echo hi", "", 0, "hi\n", ""},
		{"run --rm " + image + " sh -c SCRIPT", "echo out; echo err >&2; exit 7", 7, "out\n", "^err\n$"},
		{"run --rm " + image + " sh -c SCRIPT", "sh -c 'kill -9 $$'; exit $?", 137, "", "^Killed\n$"},
		{"run --rm " + image + " no-such-program", "", 127, "", `error: failed to create task for container: .*executable file not found`},
		{"run --rm " + image + " /etc/passwd", "", 126, "", "error: .*permission denied"},
		{"run --rm --pull never nothing", "", 125, "", "error: No such image: nothing:latest\nhint: build it with `ferry build`"},
		{"run --rm localhost:1/nothing", "", 125, "", "^image localhost:1/nothing is not on this machine; pulling it\n(.*\n)?error: pull localhost:1/nothing.*\nhint: the registry cannot be reached"},
		{"run --rm --name x " + image, "", 125, "", "error: Invalid container name"},
		{"run --rm --network backend " + image, "", 125, "", "error: network backend not found\nhint: `ferry network ls` lists the networks"},
		{"run --rm -e A=b -e HERE -w /tmp -u user --hostname box " + image + " sh -c SCRIPT", "echo $A $HERE $PWD $(id -un) $(hostname)", 0, "b value /tmp user box\n", ""},
		{"run --rm --entrypoint echo " + image + " a b", "", 0, "a b\n", ""},
		{"run --rm -v " + dir + ":/d:ro --tmpfs /t " + image + " sh -c SCRIPT", "cat /d/file; touch /t/x /d/x 2>/dev/null || echo refused", 0, "from here\nrefused\n", ""},
		{"run --rm --read-only --cap-drop ALL -m 64m --pids-limit 20 " + image + " touch /x", "", 1, "", "Read-only"},
		{"run --rm --network host -p 80:80 " + image + " true", "", 0, "", "^warning: Published ports are discarded when using host network mode\n$"},
	} {
		t.Run(tt.line, func(t *testing.T) { on(t, tt.line, tt.script).wants(t, tt.code, tt.out, tt.err) })
	}
	none(t, m)
}

func TestRunWithInput(t *testing.T) {
	m := running(t)
	sent := strings.Repeat("0123456789abcde\n", 1<<16)
	if r := ferryIn(t, strings.NewReader(sent), "run", "--rm", "-i", image, "cat"); r.code != 0 || r.out != sent {
		t.Errorf("%d bytes of %d, code %d, %q", len(r.out), len(sent), r.code, r.err)
	}
	// Without -i the program gets none of it, and the end does not wait for more.
	r, w := io.Pipe()
	defer w.Close()
	ferryIn(t, r, "run", "--rm", image, "cat").wants(t, 0, "", "")
	ferryIn(t, r, "run", "--rm", "-i", image, "true").wants(t, 0, "", "")
	none(t, m)
}

func TestContainers(t *testing.T) {
	running(t)
	r := on(t, "run -d --name web -l app=x "+image+" sh -c SCRIPT", "trap 'exit 3' TERM; echo started; echo problem >&2; sleep 1000 & wait")
	r.wants(t, 0, "[0-9a-f]{64}\n", "")
	id := strings.TrimSpace(r.out)
	eventually(t, "it has started", func() bool { return strings.Contains(ferry(t, "logs", "web").out, "started") })
	for _, tt := range []struct {
		line, script string
		code         int
		out, err     string
	}{
		{"run -d --name web " + image, "", 125, "", `error: Conflict. The container name "/web" is already in use by container "` + id + "\"\nhint: remove that container"},
		{"ps", "", 0, `ID +NAME +IMAGE +COMMAND +STATUS\n` + id[:12] + ` +web +` + image + ` +sh -c trap.*Up .*\n`, ""},
		{"ps -q", "", 0, id[:12] + "\n", ""},
		{"ps -a -o yaml", "", 0, "(?s)- .*Names:\n  - /web\n.*", ""},
		{"logs web", "", 0, "started\n", "^problem\n$"},
		{"logs --tail 0 web", "", 0, "", ""},
		{"logs --tail few web", "", 2, "", "error: --tail few: not a number of lines"},
		{"logs --since x web", "", 2, "", "error: --since x: neither a duration nor a time"},
		{"logs --since 1h web", "", 0, "started\n", "^problem\n$"},
		{"exec web sh -c SCRIPT", "echo out; echo err >&2; exit 9", 9, "out\n", "^err\n$"},
		{"exec -e A=b -w /tmp -u 1000 web sh -c SCRIPT", "echo $A $PWD $(id -u)", 0, "b /tmp 1000\n", ""},
		{"exec web no-such-program", "", 127, "", "exec failed: .*executable file not found"},
		{"exec nothing true", "", 125, "", "error: No such container: nothing"},
		{"inspect web", "", 0, `(?s)\{\n  "Id": "` + id + `".*`, ""},
		{"inspect -o yaml web", "", 0, "(?s).*\nId: " + id + "\n.*", ""},
		{"inspect " + image, "", 0, `(?s)\{\n.*"Id": "sha256:.*`, ""},
		{"inspect nothing", "", 5, "", "error: no container and no image is called nothing\nhint: see `ferry ps -a` and `ferry images`"},
		{"inspect -o xml web", "", 2, "", `output format "xml"`},
		{"rm web", "", 1, "", `error: cannot remove container "/web": container is running`},
		{"kill -s NOTHING web", "", 2, "", "error: invalid signal: NOTHING"},
		{"stop nothing web", "", 5, "web\n", "error: No such container: nothing"},
		{"stop web", "", 0, "web\n", ""}, // already
		{"ps", "", 0, "ID +NAME.*\n", ""},
		{"ps -a", "", 0, `(?s)ID .*Exited \(3\) .*\n`, ""},
		{"exec web true", "", 125, "", "error: container web is not running\nhint: start it with `ferry start web`"},
		{"kill web", "", 1, "", "error: cannot kill container: web: .* is not running"},
		{"start web", "", 0, "web\n", ""},
		{"restart -t 0 web", "", 0, "web\n", ""},
		{"kill -s KILL web", "", 0, "web\n", ""},
		{"rm -f web nothing", "", 5, "web\n", "error: No such container: nothing"},
		{"ps -a -o json", "", 0, `\[\]\n`, ""},
	} {
		t.Run(tt.line, func(t *testing.T) { on(t, tt.line, tt.script).wants(t, tt.code, tt.out, tt.err) })
	}
}

func TestInspectJSON(t *testing.T) {
	running(t)
	ferry(t, "run", "--name", "done", "-l", "a=b", image, "sh", "-c", "exit 4").wants(t, 4, "", "")
	var c container.InspectResponse
	r := ferry(t, "inspect", "done")
	if err := json.Unmarshal([]byte(r.out), &c); err != nil || c.Name != "/done" || c.State.ExitCode != 4 || c.Config.Labels["a"] != "b" {
		t.Errorf("%v: %+v", err, r)
	}
	var list []container.Summary
	r = ferry(t, "ps", "-a", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || len(list) != 1 || list[0].State != "exited" {
		t.Errorf("%v: %+v", err, r)
	}
	ferry(t, "rm", "done").wants(t, 0, "done\n", "")
}

// TestFollowLogs ends with the container, and with Ctrl-C before.
func TestFollowLogs(t *testing.T) {
	running(t)
	on(t, "run -d --name ticks "+image+" sh -c SCRIPT", "for i in 1 2 3; do echo tick $i; sleep 0.05; done").wants(t, 0, ".*\n", "")
	ferry(t, "logs", "-f", "ticks").wants(t, 0, "tick 1\ntick 2\ntick 3\n", "")
	ferry(t, "logs", "-t", "--tail", "1", "ticks").wants(t, 0, `\d{4}-.*Z tick 3\n`, "")
	on(t, "run -d --name on "+image+" sh -c SCRIPT", "echo on; sleep 1000").wants(t, 0, ".*\n", "")
	ctx, cancel := context.WithCancel(t.Context())
	var out lockedBuffer
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"logs", "-f", "on"}, strings.NewReader(""), &out, io.Discard, func(string) string { return "" })
	}()
	eventually(t, "the line comes", func() bool { return out.String() == "on\n" })
	cancel()
	select {
	case code := <-done:
		if code != exitInterrupted {
			t.Errorf("code %d", code)
		}
	case <-time.After(limit):
		t.Fatal("it goes on")
	}
	ferry(t, "rm", "-f", "on", "ticks").wants(t, 0, "on\nticks\n", "")
}

// TestSignals: the program in the container gets the signals that ferry run gets.
func TestSignals(t *testing.T) {
	m := running(t)
	guard := make(chan os.Signal, 8) // without run's own handler the signal would end the test
	signal.Notify(guard, syscall.SIGUSR1)
	defer signal.Stop(guard)
	var out lockedBuffer
	done := make(chan int, 1)
	go func() {
		done <- Main(context.WithoutCancel(t.Context()), []string{"run", "--rm", image, "sh", "-c", "trap 'exit 42' USR1; echo ready; while :; do sleep 0.02; done"},
			strings.NewReader(""), &out, io.Discard, func(string) string { return "" })
	}()
	eventually(t, "it is ready", func() bool { return out.String() == "ready\n" })
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-done:
		if code != 42 {
			t.Errorf("code %d", code)
		}
	case <-time.After(limit):
		t.Error("the signal did not come")
	}
	none(t, m)
}

// TestNoColour: no escape sequence where output is no terminal.
func TestNoColour(t *testing.T) {
	notRunning(t)
	for _, args := range [][]string{{"ps"}, {"status"}, {"doctor"}, {"nothing"}} {
		if r := ferry(t, args...); regexp.MustCompile("\x1b").MatchString(r.out + r.err) {
			t.Errorf("%v: %q %q", args, r.out, r.err)
		}
	}
}

// lockedBuffer may be read while a command writes to it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
