package dockerapi_test

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

func TestLogs(t *testing.T) {
	a := newAPI(t)
	id := a.run(shell("for i in 1 2 3 4 5; do echo line $i; done; echo problem >&2; printf 'no end'")).id
	all := "line 1\nline 2\nline 3\nline 4\nline 5\n"
	logs := func(opt client.ContainerLogsOptions) (out, errOut string) {
		t.Helper()
		res, err := a.ContainerLogs(t.Context(), id, opt)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Close()
		var o, e strings.Builder
		if _, err := stdcopy.StdCopy(&o, &e, res); err != nil {
			t.Error(err)
		}
		return o.String(), e.String()
	}
	later := time.Now().Add(time.Hour).Format(time.RFC3339)
	for _, tt := range []struct {
		name     string
		opt      client.ContainerLogsOptions
		out, err string
	}{
		{"both streams", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}, all + "no end", "problem\n"},
		{"one", client.ContainerLogsOptions{ShowStdout: true}, all + "no end", ""},
		{"the other", client.ContainerLogsOptions{ShowStderr: true, Tail: "all"}, "", "problem\n"},
		{"no line", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "0"}, "", ""},
		{"more than there are", client.ContainerLogsOptions{ShowStdout: true, Tail: "100"}, all + "no end", ""},
		{"since long ago", client.ContainerLogsOptions{ShowStdout: true, Since: "1h"}, all + "no end", ""},
		{"since later", client.ContainerLogsOptions{ShowStdout: true, Since: later}, "", ""},
		{"until later", client.ContainerLogsOptions{ShowStdout: true, Until: later}, all + "no end", ""},
		{"until long ago", client.ContainerLogsOptions{ShowStdout: true, Until: "1h"}, "", ""},
		{"followed, though it has ended", client.ContainerLogsOptions{ShowStdout: true, Follow: true}, all + "no end", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out, errOut := logs(tt.opt); out != tt.out || errOut != tt.err {
				t.Errorf("%q, %q", out, errOut)
			}
		})
	}
	out, _ := logs(client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "3"})
	if n := strings.Count(out, "\n"); n > 2 { // the streams' order is the scheduler's
		t.Errorf("the last three: %q", out)
	}
	out, _ = logs(client.ContainerLogsOptions{ShowStdout: true, Timestamps: true})
	first, rest, _ := strings.Cut(out, " ")
	if at, err := time.Parse(time.RFC3339Nano, first); err != nil || time.Since(at) > time.Minute || !strings.HasPrefix(rest, "line 1\n") {
		t.Errorf("with times: %q, %v", out, err)
	}
	if out, _ := logs(client.ContainerLogsOptions{ShowStdout: true, Since: a.inspect(id).State.StartedAt}); out != all+"no end" {
		t.Errorf("since its start: %q", out)
	}
}

// TestFollow: lines come as they are printed, and the end is the container's.
func TestFollow(t *testing.T) {
	a := newAPI(t)
	id := a.create(input("while read x; do echo got $x; done"))
	res, err := a.ContainerLogs(t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	r, w := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(w, io.Discard, res)
		w.CloseWithError(err)
	}()
	lines := bufio.NewReader(r)
	conn := a.attach(id, client.ContainerAttachOptions{Stream: true, Stdin: true})
	a.startContainer(id)
	for i := range 3 {
		a.send(conn, fmt.Sprintf("%d\n", i))
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("got %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
	}
	conn.CloseWrite()
	if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestFollowRemoved: the end of a followed log is also the container's removal.
func TestFollowRemoved(t *testing.T) {
	a := newAPI(t)
	id := a.create(shell("true"))
	res, err := a.ContainerLogs(t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	if _, err := a.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(res); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestLogsOfTerminal(t *testing.T) {
	a := newAPI(t)
	s := shell("echo out; echo err >&2")
	s.config.Tty = true
	r := a.run(s)
	if r.out != "out\r\nerr\r\n" {
		t.Errorf("%+v", r)
	}
	if got := a.do("GET", "/containers/"+r.id+"/logs?stdout=1", ""); got.body != "out\r\nerr\r\n" || got.header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("%+v", got)
	}
}

// TestLongLines: a line longer than the log's entries comes back whole.
func TestLongLines(t *testing.T) {
	a := newAPI(t)
	r := a.run(shell("yes x | head -c 20000 | while read x; do printf 0123456789; done; echo; echo next"))
	if log := a.logsOf(r.id, client.ContainerLogsOptions{}); log != strings.Repeat("0123456789", 10000)+"\nnext\n" {
		t.Errorf("%d bytes", len(log))
	}
}

func TestLogDrivers(t *testing.T) {
	a := newAPI(t)
	s := shell("yes 0123456789abcde | head -c 200000")
	s.host.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "64k", "max-file": "2"}}
	if log := a.logsOf(a.run(s).id, client.ContainerLogsOptions{}); len(log) == 0 || len(log) > 64<<10 || strings.Trim(log, "0123456789abcde\n") != "" {
		t.Errorf("rotated: %d bytes", len(log))
	}
	s = shell("echo hi")
	s.host.LogConfig.Type = "none"
	r := a.run(s)
	if got := a.do("GET", "/containers/"+r.id+"/logs?stdout=1", ""); r.out != "hi\n" || got.status != 501 || !strings.Contains(got.message, "without a log") {
		t.Errorf("%+v, %+v", r, got)
	}
}

func TestLogsRefused(t *testing.T) {
	a := newAPI(t)
	id := a.create(shell("true"))
	for query, want := range map[string]struct {
		status int
		says   string
	}{
		"":                           {400, "choose at least one stream"},
		"stdout=1&tail=some":         {200, ""},
		"stdout=1&tail=-3":           {200, ""},
		"stdout=1&since=yesterday":   {400, `"yesterday" is not understood`},
		"stdout=1&until=1.x":         {400, `"1.x" is not understood`},
		"stdout=1&tail=all&since=10": {200, ""},
	} {
		if got := a.do("GET", "/containers/"+id+"/logs?"+query, ""); got.status != want.status || !strings.Contains(got.message, want.says) {
			t.Errorf("%s: %d %q", query, got.status, got.message)
		}
	}
}
