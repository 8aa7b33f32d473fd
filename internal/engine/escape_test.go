package engine_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// The ways out of a container that have worked elsewhere, each as a test that it
// is closed. What a process may call and write is in isolation_test.go, what
// mounts can be led to in escape_mount_test.go, what images can hold in
// escape_image_test.go.

// secret puts a file on the host that no container may come to see.
func secret(t *testing.T, m *enginetest.Machine) (path, content string) {
	t.Helper()
	path, content = filepath.Join(m.Dir(), "secret"), "the host's secret"
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// exec runs a command in a container and returns all it says.
func execIn(t *testing.T, m *enginetest.Machine, id string, spec engine.ExecSpec) (string, error) {
	t.Helper()
	var out bytes.Buffer
	_, err := m.Exec(t.Context(), id, spec, engine.Streams{Stdout: &out, Stderr: &out})
	return out.String(), err
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x %v %v", sha256.Sum256(data), st.ModTime(), st.Mode())
}

// TestEscapeSelfExe is CVE-2019-5736: a container has the runtime execute itself,
// or finds it among its processes while it enters, and writes to its program.
func TestEscapeSelfExe(t *testing.T) {
	m := enginetest.New(t)
	m.Image("self:latest", enginetest.File{Name: "bin/self", Data: []byte("#!/proc/self/exe\n"), Mode: 0o755})
	program := runnertest.Build(t)
	before := sumOf(t, program)
	// What it can write to it says; its own shell is one of them and does not count.
	_, c := m.Run(engine.ContainerSpec{Name: "self", Image: "self:latest", Security: engine.Security{AddCaps: []string{"ALL"}, Seccomp: engine.SeccompUnconfined},
		Command: []string{"sh", "-c", `while :; do for p in /proc/[0-9]*; do
case $(readlink $p/exe) in /bin/busybox|"") ;; *) (echo written > $p/exe) 2>/dev/null && echo wrote $p; esac; done; done`}})
	for range 20 {
		// It may not start, and must not do more than that.
		if out, err := execIn(t, m, c.ID, engine.ExecSpec{Args: []string{"/bin/self"}}); err == nil && strings.Contains(out, "container") {
			t.Errorf("the runtime ran in the container: %s", out)
		}
		if _, err := execIn(t, m, c.ID, engine.ExecSpec{Args: []string{"true"}}); err != nil {
			t.Fatal(err)
		}
	}
	if after := sumOf(t, program); after != before {
		t.Errorf("ferry-runner was %s and is %s", before, after)
	}
	if err := m.StopContainer(t.Context(), c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if out := logOf(t, m, c); out != "" {
		t.Errorf("it could write:\n%s", out)
	}
	pod, err := m.RunPod(t.Context(), engine.PodSpec{Owner: engine.OwnerDocker, Name: "e", PID: engine.ModeContainer})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := m.CreateContainer(t.Context(), pod.ID, engine.ContainerSpec{Name: "e", Image: "self:latest", Command: []string{"/bin/self"}})
	if err != nil {
		t.Fatal(err)
	}
	_ = m.StartContainer(t.Context(), entry.ID) // as above
	if after := sumOf(t, program); after != before {
		t.Errorf("ferry-runner was %s and is %s", before, after)
	}
}

// TestEscapeDescriptors is the ground of CVE-2024-21626: what of the runtime is
// still open when a program starts is open to that program.
func TestEscapeDescriptors(t *testing.T) {
	m := enginetest.New(t)
	list := []string{"sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done | sort -u; ls /proc/self/fd | wc -l"}
	for _, tty := range []bool{false, true} {
		_, c := m.Run(engine.ContainerSpec{Name: "d", TTY: tty, Stdin: true, Command: append(list[:2:2], list[2]+"; sleep 1000")})
		out, err := execIn(t, m, c.ID, engine.ExecSpec{Args: list, TTY: tty})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.StopContainer(t.Context(), c.ID, 0); err != nil {
			t.Fatal(err)
		}
		for what, got := range map[string]string{"main": logOf(t, m, c), "exec": out} {
			for line := range strings.Lines(got) {
				line = strings.TrimSpace(line)
				own := strings.HasPrefix(line, "pipe:") || strings.HasPrefix(line, "/dev/") || strings.HasPrefix(line, "/proc/")
				if !own && line != "4" && line != "3" { // 0, 1, 2 and the listed directory
					t.Errorf("%s, terminal %v: has open %q of\n%s", what, tty, line, got)
				}
			}
		}
	}
}

// TestEscapeProgram is the other half of CVE-2024-21626: a program by way of one
// of the runtime's descriptors, such as its /proc.
func TestEscapeProgram(t *testing.T) {
	m := enginetest.New(t)
	host := filepath.Join(m.Dir(), "busybox")
	data, err := os.ReadFile(runnertest.Busybox)
	if err == nil {
		err = os.WriteFile(host, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	may := engine.Security{AddCaps: []string{"SYS_PTRACE"}} // what others' roots ask for
	_, c := m.Run(engine.ContainerSpec{Name: "p", Command: []string{"sleep", "1000"}, Security: may})
	for n := 3; n <= 40; n++ {
		for _, path := range []string{fmt.Sprintf("/proc/self/fd/%%d/%d/root", os.Getpid()) + host, "/proc/thread-self/fd/%d/self/root" + host, "/proc/self/fd/%d" + host} {
			args := []string{fmt.Sprintf(path, n), "echo", "escaped"}
			if out, err := execIn(t, m, c.ID, engine.ExecSpec{Args: args}); err == nil || strings.Contains(out, "escaped") {
				t.Errorf("exec of %s: %q, %v", args[0], out, err)
			}
			if n > 20 {
				continue // each is a container of its own
			}
			if out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: args, Security: may}); err == nil || strings.Contains(out, "escaped") {
				t.Errorf("%s: %q, %v", args[0], out, err)
			}
		}
	}
}

// TestEscapeWorkingDir is CVE-2024-21626: a working directory that is one of the
// runtime's descriptors.
func TestEscapeWorkingDir(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	path, content := secret(t, m)
	look := []string{"sh", "-c", "for up in . .. ../.. ../../.. ../../../../../../../..; do cat $up" + path + " 2>/dev/null; done; true"}
	_, c := m.Run(engine.ContainerSpec{Name: "w", Command: []string{"sleep", "1000"}})
	pod, err := m.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: "w", PID: engine.ModeContainer, LogDir: m.Dir(), Network: engine.ModeNone})
	if err != nil {
		t.Fatal(err)
	}
	for n := 3; n <= 50; n++ {
		for _, dir := range []string{"/proc/self/fd/%d", "/proc/self/fd/%d/../../..", "/proc/thread-self/fd/%d"} {
			dir = fmt.Sprintf(dir, n)
			if out, _ := execIn(t, m, c.ID, engine.ExecSpec{Args: look, WorkingDir: dir}); strings.Contains(out, content) {
				t.Errorf("exec in %s sees the host", dir)
			}
			if n%5 != 0 && n > 12 {
				continue // each is a container of its own
			}
			spec := engine.ContainerSpec{Name: "w", Image: enginetest.Busybox, Command: look, WorkingDir: dir, LogPath: "w.log"}
			w, err := m.CreateContainer(ctx, pod.ID, spec)
			if err != nil {
				t.Fatal(err)
			}
			if m.StartContainer(ctx, w.ID) == nil {
				if _, err := m.Wait(ctx, w.ID); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.RemoveContainer(ctx, w.ID, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	log, err := os.ReadFile(filepath.Join(m.Dir(), "w.log"))
	if err != nil || bytes.Contains(log, []byte(content)) {
		t.Errorf("started in a descriptor, a container sees the host: %v", err)
	}
}

// TestEscapeSharedPID: process 1 of a pod's PID namespace is ours, and of no use
// to a container, whatever that may do.
func TestEscapeSharedPID(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.RunIn(engine.PodSpec{PID: engine.ModePod}, engine.ContainerSpec{Name: "p",
		Security: engine.Security{AddCaps: []string{"ALL"}, Seccomp: engine.SeccompUnconfined},
		Command: []string{"sh", "-c", `ls -a /proc/1/root/; ls -a /proc/1/cwd/; ls /proc/1/root/etc 2>/dev/null
grep -E '^(Uid|Gid|CapPrm|CapEff|CapAmb)' /proc/1/status; ls /proc/1/task | wc -l | grep -c .
for ns in net ipc uts mnt user; do readlink /proc/1/ns/$ns; done
(echo x > /proc/1/exe) 2>/dev/null && echo wrote; kill -9 1; kill -TERM 1; test -d /proc/1 && echo alive`}})
	out := logOf(t, m, c)
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "CapPrm:\t0000000000000000\n",
		"CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "alive\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	// AppArmor's profile does not even let it look.
	denied := strings.HasPrefix(out, "ls: /proc/1/root/: Permission denied\nls: /proc/1/cwd/: Permission denied\nUid")
	if !denied && !strings.HasPrefix(out, ".\n..\n.\n..\nUid") || strings.Contains(out, "wrote") {
		t.Errorf("its root is not empty, or its program can be written:\n%s", out)
	}
	for _, kind := range []string{"net", "ipc", "uts", "mnt"} {
		if own, err := os.Readlink("/proc/self/ns/" + kind); err != nil || strings.Contains(out, own) {
			t.Errorf("it is in the host's %s namespace, %v", kind, err)
		}
	}
}

// TestEscapeHostPID: a container that sees the host's processes cannot look into
// them or trace them.
func TestEscapeHostPID(t *testing.T) {
	m := enginetest.New(t)
	path, content := secret(t, m)
	_, c := m.RunIn(engine.PodSpec{PID: engine.ModeHost}, engine.ContainerSpec{Name: "h", Command: []string{"sh", "-c", fmt.Sprintf(
		`exec 2>/dev/null; p=%d; test -d /proc/$p && echo seen; cat /proc/$p/root%s /proc/$p/cwd/../../../../../..%s; ls /proc/$p/fd; tr '\0' '\n' < /proc/$p/environ
cat /proc/$p/mem | head -c 1 | wc -c; readlink /proc/$p/exe`, os.Getpid(), path, path)}})
	out := logOf(t, m, c)
	if !strings.HasPrefix(out, "seen\n") {
		t.Fatalf("it does not see the host's processes:\n%s", out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{content, "PATH=", exe} {
		if strings.Contains(out, bad) {
			t.Errorf("it sees %q of a process of the host:\n%s", bad, out)
		}
	}
}

// TestEscapeReleaseAgent: cgroup version 1 runs a program on the host that a
// file names.
func TestEscapeReleaseAgent(t *testing.T) {
	m := enginetest.New(t)
	_, c := m.Run(engine.ContainerSpec{Name: "r", Command: []string{"sh", "-c", `
for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do test -e $f && (echo /x > $f) 2>/dev/null && echo wrote $f; done
for f in /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/cgroup.procs; do test -e $f && (echo 1 > $f) 2>/dev/null && echo wrote $f; done
mkdir /cg; mount -t cgroup -o rdma cgroup /cg 2>/dev/null && echo mounted; mount -t cgroup2 cgroup /cg 2>/dev/null && echo mounted
unshare -Urm true 2>/dev/null && echo unshared; unshare -m true 2>/dev/null && echo unshared; echo done`}})
	if out := logOf(t, m, c); out != "done\n" {
		t.Errorf("output:\n%s", out)
	}
}

// TestEscapeLog: what a container prints stays below the name and time it was
// printed with.
func TestEscapeLog(t *testing.T) {
	m := enginetest.New(t)
	forged := "2026-01-01T00:00:00.000000000Z stderr F forged"
	_, c := m.Run(engine.ContainerSpec{Name: "l\nforged", Labels: map[string]string{"a\nb": "c\nd"}, LogPath: "l.log",
		Command: []string{"printf", `a\r%s\n%s\nend\0\n`, forged, forged}})
	if _, err := m.Wait(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if len(lines) != 3 {
		t.Errorf("%d entries of 3 lines:\n%q", len(lines), data)
	}
	for _, line := range lines {
		if fields := strings.SplitN(line, " ", 4); len(fields) != 4 || fields[1] != "stdout" || strings.HasPrefix(line, "2026-01-01T00:00:00.000000000Z") {
			t.Errorf("entry %q", line)
		}
	}
}

// wantUntouched fails unless nothing is mounted at or below a directory of the
// host, and it holds what it did.
func wantUntouched(t *testing.T, dir string, want ...string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(" "+dir)) {
		t.Errorf("something is mounted on the host:\n%s", mounts)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s holds %v, was %v", dir, got, want)
	}
}
