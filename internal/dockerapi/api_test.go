package dockerapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/dockerapi"
	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// limit bounds what a test waits for; nothing comes near it unless it is broken.
const limit = 20 * time.Second

// api is a server over an engine of its own, with Docker's client of it.
type api struct {
	*client.Client
	t       *testing.T
	machine *enginetest.Machine
	server  *dockerapi.Server
	socket  string
	logs    string
}

// newAPI starts a server. At the end of the test every container is removed
// through it, and nothing may be left then: no pod, no log, no goroutine.
func newAPI(t *testing.T) *api {
	t.Helper()
	m := enginetest.New(t)
	a := &api{t: t, machine: m, socket: filepath.Join(m.Dir(), "docker.sock"), logs: filepath.Join(m.Dir(), "logs")}
	var err error
	a.Client, err = client.New(client.WithHost("unix://"+a.socket), client.WithAPIVersion("1.51"), client.WithTimeout(limit))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Client.Close() })
	a.start()
	t.Cleanup(a.finish)
	return a
}

func (a *api) start() {
	a.t.Helper()
	s := dockerapi.New(dockerapi.Options{Engine: a.machine.Engine, Socket: a.socket, LogDir: a.logs, Root: a.machine.Dir(), Version: "0.0.0-test",
		Log: slog.New(slog.NewTextHandler(a.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err := s.Start(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
	a.server = s
}

func (a *api) stop() {
	a.t.Helper()
	if a.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.t.Context()), limit)
	defer cancel()
	if err := a.server.Stop(ctx); err != nil {
		a.t.Errorf("stop the API: %v", err)
	}
	a.server = nil
}

// finish removes what is left and stops the server.
func (a *api) finish() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.t.Context()), limit)
	defer cancel()
	if a.server != nil {
		list, err := a.ContainerList(ctx, client.ContainerListOptions{All: true})
		if err != nil {
			a.t.Error(err)
		}
		for _, c := range list.Items {
			if _, err := a.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true}); err != nil && !strings.Contains(err.Error(), "No such container") {
				a.t.Errorf("remove %s: %v", c.Names, err)
			}
		}
		eventually(a.t, "no pod and no log is left", func() bool {
			logs, _ := os.ReadDir(a.logs)
			return len(a.machine.Pods(ctx, "")) == 0 && len(logs) == 0
		})
	}
	a.Client.Close()
	a.stop()
	eventually(a.t, "no goroutine of the API is left", func() bool { return !strings.Contains(stacks(), "dockerapi.(*Server)") })
	if _, err := os.Stat(a.socket); err == nil {
		a.t.Error("the socket is left")
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// eventually waits until ok, looking often.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("not true: %s", what)
			return
		}
	}
}

// spec is a container to make.
type spec struct {
	name   string
	config container.Config
	host   container.HostConfig
}

// shell is a container of busybox that runs a script.
func shell(script string) spec {
	return spec{config: container.Config{Image: enginetest.Busybox, Cmd: []string{"sh", "-c", script}}}
}

// sleeper is a container that runs until it is told to end.
func sleeper(name string) spec {
	s := shell("trap 'exit 0' TERM; sleep 1000 & echo ready; wait")
	s.name = name
	return s
}

func (a *api) create(s spec) string {
	a.t.Helper()
	res, err := a.ContainerCreate(a.t.Context(), client.ContainerCreateOptions{Config: &s.config, HostConfig: &s.host, Name: s.name})
	if err != nil {
		a.t.Fatalf("create: %v", err)
	}
	return res.ID
}

func (a *api) startContainer(id string) {
	a.t.Helper()
	if _, err := a.ContainerStart(a.t.Context(), id, client.ContainerStartOptions{}); err != nil {
		a.t.Fatalf("start: %v", err)
	}
}

// up creates and starts a container.
func (a *api) up(s spec) string {
	a.t.Helper()
	id := a.create(s)
	a.startContainer(id)
	return id
}

// result is what became of a container that ran to its end.
type result struct {
	id       string
	code     int
	out, err string
}

// run is `docker run`: create, attach, wait, start.
func (a *api) run(s spec) result {
	a.t.Helper()
	id := a.create(s)
	att, err := a.ContainerAttach(a.t.Context(), id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		a.t.Fatalf("attach: %v", err)
	}
	defer att.Close()
	exit := a.wait(id, container.WaitConditionNextExit)
	a.startContainer(id)
	out, errOut := a.read(att.HijackedResponse, s.config.Tty)
	return result{id, exit(), out, errOut}
}

// wait asks for an exit code, now, and returns what waits for it.
func (a *api) wait(id string, condition container.WaitCondition) func() int {
	a.t.Helper()
	res := a.ContainerWait(a.t.Context(), id, client.ContainerWaitOptions{Condition: condition})
	return func() int {
		a.t.Helper()
		select {
		case r := <-res.Result:
			return int(r.StatusCode)
		case err := <-res.Error:
			a.t.Fatalf("wait: %v", err)
		case <-time.After(limit):
			a.t.Fatal("no exit")
		}
		return -1
	}
}

// read reads a stream to its end.
func (a *api) read(conn client.HijackedResponse, tty bool) (out, errOut string) {
	a.t.Helper()
	conn.Conn.SetReadDeadline(time.Now().Add(limit))
	var o, e bytes.Buffer
	var err error
	if tty {
		_, err = io.Copy(&o, conn.Reader)
	} else {
		_, err = stdcopy.StdCopy(&o, &e, conn.Reader)
	}
	if err != nil {
		a.t.Errorf("read a stream: %v, after %.100q", err, o.String())
	}
	return o.String(), e.String()
}

func (a *api) inspect(id string) container.InspectResponse {
	a.t.Helper()
	res, err := a.ContainerInspect(a.t.Context(), id, client.ContainerInspectOptions{})
	if err != nil {
		a.t.Fatalf("inspect: %v", err)
	}
	return res.Container
}

// logsOf returns a container's log, of both streams as one.
func (a *api) logsOf(id string, opt client.ContainerLogsOptions) string {
	a.t.Helper()
	opt.ShowStdout, opt.ShowStderr = true, true
	res, err := a.ContainerLogs(a.t.Context(), id, opt)
	if err != nil {
		a.t.Fatalf("logs: %v", err)
	}
	defer res.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, res); err != nil {
		a.t.Errorf("logs: %v", err)
	}
	return out.String()
}

// awaitOutput waits until a container has logged text.
func (a *api) awaitOutput(id, text string) {
	a.t.Helper()
	eventually(a.t, "the log has "+text, func() bool { return strings.Contains(a.logsOf(id, client.ContainerLogsOptions{}), text) })
}

// answer is a raw answer of the API.
type answer struct {
	status  int
	header  http.Header
	body    string
	message string // of an error
}

// do sends a raw request: what no client would.
func (a *api) do(method, path, body string) answer {
	a.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", a.socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(a.t.Context(), method, "http://docker"+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := (&http.Client{Transport: transport, Timeout: limit}).Do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	out := answer{status: res.StatusCode, header: res.Header, body: string(data)}
	var e common.ErrorResponse
	if json.Unmarshal(data, &e) == nil {
		out.message = e.Message
	}
	return out
}
