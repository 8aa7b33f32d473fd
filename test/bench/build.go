package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ferryos/ferry/test/machine"
)

// buildRuns is how often each engine builds, in turns.
const buildRuns = 7

// steppedDockerfile has 20 steps after FROM, of the kinds that builds are made
// of; the argument tells one cold build from another.
func steppedDockerfile() string {
	var b strings.Builder
	b.WriteString("FROM box\nARG TURN\n")
	for i := range 5 {
		fmt.Fprintf(&b, "COPY part%d /src/part%d\nRUN echo $TURN > /made%d && cat /src/part%d/* > /all%d\nRUN mkdir -p /dir/%d && cp /src/part%d/* /dir/%d/\nENV STEP=%d\n",
			i, i, i, i, i, i, i, i, i)
	}
	b.WriteString("CMD [\"sh\"]\n")
	return b.String()
}

// stepped makes a context for steppedDockerfile: five directories of files.
func stepped(dir string) error {
	for i := range 5 {
		part := filepath.Join(dir, fmt.Sprintf("part%d", i))
		if err := os.MkdirAll(part, 0o755); err != nil {
			return err
		}
		for j := range 20 {
			if err := os.WriteFile(filepath.Join(part, fmt.Sprintf("file%d", j)), []byte(strings.Repeat(fmt.Sprintf("%d %d\n", i, j), 2000)), 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(steppedDockerfile()), 0o644)
}

// builds measures a Dockerfile of 20 steps beside Debian's Docker: each of its
// steps anew, again with nothing changed, and again with a file changed.
func (b *bench) builds(m *machine.Machine, docker *dockerd) error {
	if err := docker.loadFrom(m, "box"); err != nil {
		return err
	}
	dir := filepath.Join(m.Dir, "stepped")
	if err := stepped(dir); err != nil {
		return err
	}
	clients := []struct {
		name    string
		command func(args ...string) *exec.Cmd
	}{
		{"`ferry build`", func(args ...string) *exec.Cmd { return m.Command("ferry", args...) }},
		{"the real `docker build` against Ferry's socket, without buildx", func(args ...string) *exec.Cmd {
			cmd := m.Command("docker", args...)
			cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=0")
			return cmd
		}},
		{"docker", docker.command},
	}
	cold, again, changed := make([]durations, len(clients)), make([]durations, len(clients)), make([]durations, len(clients))
	for turn := range buildRuns + 1 {
		for i, c := range clients {
			args := []string{"build", "-t", "stepped", "--build-arg", fmt.Sprintf("TURN=%d-%d", turn, time.Now().UnixNano()), dir}
			for _, into := range []*durations{&cold[i], &again[i], &changed[i]} {
				if into == &changed[i] {
					if err := os.WriteFile(filepath.Join(dir, "part4", "file0"), fmt.Append(nil, turn, i), 0o644); err != nil {
						return err
					}
				}
				took, err := timed(func() error {
					out, err := c.command(args...).CombinedOutput()
					if err != nil {
						err = fmt.Errorf("%s: %w: %s", c.name, err, out)
					}
					return err
				})
				if err != nil {
					return err
				}
				if turn > 0 { // the first of each warms up
					*into = append(*into, took)
				}
			}
		}
	}
	peer := len(clients) - 1
	for _, what := range []struct {
		name, bar string
		took      []durations
	}{{"a Dockerfile of 20 steps, each made anew", "≤ 0.9 × docker", cold}, {"the same with nothing changed", "≤ 0.3 × docker", again},
		{"the same with a file changed that the last 3 of its steps need", "", changed}} {
		for i, c := range clients[:peer] {
			b.add(c.name+": "+what.name, what.bar, what.took[i].String(),
				fmt.Sprintf("docker: %s, ratio %.2f", what.took[peer], what.took[i].median().Seconds()/what.took[peer].median().Seconds()))
		}
	}
	return nil
}
