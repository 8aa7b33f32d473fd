package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAttachTerminal types into a program that runs already, and leaves it running.
func TestAttachTerminal(t *testing.T) {
	m := running(t)
	on(t, "run -dit --name web "+image+" sh -c SCRIPT", `while read x; do [ "$x" = end ] && exit 4; stty size; echo "<$x>"; done`).wants(t, 0, ".*\n", "")
	for _, tt := range []struct {
		args  []string
		leave string
	}{{[]string{"attach", "web"}, "\x10\x11"}, {[]string{"attach", "--detach-keys", "ctrl-a,x", "web"}, "\x01x"}} {
		s, _ := atTerminal(t, nil, tt.args...)
		io.WriteString(s.person, "typed\n")
		s.expect("30 100")
		s.expect("<typed>")
		io.WriteString(s.person, tt.leave)
		s.ends(0)
		s.expect("running")
	}
	s, _ := atTerminal(t, nil, "attach", "web")
	io.WriteString(s.person, "end\n")
	s.ends(4)
	ferry(t, "rm", "web").wants(t, 0, "web\n", "")
	// Who started it may leave it too.
	s, _ = atTerminal(t, nil, "run", "-it", "--name", "web", image, "sh", "-c", `read x; echo "<$x>"; sleep 1000`)
	io.WriteString(s.person, "typed\n")
	s.expect("<typed>")
	io.WriteString(s.person, "\x10\x11")
	s.ends(0)
	ferry(t, "inspect", "web").wants(t, 0, `(?s).*"Running": true.*`, "")
	ferry(t, "rm", "-f", "web").wants(t, 0, "web\n", "")
	none(t, m)
}

func TestAttach(t *testing.T) {
	m := running(t)
	on(t, "run -d --name done "+image+" true", "").wants(t, 0, ".*\n", "")
	ferry(t, "wait", "done").wants(t, 0, "0\n", "")
	for _, tt := range []struct {
		line string
		code int
		err  string
	}{
		{"attach", 2, "error: ferry attach: CONTAINER missing"},
		{"attach nothing", 5, "No such container: nothing"},
		{"attach done", 1, "cannot attach to a stopped container, start it first\nhint: `ferry start done`"},
		{"attach --detach-keys nonsense term", 2, "error: --detach-keys nonsense: .*\nhint: write keys"},
		{"attach term", 2, "error: term has a terminal, and standard input is none\nhint: --no-stdin"},
		{"attach paused", 1, "cannot attach to a paused container, unpause it first"},
	} {
		switch {
		case strings.HasSuffix(tt.line, "term"):
			on(t, "run -dit --name term "+image+" sleep 1000", "").wants(t, 0, ".*\n", "")
		case strings.HasSuffix(tt.line, "paused"):
			on(t, "run -d --name paused "+image+" sleep 1000", "").wants(t, 0, ".*\n", "")
			ferry(t, "pause", "paused").wants(t, 0, "paused\n", "")
		}
		args := strings.Fields(tt.line)
		if strings.Contains(tt.line, "nonsense") {
			args = append(args[:1:1], "--no-stdin", "--detach-keys", "nonsense", "term")
		}
		ferry(t, args...).wants(t, tt.code, "", tt.err)
		ferry(t, "rm", "-f", "term", "paused")
	}
	ferry(t, "rm", "done").wants(t, 0, "done\n", "")
	none(t, m)
}

// TestAttachStreams: what the program says comes here, signals go there.
func TestAttachStreams(t *testing.T) {
	m := running(t)
	guard := make(chan os.Signal, 8)
	signal.Notify(guard, syscall.SIGUSR1)
	defer signal.Stop(guard)
	on(t, "run -di --name web "+image+" sh -c SCRIPT", "trap 'echo signal >&2; exit 42' USR1; read x; echo \"<$x>\"; while :; do sleep 0.02; done").wants(t, 0, ".*\n", "")
	var out, errs lockedBuffer
	done := make(chan int, 1)
	attach := func(in io.Reader, args ...string) {
		go func() {
			done <- Main(context.WithoutCancel(t.Context()), append([]string{"attach"}, args...), in, &out, &errs, func(string) string { return "" })
		}()
	}
	hold, typed := io.Pipe()
	defer typed.Close()
	attach(hold, "web")
	io.WriteString(typed, "typed\n")
	eventually(t, "it was read", func() bool { return out.String() == "<typed>\n" })
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-done:
		if code != 42 || errs.String() != "signal\n" {
			t.Errorf("code %d, %q", code, errs.String())
		}
	case <-time.After(limit):
		t.Fatal("the signal did not come")
	}
	ferry(t, "rm", "web").wants(t, 0, "web\n", "")
	// Without: the signal is for ferry alone.
	on(t, "run -d --name web "+image+" sh -c SCRIPT", "trap 'exit 42' USR1; for i in $(seq 100); do sleep 0.02; done; exit 5").wants(t, 0, ".*\n", "")
	attach(strings.NewReader(""), "--no-stdin", "--sig-proxy=false", "web")
	time.Sleep(200 * time.Millisecond)
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-done:
		if code != 5 {
			t.Errorf("code %d", code)
		}
	case <-time.After(limit):
		t.Fatal("it does not end with the program")
	}
	ferry(t, "rm", "web").wants(t, 0, "web\n", "")
	none(t, m)
}

// TestStatsOnTerminal: shown again and again in the same place, until it is gone.
func TestStatsOnTerminal(t *testing.T) {
	m := running(t)
	ferry(t, "run", "-d", "--name", "web", image, "sleep", "1000").wants(t, 0, ".*\n", "")
	s, _ := atTerminal(t, nil, "stats", "--no-stream", "web")
	s.ends(0)
	s.expect("web")
	if strings.Contains(s.shown.String(), clearScreen) {
		t.Errorf("%q", s.shown.String())
	}
	s, _ = atTerminal(t, nil, "stats", "web")
	eventually(t, "it is shown again", func() bool { return strings.Count(s.shown.String(), clearScreen+"NAME") > 1 })
	ferry(t, "rm", "-f", "web").wants(t, 0, "web\n", "")
	s.ends(5)
	none(t, m)
}
