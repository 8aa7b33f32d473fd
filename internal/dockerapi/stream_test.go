package dockerapi_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// both are the options of an attachment to everything.
var both = client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true}

func (a *api) attach(id string, opt client.ContainerAttachOptions) client.HijackedResponse {
	a.t.Helper()
	res, err := a.ContainerAttach(a.t.Context(), id, opt)
	if err != nil {
		a.t.Fatalf("attach: %v", err)
	}
	a.t.Cleanup(res.Close)
	res.Conn.SetDeadline(time.Now().Add(limit))
	return res.HijackedResponse
}

func (a *api) send(conn client.HijackedResponse, text string) {
	a.t.Helper()
	if _, err := io.WriteString(conn.Conn, text); err != nil {
		a.t.Fatal(err)
	}
}

// expect reads until text has come by.
func (a *api) expect(conn client.HijackedResponse, text string) {
	a.t.Helper()
	var got []byte
	for !bytes.Contains(got, []byte(text)) {
		b, err := conn.Reader.ReadByte()
		if err != nil {
			a.t.Fatalf("no %q: %v after %q", text, err, got)
		}
		got = append(got, b)
	}
}

// input is a container that reads its standard input.
func input(script string) spec {
	s := shell(script)
	s.config.OpenStdin, s.config.StdinOnce = true, true
	return s
}

// TestFirstOutput: who attaches before the start misses nothing, however short the program.
func TestFirstOutput(t *testing.T) {
	a := newAPI(t)
	for i := range 8 {
		if r := a.run(shell("echo " + fmt.Sprint(i))); r.code != 0 || r.out != fmt.Sprintln(i) {
			t.Fatalf("%+v", r)
		}
	}
}

func TestStdinRoundTrip(t *testing.T) {
	a := newAPI(t)
	id := a.create(input("cat; echo the end >&2"))
	conn := a.attach(id, both)
	if media, ok := conn.MediaType(); !ok || media != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("media type %q", media)
	}
	exit := a.wait(id, container.WaitConditionNextExit)
	a.startContainer(id)
	sent := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB, more than any pipe holds
	go func() {
		io.WriteString(conn.Conn, sent)
		conn.CloseWrite()
	}()
	out, errOut := a.read(conn, false)
	if out != sent || errOut != "the end\n" || exit() != 0 {
		t.Errorf("%d bytes of %d, %q", len(out), len(sent), errOut)
	}
}

func TestBigOutput(t *testing.T) {
	a := newAPI(t)
	const size = 16 << 20
	r := a.run(shell(fmt.Sprintf("yes 0123456789abcde | head -c %d", size)))
	if len(r.out) != size || strings.Trim(r.out, "0123456789abcde\n") != "" || r.code != 0 {
		t.Errorf("%d bytes, code %d", len(r.out), r.code)
	}
}

func TestTerminal(t *testing.T) {
	a := newAPI(t)
	s := input(`stty -echo; test -t 0 && test -t 1 && echo "a terminal of $(stty size)"; read x; echo "<$x> $(stty size)"; exit 3`)
	s.config.Tty, s.host.ConsoleSize = true, [2]uint{30, 100}
	id := a.create(s)
	conn := a.attach(id, both)
	if media, _ := conn.MediaType(); media != "application/vnd.docker.raw-stream" {
		t.Errorf("media type %q", media)
	}
	exit := a.wait(id, container.WaitConditionNextExit)
	a.startContainer(id)
	a.expect(conn, "a terminal of 30 100\r\n")
	if _, err := a.ContainerResize(t.Context(), id, client.ContainerResizeOptions{Height: 40, Width: 120}); err != nil {
		t.Fatal(err)
	}
	a.send(conn, "typed\n")
	a.expect(conn, "<typed> 40 120\r\n")
	if code := exit(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	if rest, _ := io.ReadAll(conn.Reader); len(rest) != 0 {
		t.Errorf("after the end: %q", rest)
	}
	id = a.up(sleeper("plain"))
	if got := a.do("POST", "/containers/plain/resize?h=1&w=1", ""); got.status != http.StatusConflict || !strings.Contains(got.message, "no terminal") {
		t.Errorf("resize without a terminal: %+v", got)
	}
	_ = id
}

// TestDetach: the keys end the attachment; the program and its input live on.
func TestDetach(t *testing.T) {
	a := newAPI(t)
	s := input("stty -echo; while read x; do echo got $x; done")
	s.config.Tty, s.config.StdinOnce = true, false
	id := a.up(s)
	for i, keys := range []string{"", "ctrl-a,x"} {
		opt := both
		opt.DetachKeys = keys
		conn := a.attach(id, opt)
		a.send(conn, fmt.Sprintf("%d\n", i))
		a.expect(conn, fmt.Sprintf("got %d\r\n", i))
		a.send(conn, map[string]string{"": "\x10\x11", "ctrl-a,x": "\x01x"}[keys])
		if _, err := io.Copy(io.Discard, conn.Reader); err != nil {
			t.Fatalf("keys %q: %v", keys, err)
		}
	}
	if s := a.inspect(id).State; !s.Running {
		t.Errorf("%+v", s)
	}
	if got := a.do("POST", "/containers/"+id+"/attach?stream=1&detachKeys=no-such-key", ""); got.status != 400 || !strings.Contains(got.message, "detach keys") {
		t.Errorf("%+v", got)
	}
}

// TestStdinOfSeveral: without StdinOnce the end of one caller's input is not the program's.
func TestStdinOfSeveral(t *testing.T) {
	a := newAPI(t)
	s := input("while read x; do echo got $x; done")
	s.config.StdinOnce = false
	id := a.create(s)
	watcher := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdout: true})
	a.startContainer(id)
	for i := range 3 {
		conn := a.attach(id, both)
		a.send(conn, fmt.Sprintf("%d\n", i))
		a.expect(conn, fmt.Sprintf("got %d\n", i))
		conn.CloseWrite()
		a.expect(watcher, fmt.Sprintf("got %d\n", i))
		conn.Close()
	}
	if s := a.inspect(id).State; !s.Running {
		t.Errorf("%+v", s)
	}
}

// TestAttachStreams: only what is asked for, and what was printed before with logs.
func TestAttachStreams(t *testing.T) {
	a := newAPI(t)
	id := a.create(input("echo early; echo err >&2; read x; echo late; echo err >&2"))
	onlyErr := a.attach(id, client.ContainerAttachOptions{Stream: true, Stderr: true})
	a.startContainer(id)
	a.awaitOutput(id, "early")
	a.awaitOutput(id, "err")
	conn := a.attach(id, client.ContainerAttachOptions{Stdout: true, Logs: true})
	if out, errOut := a.read(conn, false); out != "early\n" || errOut != "" {
		t.Errorf("logs alone: %q, %q", out, errOut)
	}
	all := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Logs: true})
	a.expect(all, "early\n")
	a.send(all, "\n")
	if out, errOut := a.read(all, false); out != "late\n" || errOut != "" {
		t.Errorf("both: %q, %q", out, errOut)
	}
	if out, errOut := a.read(onlyErr, false); out != "" || errOut != "err\nerr\n" {
		t.Errorf("standard error alone: %q, %q", out, errOut)
	}
}

// TestStartAttached is docker start -a: of one that ran before.
func TestStartAttached(t *testing.T) {
	a := newAPI(t)
	id := a.run(shell("echo hi; exit 2")).id
	for range 5 {
		conn := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
		exit := a.wait(id, container.WaitConditionNextExit)
		a.startContainer(id)
		if out, _ := a.read(conn, false); out != "hi\n" || exit() != 2 {
			t.Fatalf("%q", out)
		}
	}
	// One who waits for a start that never comes is let go at the removal.
	conn := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdout: true})
	if _, err := a.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if out, _ := a.read(conn, false); out != "" {
		t.Errorf("%q", out)
	}
}

// TestGoneClients: of clients that hang up nothing stays, also when nothing is printed.
func TestGoneClients(t *testing.T) {
	a := newAPI(t)
	running, created := a.up(sleeper("quiet")), a.create(sleeper("created"))
	a.awaitOutput(running, "ready")
	for _, id := range []string{running, created} {
		conn := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdout: true})
		conn.CloseWrite() // as docker does without standard input: it listens on
		conn.Close()
	}
	logs, err := a.ContainerLogs(t.Context(), running, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	logs.Close()
	events := a.do("GET", "/events?until=1", "")
	if events.status != http.StatusOK || events.body != "" {
		t.Errorf("%+v", events)
	}
	a.wait(running, container.WaitConditionNextExit) // and never read
	a.Client.Close()
	for _, handler := range []string{"containerAttach", "containerLogs", "events"} {
		eventually(t, "no "+handler+" is left", func() bool { return !strings.Contains(stacks(), "(*Server)."+handler+"(") })
	}
	a.startContainer(created)
	if s := a.inspect(created).State; !s.Running {
		t.Errorf("%+v", s)
	}
}

// TestStopWithStreams stops the API while it streams: the streams end, the containers do not.
func TestStopWithStreams(t *testing.T) {
	a := newAPI(t)
	s := sleeper("on")
	s.config.OpenStdin = true
	id := a.up(s)
	a.awaitOutput(id, "ready")
	conn := a.attach(id, both)
	quiet := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdout: true})
	logs, err := a.ContainerLogs(t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	created, err := a.ExecCreate(t.Context(), id, client.ExecCreateOptions{Cmd: []string{"sleep", "1000"}, AttachStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := a.ExecAttach(t.Context(), created.ID, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Close()
	begin := time.Now()
	a.stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
	for name, r := range map[string]io.Reader{"attach": conn.Reader, "quiet attach": quiet.Reader, "logs": logs, "exec": exec.Reader} {
		done := make(chan struct{})
		go func() { io.Copy(io.Discard, r); close(done) }()
		select {
		case <-done:
		case <-time.After(limit):
			t.Errorf("%s goes on", name)
		}
	}
	a.start()
	if s := a.inspect(id).State; !s.Running {
		t.Errorf("%+v", s)
	}
}

// TestAttachWithoutUpgrade: old clients take the connection over without asking.
func TestAttachWithoutUpgrade(t *testing.T) {
	a := newAPI(t)
	id := a.create(shell("echo hi"))
	conn, err := net.Dial("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	fmt.Fprintf(conn, "POST /v1.40/containers/%s/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n", id)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", res, err)
	}
	a.startContainer(id)
	if data, err := io.ReadAll(res.Body); err != nil || string(data) != "\x01\x00\x00\x00\x00\x00\x00\x03hi\n" {
		t.Errorf("%q, %v", data, err)
	}
}
