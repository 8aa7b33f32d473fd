package dockerapi_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// execAttached is docker exec: its output and exit code.
func (a *api) execAttached(id string, opt client.ExecCreateOptions, stdin string) (out, errOut string, code int) {
	a.t.Helper()
	opt.AttachStdout, opt.AttachStderr, opt.AttachStdin = true, true, stdin != ""
	created, err := a.ExecCreate(a.t.Context(), id, opt)
	if err != nil {
		a.t.Fatalf("exec: %v", err)
	}
	conn, err := a.ExecAttach(a.t.Context(), created.ID, client.ExecAttachOptions{TTY: opt.TTY})
	if err != nil {
		a.t.Fatalf("exec: %v", err)
	}
	defer conn.Close()
	if stdin != "" {
		go func() {
			io.WriteString(conn.Conn, stdin)
			if !opt.TTY {
				conn.CloseWrite()
			}
		}()
	}
	out, errOut = a.read(conn.HijackedResponse, opt.TTY)
	res, err := a.ExecInspect(a.t.Context(), created.ID, client.ExecInspectOptions{})
	if err != nil || res.Running || res.ContainerID != id {
		a.t.Fatalf("exec inspect: %+v, %v", res, err)
	}
	return out, errOut, res.ExitCode
}

func TestExec(t *testing.T) {
	a := newAPI(t)
	s := sleeper("web")
	s.config.Env, s.config.WorkingDir, s.config.User = []string{"A=container", "B=b"}, "/tmp", "user"
	id := a.up(s)
	big := strings.Repeat("x", 1<<20)
	for _, tt := range []struct {
		name     string
		opt      client.ExecCreateOptions
		stdin    string
		out, err string
		code     int
	}{
		{"exit code and streams", client.ExecCreateOptions{Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 9"}}, "", "out\n", "err\n", 9},
		{"input", client.ExecCreateOptions{Cmd: []string{"cat"}}, big, big, "", 0},
		{"environment", client.ExecCreateOptions{Cmd: []string{"sh", "-c", "echo $A $B $C $FROM"}, Env: []string{"A=exec", "C=c", "FROM"}}, "", "exec b c\n", "", 0},
		{"the container's user and directory", client.ExecCreateOptions{Cmd: []string{"sh", "-c", "id -un; pwd"}}, "", "user\n/tmp\n", "", 0},
		{"its own", client.ExecCreateOptions{Cmd: []string{"sh", "-c", "id -un; pwd"}, User: "0:0", WorkingDir: "/etc"}, "", "root\n/etc\n", "", 0},
		{"terminal", client.ExecCreateOptions{Cmd: []string{"sh", "-c", "test -t 0 && stty -echo && stty size && read x && echo \"<$x>\""},
			TTY: true, ConsoleSize: client.ConsoleSize{Height: 33, Width: 99}}, "typed\n", "33 99\r\n<typed>\r\n", "", 0},
		{"privileged", client.ExecCreateOptions{User: "0", Privileged: true, Cmd: []string{"sh", "-c", "while read k v; do case $k in CapEff:) echo $v;; esac; done < /proc/self/status"}}, "", "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errOut, code := a.execAttached(id, tt.opt, tt.stdin)
			if tt.opt.Privileged { // what this machine may give
				if out == "00000000a80425fb\n" || len(out) != 17 {
					t.Errorf("capabilities %q", out)
				}
				return
			}
			if tt.opt.TTY { // the echo of what came before stty
				out = strings.TrimPrefix(out, "typed\r\n")
			}
			if out != tt.out || errOut != tt.err || code != tt.code {
				t.Errorf("%.200q, %.200q, %d", out, errOut, code)
			}
		})
	}
}

// TestExecFailing: what cannot be started says why, with the exit code of a shell.
func TestExecFailing(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	for _, tt := range []struct {
		name string
		opt  client.ExecCreateOptions
		says string
		code int
	}{
		{"no such program", client.ExecCreateOptions{Cmd: []string{"no-such-program"}}, "executable file not found", 127},
		{"not executable", client.ExecCreateOptions{Cmd: []string{"/etc/passwd"}}, "permission denied", 126},
		{"no such user", client.ExecCreateOptions{Cmd: []string{"true"}, User: "nobody-here"}, "nobody-here", 126},
		{"no such directory", client.ExecCreateOptions{Cmd: []string{"true"}, WorkingDir: "/nothing"}, "no such file or directory", 127},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errOut, code := a.execAttached(id, tt.opt, "")
			if out != "" || !strings.Contains(errOut, tt.says) || code != tt.code {
				t.Errorf("%q, %q, %d", out, errOut, code)
			}
			created, err := a.ExecCreate(t.Context(), id, tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			got := a.do("POST", "/exec/"+created.ID+"/start", `{"Detach":true}`)
			if got.status != 400 || !strings.Contains(got.message, tt.says) {
				t.Errorf("detached: %+v", got)
			}
		})
	}
}

func TestExecStates(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	id := a.create(sleeper("web"))
	refused := func(method, path, body string, status int, says string) {
		t.Helper()
		if got := a.do(method, path, body); got.status != status || !strings.Contains(got.message, says) {
			t.Errorf("%s %s: %d %q, want %d %q", method, path, got.status, got.message, status, says)
		}
	}
	command := `{"Cmd":["true"]}`
	refused("POST", "/containers/web/exec", command, 409, "is not running")
	a.startContainer(id)
	refused("POST", "/containers/web/exec", `{"Cmd":[]}`, 400, "No exec command specified")
	refused("POST", "/containers/web/exec", `{"Cmd":`, 400, "request body")
	refused("POST", "/containers/web/exec", `{"Cmd":["true"],"DetachKeys":"no-such-key"}`, 400, "detach keys")
	refused("POST", "/exec/nothing/start", "", 404, "No such exec instance: nothing")
	refused("POST", "/exec/nothing/resize?h=1&w=1", "", 404, "No such exec instance")
	refused("GET", "/exec/nothing/json", "", 404, "No such exec instance")

	created, err := a.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: []string{"sleep", "1000"}, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	refused("POST", "/exec/"+created.ID+"/resize?h=x&w=1", "", 400, "not numbers")
	if res, err := a.ExecInspect(ctx, created.ID, client.ExecInspectOptions{}); err != nil || res.Running {
		t.Errorf("before its start: %+v, %v", res, err)
	}
	if _, err := a.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true, TTY: true}); err != nil {
		t.Fatal(err)
	}
	refused("POST", "/exec/"+created.ID+"/start", `{"Detach":true}`, 409, "already")
	if _, err := a.ExecResize(ctx, created.ID, client.ExecResizeOptions{Height: 5, Width: 6}); err != nil {
		t.Error(err)
	}
	if res, err := a.ExecInspect(ctx, created.ID, client.ExecInspectOptions{}); err != nil || !res.Running || !slices.Equal(a.inspect(id).ExecIDs, []string{created.ID}) {
		t.Errorf("while it runs: %+v, %v", res, err)
	}
	if _, err := a.ContainerKill(ctx, id, client.ContainerKillOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exec has ended with its container", func() bool {
		res, err := a.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
		return err == nil && !res.Running && res.ExitCode == 137
	})
	refused("POST", "/exec/"+created.ID+"/resize?h=1&w=1", "", 200, "")
	if _, err := a.ContainerRemove(ctx, id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exec is forgotten", func() bool { return a.do("GET", "/exec/"+created.ID+"/json", "").status == http.StatusNotFound })
}

// TestExecResizeFailed: the size of an exec that never ran is nobody's, least of all the container's.
func TestExecResizeFailed(t *testing.T) {
	a := newAPI(t)
	s := sleeper("web")
	s.config.Tty, s.host.ConsoleSize = true, [2]uint{30, 100}
	id := a.up(s)
	created, err := a.ExecCreate(t.Context(), id, client.ExecCreateOptions{Cmd: []string{"no-such-program"}, TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := a.do("POST", "/exec/"+created.ID+"/start", `{"Detach":true}`); got.status != 400 {
		t.Errorf("%+v", got)
	}
	if got := a.do("POST", "/exec/"+created.ID+"/resize?h=1&w=1", ""); got.status != http.StatusConflict {
		t.Errorf("%+v", got)
	}
	if out, _, _ := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "stty size < /proc/1/fd/0"}}, ""); out != "30 100\n" {
		t.Errorf("the container's terminal: %q", out)
	}
}

// TestDetachedExecRunnerKilled: a detached exec ends with its runner, as the daemon goes on.
func TestDetachedExecRunnerKilled(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	created, err := a.ExecCreate(t.Context(), id, client.ExecCreateOptions{Cmd: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ExecStart(t.Context(), created.ID, client.ExecStartOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.inspect(id).State.Pid))
	if err != nil {
		t.Fatal(err)
	}
	runner, err := strconv.Atoi(strings.Fields(string(stat))[3]) // the parent
	if err != nil || runner <= 1 {
		t.Fatalf("%s: %v", stat, err)
	}
	if err := unix.Kill(runner, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exec has ended", func() bool {
		res, err := a.ExecInspect(t.Context(), created.ID, client.ExecInspectOptions{})
		return err == nil && !res.Running && res.ExitCode == 137
	})
}

// TestManyExecs runs many at a time.
func TestManyExecs(t *testing.T) {
	a := newAPI(t)
	id := a.up(sleeper("web"))
	type done struct {
		i, code int
		out     string
	}
	results := make(chan done)
	const n = 12
	for i := range n {
		go func() {
			out, _, code := a.execAttached(id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}}, "")
			results <- done{i, code, out}
		}()
	}
	for range n {
		select {
		case r := <-results:
			if r.code != r.i || r.out != fmt.Sprintln(r.i) {
				t.Errorf("%+v", r)
			}
		case <-time.After(limit):
			t.Fatal("an exec hangs")
		}
	}
}

// TestDetachedExec: a process that nobody waits for goes on without a daemon.
func TestDetachedExec(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	id := a.up(sleeper("web"))
	created, err := a.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: []string{"sleep", "4321"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	runs := func() bool {
		top, err := a.ContainerTop(ctx, id, client.ContainerTopOptions{})
		return err == nil && strings.Contains(fmt.Sprint(top.Processes), "sleep 4321")
	}
	eventually(t, "it runs", runs)
	a.stop()
	a.machine.Stop()
	a.machine.Start()
	a.start()
	if !runs() {
		t.Error("it ended with the daemon")
	}
	if got := a.do("GET", "/exec/"+created.ID+"/json", ""); got.status != http.StatusNotFound {
		t.Errorf("the daemon does not know it any more: %+v", got)
	}
}
