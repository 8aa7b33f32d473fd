package runner_test

import (
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
)

// TestSeccompCache starts one container with a computed program and one with
// the kept one: both must deny the same, and the second must find the first's file.
func TestSeccompCache(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	cache := runner.ProfileDir(h.dir)
	const script = `exec 2>&1; head -c0 /proc/self/status; cat /proc/self/status | while read k v; do case $k in Seccomp*) echo $k $v;; esac; done
/nosys; unshare -m true; echo unshare $?; mkdir /tmp/x; echo mkdir $?; ls /proc/self/fd | wc -l`
	var outs []string
	program := runnertest.Program(t, "testdata/nosys")
	for _, id := range []string{"cold", "cached"} {
		spec := h.spec(t, id, "sh", "-c", script)
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/nosys", Type: "bind", Source: program, Options: []string{"bind", "ro"}})
		_, out := h.run(t, runner.CreateRequest{ID: id, Spec: spec})
		outs = append(outs, out)
		if files, err := os.ReadDir(cache); err != nil || len(files) != 2 {
			t.Fatalf("after %s: files %v, error %v; want a profile and its program", id, files, err)
		}
	}
	if outs[0] != outs[1] {
		t.Errorf("the kept program behaves differently:\n%s\n---\n%s", outs[0], outs[1])
	}
	for _, want := range []string{"Seccomp: 2", "call 1000: function not implemented", "call 165: operation not permitted", "unshare 1", "mkdir 0", "\n4\n"} {
		if !strings.Contains(outs[1], want) {
			t.Errorf("no %q in:\n%s", want, outs[1])
		}
	}
	// Another profile is another program, cached under its own name.
	for _, id := range []string{"denied", "denied-again"} {
		s := h.spec(t, id, "sh", "-c", "mkdir /tmp/x; echo mkdir $?; touch /tmp/y; echo touch $?")
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}
		_, out := h.run(t, runner.CreateRequest{ID: id, Spec: s})
		if !strings.Contains(out, "mkdir 1") || !strings.Contains(out, "touch 0") {
			t.Errorf("%s: %q", id, out)
		}
		if files, _ := os.ReadDir(cache); len(files) != 4 {
			t.Errorf("%s: %d files, want those of 2 profiles", id, len(files))
		}
	}
}

// TestSeccompProfiles: a profile that does not compile says why, also one that
// libseccomp never comes to an end with, and the runner goes on.
func TestSeccompProfiles(t *testing.T) {
	h := newHarness(t, runner.SetupRequest{})
	rule := func(action specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"read"}, Action: action, Args: args}
	}
	arg := func(index uint, op specs.LinuxSeccompOperator, value, mask uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Op: op, Value: value, ValueTwo: mask}
	}
	for _, profile := range []struct {
		says    string
		endless bool // for libseccomp 2.5
		specs.LinuxSeccomp
	}{
		{"takes more than 5 s", true, specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			rule(specs.ActAllow, arg(1, specs.OpGreaterEqual, 0, 1), arg(0, specs.OpNotEqual, 1, 1)),
			rule(specs.ActKillProcess, arg(0, specs.OpLessThan, 2, 0)),
			rule(specs.ActKillProcess, arg(2, specs.OpEqualTo, 0, 1), arg(2, specs.OpNotEqual, 1, 0), arg(0, specs.OpLessThan, 1, 1)),
			rule(specs.ActAllow, arg(2, specs.OpLessEqual, 1, 1), arg(0, specs.OpNotEqual, 1, 0))}}},
		{"SCMP_ACT_NOTIFY", false, specs.LinuxSeccomp{DefaultAction: specs.ActNotify}},
	} {
		s := h.spec(t, "c", "true")
		s.Linux.Seccomp = &profile.LinuxSeccomp
		_, err := h.Create(t.Context(), runner.CreateRequest{ID: "c", Spec: s})
		if err == nil && profile.endless { // a newer libseccomp than 2.5
			t.Log("this libseccomp compiles it")
			err = h.Delete(t.Context(), "c", true)
			if err == nil {
				continue
			}
		}
		if err == nil || !strings.Contains(err.Error(), profile.says) || fault.KindOf(err) == fault.Internal {
			t.Errorf("%v, without %q", err, profile.says)
		}
	}
	if exit, out := h.run(t, runner.CreateRequest{ID: "next", Spec: h.spec(t, "next", "echo", "on")}); exit.Code != 0 || out != "on\n" {
		t.Errorf("%+v, %q", exit, out)
	}
}
