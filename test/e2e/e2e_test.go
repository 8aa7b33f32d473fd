// Package e2e runs Ferry's real programs as a person would: each script of
// testdata/script on a Ferry of its own. `go doc github.com/rogpeppe/go-internal/testscript`
// tells the language; commands that this package adds are in the map below.
//
//	make e2e                      all scripts
//	make e2e RUN=Scripts/crash    one
package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/test/machine"
)

var (
	bin = flag.String("bin", "../../bin", "directory of the programs under test")
	// clients is where scripts/clients has put Docker's plugins. Without it the
	// scripts that need them are skipped; `make e2e` and `make test-vm` give it.
	clients = flag.String("clients", os.Getenv("FERRY_CLIENTS"), "directory of docker's plugins buildx and compose")
)

// key finds a script's machine in its environment's values.
type key struct{}

func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs containers")
	}
	var needed []string
	for _, name := range []string{"ferry", "ferryd", "ferry-build", "ferry-runner", "ferry-init", "kubectl", "images/mlp.tar"} {
		needed = append(needed, filepath.Join(*bin, name))
	}
	if *clients != "" {
		for _, name := range []string{"docker-buildx", "docker-compose", "testcontainers"} {
			needed = append(needed, filepath.Join(*clients, name))
		}
	}
	for _, path := range needed {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v: run `make e2e`", err)
		}
	}
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		// testscript runs scripts in parallel, and kube-proxy's tables are the machine's.
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			testscript.Run(t, testscript.Params{Files: []string{file}, Setup: setUp, RequireExplicitExec: true, Condition: condition, Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"waitfor": waitFor, "killdaemon": killDaemon, "poweroff": powerOff, "leftovers": leftovers, "record": record, "same": same, "listen": listen, "unlisten": unlisten, "unit": unit,
			}})
		})
	}
}

// linkPlugins has docker find its plugins.
func linkPlugins(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"docker-buildx", "docker-compose"} {
		if err := os.Symlink(filepath.Join(*clients, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// condition tells of the machine: [clients] has Docker's own clients, [cgroup2]
// cgroup v2 alone, [apparmor] a kernel with AppArmor, and [systemd] is run by systemd.
func condition(name string) (bool, error) {
	path := ""
	switch name {
	case "clients":
		return *clients != "", nil
	case "cgroup2":
		path = "/sys/fs/cgroup/cgroup.controllers"
	case "apparmor":
		path = "/sys/kernel/security/apparmor/profiles"
	case "systemd":
		path = "/run/systemd/system"
	default:
		return false, fmt.Errorf("unknown condition %q", name)
	}
	_, err := os.Stat(path)
	return err == nil, nil
}

// setUp gives a script its machine, the examples and a static busybox to make images of.
func setUp(env *testscript.Env) error {
	m, err := machine.New(*bin)
	if err != nil {
		return err
	}
	env.Values[key{}], env.Values[listenerKey{}] = m, new(net.Listener)
	env.Defer(func() {
		t := env.T()
		if v, ok := t.(interface{ Failed() bool }); ok && v.Failed() {
			if log, err := os.ReadFile(filepath.Join(m.DataDir, "ferryd.log")); err == nil {
				log, _, _ = bytes.Cut(log, []byte("\ngoroutine ")) // why is said before that
				t.Log("ferryd.log ends with:\n" + string(log[max(0, len(log)-6000):]))
			}
		}
		if err := m.Remove(); err != nil {
			t.Log(err)
			t.FailNow()
		}
	})
	env.Vars = append(append(env.Vars, m.Env()...), fmt.Sprintf("MINUTE=%ds", 60*runnertest.Patience()), "FERRY_CLIENTS="+*clients, "UNIT=ferryd-"+m.Bridge+".service")
	if *clients != "" {
		if err := linkPlugins(filepath.Join(m.Dir, ".docker", "cli-plugins")); err != nil {
			return err
		}
	}
	if err := exec.Command("cp", "-r", "../../examples", env.WorkDir).Run(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(env.WorkDir, "box"), 0o755); err != nil {
		return err
	}
	return exec.Command("cp", "/bin/busybox", filepath.Join(env.WorkDir, "box")).Run()
}

func machineOf(ts *testscript.TestScript) *machine.Machine { return ts.Value(key{}).(*machine.Machine) }

// unit makes ferryd a service of systemd named $UNIT, by the unit file that is
// installed with Ferry, and starts it.
func unit(ts *testscript.TestScript, _ bool, _ []string) {
	m, name := machineOf(ts), ts.Getenv("UNIT")
	file := filepath.Join("/run/systemd/system", name)
	data, err := os.ReadFile("../../packaging/systemd/ferryd.service")
	ts.Check(err)
	lines := []string{"ExecStart=" + filepath.Join(m.Bin, "ferryd")}
	for _, kv := range m.Env() {
		lines = append(lines, fmt.Sprintf("Environment=%q", kv))
	}
	text := regexp.MustCompile("(?m)^ExecStart=.*$").ReplaceAllLiteralString(string(data), strings.Join(lines, "\n"))
	ts.Check(os.WriteFile(file, []byte(text), 0o644))
	ts.Defer(func() {
		// Before the machine is removed: systemd would start ferryd again.
		_ = exec.Command("systemctl", "stop", name).Run() // it may have ended
		ts.Check(errors.Join(os.Remove(file), exec.Command("systemctl", "daemon-reload").Run()))
	})
	ts.Check(ts.Exec("systemctl", "daemon-reload"))
	ts.Check(ts.Exec("systemctl", "start", name))
}

// waitFor runs a command again and again: waitfor SECONDS COMMAND [ARG…]. On slow
// machines it waits longer; scripts give MINUTE to what waits by itself.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: waitfor SECONDS COMMAND [ARG…]")
	}
	seconds, err := strconv.Atoi(args[0])
	ts.Check(err)
	seconds *= runnertest.Patience()
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	for {
		err := ts.Exec(args[1], args[2:]...)
		if (err == nil) != neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("after %d s still: %v", seconds, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// killDaemon ends ferryd with SIGKILL.
func killDaemon(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(machineOf(ts).Kill()) }

// powerOff leaves what a power cut leaves.
func powerOff(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(machineOf(ts).PowerOff()) }

type listenerKey struct{}

// listen takes a TCP port of loopback: listen PORT. unlisten gives it back.
func listen(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
	ts.Check(err)
	*ts.Value(listenerKey{}).(*net.Listener) = l
	ts.Defer(func() { l.Close() })
}

func unlisten(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check((*ts.Value(listenerKey{}).(*net.Listener)).Close())
}

// leftovers fails if a Ferry that is down has left anything but its data.
func leftovers(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(machineOf(ts).Leftovers()) }

// state is the machine's settings. Interfaces, tables and mounts are for
// leftovers, which tells a Ferry's own from others'.
func state() (string, error) {
	out, err := exec.Command("sh", "-c", `
		cd /proc/sys
		grep . vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_max* \
			net/ipv4/ip_forward net/ipv4/conf/all/* net/ipv4/conf/default/* net/bridge/* 2>/dev/null`).Output()
	if len(out) == 0 {
		return "", err
	}
	return string(out), nil
}

// record keeps the machine's settings for same.
func record(ts *testscript.TestScript, _ bool, _ []string) {
	now, err := state()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("machine-state"), []byte(now), 0o600))
}

// same fails if the machine's settings are not as at record.
func same(ts *testscript.TestScript, _ bool, _ []string) {
	was, err := os.ReadFile(ts.MkAbs("machine-state"))
	ts.Check(err)
	now, err := state()
	ts.Check(err)
	if now != string(was) {
		ts.Check(errors.New("the machine is not as it was:\n--- before\n" + string(was) + "\n--- now\n" + now))
	}
}
