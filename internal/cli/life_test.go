package cli

import (
	"regexp"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/fault"
)

// TestLife: the verbs about a container that is there.
func TestLife(t *testing.T) {
	m := running(t)
	for _, tt := range []struct {
		line, script string
		code         int
		out, err     string
	}{
		{"run -d --name web --init --restart on-failure:2 -p 127.0.0.1::80 " + image + " sh -c SCRIPT", "trap 'exit 5' TERM; while :; do sleep 0.01; done", 0, "[0-9a-f]{64}\n", ""},
		{"run --restart sometimes " + image, "", 2, "", "--restart sometimes"},
		{"run --restart on-failure:x " + image, "", 2, "", "--restart on-failure:x"},
		{"port web", "", 0, `80/tcp -> 127\.0\.0\.1:\d+\n`, ""},
		{"top web", "", 0, `(?s)UID.*docker-init.*`, ""},
		{"top web -o pid,comm", "", 0, `(?s)PID +COMMAND\n.*docker-init.*`, ""},
		{"stats web", "", 0, `NAME +CPU +MEMORY +PROCESSES\nweb +[0-9.]+% .*\n`, ""},
		{"stats nothing", "", 5, "", "No such container: nothing"},
		{"update --memory 64m --cpus 0.5 --pids-limit 50 --restart no web", "", 0, "web\n", ""},
		{"update --memory much web", "", 2, "", "--memory much"},
		{"inspect web", "", 0, `(?s).*"Memory": 67108864.*`, ""},
		{"pause web", "", 0, "web\n", ""},
		{"unpause web", "", 0, "web\n", ""},
		{"rename web old", "", 0, "", ""},
		{"stop old", "", 0, "old\n", ""},
		{"wait old", "", 0, "5\n", ""},
		{"events --since 1h --until 9999999999.0 --filter nothing", "", 2, "", "write KEY=VALUE"},
		{"rm old", "", 0, "old\n", ""},
	} {
		r := on(t, tt.line, tt.script)
		if r.code != tt.code || !regexp.MustCompile(`^(?:`+tt.out+`)$`).MatchString(r.out) || !regexp.MustCompile(tt.err).MatchString(r.err) {
			t.Errorf("%s: code %d\n%s\n%s", tt.line, r.code, r.out, r.err)
		}
	}
	none(t, m)
}

func TestRestartPolicy(t *testing.T) {
	for s, want := range map[string]container.RestartPolicy{"always": {Name: "always"}, "on-failure:3": {Name: "on-failure", MaximumRetryCount: 3}} {
		if got, err := restartPolicy(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"never", "always:3", "on-failure:-1"} {
		if _, err := restartPolicy(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", s, err)
		}
	}
}
