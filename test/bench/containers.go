package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ferryos/ferry/test/machine"
)

const (
	containerRuns = 20 // of each command, in turns
	manyRuns      = 5  // of many containers at once
	many          = 50
)

// engine is a container engine with Docker's API.
type engine struct {
	socket  string
	command func(args ...string) *exec.Cmd // Docker's client
	// ours tells the engine's own processes from the containers'.
	ours func(exe, cmdline string) bool
}

// containers measures containers beside Debian's Docker.
func (b *bench) containers(m *machine.Machine, docker *dockerd) error {
	if err := docker.loadFrom(m, "box"); err != nil {
		return err
	}
	version, err := docker.command("version", "--format", "{{.Server.Version}}").Output()
	if err != nil {
		return err
	}
	peer := fmt.Sprintf("docker %.8s", version)
	ferry := engine{socket: filepath.Join(m.RunDir, "docker.sock"), ours: func(_, cmdline string) bool {
		return strings.HasPrefix(cmdline, m.Bin+"/ferry") // runners execute a copy of theirs in memory
	}}
	ferry.command = func(args ...string) *exec.Cmd {
		return exec.Command("/usr/bin/docker", append([]string{"-H", "unix://" + ferry.socket}, args...)...)
	}
	theirs := engine{socket: strings.TrimPrefix(docker.host, "unix://"), command: docker.command, ours: func(exe, cmdline string) bool {
		return strings.Contains(cmdline, docker.root) && !strings.HasPrefix(exe, "/bin/")
	}}
	for _, step := range []func(*machine.Machine, string, engine, engine) error{b.run, b.exec, b.atOnce} {
		if err := step(m, peer, ferry, theirs); err != nil {
			return err
		}
	}
	if err := b.besidePodman(m); err != nil {
		return err
	}
	return b.thaw(ferry)
}

// inTurns times two commands, one after the other, n times; the first of each warms up.
func inTurns(n int, ours, theirs func() error) (mine, others durations, err error) {
	for i := range n + 1 {
		a, err := timed(ours)
		if err != nil {
			return mine, others, err
		}
		b, err := timed(theirs)
		if err != nil {
			return mine, others, fmt.Errorf("the peer: %w", err)
		}
		if i > 0 {
			mine, others = append(mine, a), append(others, b)
		}
	}
	return mine, others, nil
}

// beside is the peer's column.
func beside(peer string, ours, theirs durations) string {
	return fmt.Sprintf("%s: %s, ratio %.2f", peer, theirs, ours.median().Seconds()/theirs.median().Seconds())
}

// run measures `run --rm IMAGE true`, by our client and by Docker's own.
func (b *bench) run(m *machine.Machine, peer string, ferry, docker engine) error {
	theirs := func() error { return docker.command("run", "--rm", "box", "true").Run() }
	ours, others, err := inTurns(containerRuns, func() error { _, err := m.Run("ferry", "run", "--rm", "box", "true"); return err }, theirs)
	if err != nil {
		return err
	}
	b.add("`ferry run --rm IMAGE true`, whole process", "≤ 45 ms, ≤ 0.13 × docker", ours.String(), beside(peer, ours, others))
	ours, others, err = inTurns(containerRuns, func() error { return ferry.command("run", "--rm", "box", "true").Run() }, theirs)
	if err != nil {
		return err
	}
	b.add("`docker run --rm IMAGE true` on Ferry's socket", "≤ 0.2 × docker", ours.String(), beside(peer, ours, others))
	return nil
}

// exec measures one more process in a container that runs.
func (b *bench) exec(m *machine.Machine, peer string, _, docker engine) error {
	if _, err := m.Run("ferry", "run", "-d", "--name", "rest", "box", "sleep", "10000"); err != nil {
		return err
	}
	if out, err := docker.command("run", "-d", "--name", "rest", "box", "sleep", "10000").CombinedOutput(); err != nil {
		return fmt.Errorf("docker run: %w: %s", err, out)
	}
	ours, others, err := inTurns(containerRuns, func() error { _, err := m.Run("ferry", "exec", "rest", "true"); return err },
		func() error { return docker.command("exec", "rest", "true").Run() })
	if err != nil {
		return err
	}
	b.add("`ferry exec CONTAINER true`, whole process", "≤ 25 ms, ≤ 0.3 × docker", ours.String(), beside(peer, ours, others))
	if out, err := docker.command("rm", "-f", "rest").CombinedOutput(); err != nil {
		return fmt.Errorf("docker rm: %w: %s", err, out)
	}
	_, err = m.Run("ferry", "rm", "-f", "rest")
	return err
}

// atOnce measures many containers, created and started at the same time, and
// what they cost at rest.
func (b *bench) atOnce(_ *machine.Machine, peer string, ferry, docker engine) error {
	var perContainer [2]int
	var took [2]durations
	for range manyRuns {
		for i, e := range []engine{ferry, docker} {
			before, err := e.memory()
			if err != nil {
				return err
			}
			var ids []string
			d, err := timed(func() (err error) { ids, err = e.startMany(many); return err })
			if err == nil {
				took[i] = append(took[i], d)
				time.Sleep(2 * time.Second) // to rest
				var after int
				after, err = e.memory()
				perContainer[i] = (after - before) / many
			}
			if err := errors.Join(err, e.removeMany(ids)); err != nil {
				return err
			}
		}
	}
	b.add(fmt.Sprintf("%d containers created and started at once, until the last one runs", many), "≤ 0.15 × docker", took[0].String(), beside(peer, took[0], took[1]))
	b.add("memory per idle container beyond its own process", "≤ 6 MB", fmt.Sprintf("%.1f MB", float64(perContainer[0])/1024),
		fmt.Sprintf("%s: %.1f MB", peer, float64(perContainer[1])/1024))
	return nil
}

// memory is the proportional set size of the engine's processes, KiB.
func (e engine) memory() (int, error) {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return 0, err
	}
	total := 0
	for _, link := range exes {
		exe, err := os.Readlink(link)
		cmdline, cmdErr := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
		if err != nil || cmdErr != nil || !e.ours(exe, string(cmdline)) {
			continue // another's, or gone
		}
		rollup, err := os.ReadFile(filepath.Join(filepath.Dir(link), "smaps_rollup"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(rollup)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "Pss:" {
				kb, err := strconv.Atoi(fields[1])
				if err != nil {
					return 0, err
				}
				total += kb
			}
		}
	}
	return total, nil
}

// startMany runs n containers at the same time and returns once all do.
func (e engine) startMany(n int) ([]string, error) {
	ids, errs := make([]string, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var made struct{ ID string } // Id in the answer, which is the same to encoding/json
			errs[i] = e.call(http.MethodPost, "/containers/create", map[string]any{"Image": "box", "Cmd": []string{"sleep", "10000"}}, &made)
			if ids[i] = made.ID; errs[i] == nil {
				errs[i] = e.call(http.MethodPost, "/containers/"+made.ID+"/start", nil, nil)
			}
		})
	}
	wg.Wait()
	return ids, errors.Join(errs...)
}

func (e engine) removeMany(ids []string) error {
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		if id != "" {
			wg.Go(func() { errs[i] = e.call(http.MethodDelete, "/containers/"+id+"?force=1", nil, nil) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// call makes a request of the Docker API, without its client, whose start would be measured too.
func (e engine) call(method, path string, body, into any) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", e.socket)
	}}}
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, "http://docker"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}

// thaw measures a web server's first answer after its container was frozen.
func (b *bench) thaw(e engine) (err error) {
	var made struct{ ID string } // Id in the answer, which is the same to encoding/json
	if err := e.call(http.MethodPost, "/containers/create", map[string]any{"Image": "box", "Cmd": []string{"httpd", "-f", "-p", "80"}}, &made); err != nil {
		return err
	}
	path := "/containers/" + made.ID
	defer func() { err = errors.Join(err, e.removeMany([]string{made.ID})) }()
	if err := e.call(http.MethodPost, path+"/start", nil, nil); err != nil {
		return err
	}
	var found struct {
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := e.call(http.MethodGet, path+"/json", nil, &found); err != nil {
		return err
	}
	server := net.JoinHostPort(found.NetworkSettings.Networks["bridge"].IPAddress, "80")
	if err := answers(server); err != nil {
		return err
	}
	var took durations
	for range containerRuns {
		if err := e.call(http.MethodPost, path+"/pause", nil, nil); err != nil {
			return err
		}
		d, err := timed(func() error {
			return errors.Join(e.call(http.MethodPost, path+"/unpause", nil, nil), answers(server))
		})
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	b.add("a frozen container, thaw to first answer", "≤ 10 ms", took.String(), "")
	return nil
}

// answers returns once a web server has answered, whatever; it may not listen yet.
func answers(address string) (err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 1000 {
		var resp *http.Response
		if resp, err = client.Get("http://" + address + "/"); err == nil {
			return resp.Body.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return err
}
