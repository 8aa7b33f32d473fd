package launch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/fault"
)

func TestParseMount(t *testing.T) {
	for _, tt := range []struct {
		kind, options string
		want          mount
	}{
		{"tmpfs", "nosuid,strictatime,mode=755,size=64m", mount{kind: "tmpfs", set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_STRICTATIME,
			clear: unix.MOUNT_ATTR__ATIME, propagation: unix.MS_PRIVATE, data: []string{"mode=755", "size=64m"}}},
		{"", "rbind,rslave", mount{kind: "bind", recursive: true, propagation: unix.MS_SLAVE, plain: true}},
		{"bind", "bind,shared,ro", mount{kind: "bind", propagation: unix.MS_SHARED, set: unix.MOUNT_ATTR_RDONLY}},
		{"bind", "rbind,ro,rw", mount{kind: "bind", recursive: true, propagation: unix.MS_PRIVATE, clear: unix.MOUNT_ATTR_RDONLY}},
		{"bind", "rbind,rro,idmap", mount{kind: "bind", recursive: true, idmap: true, plain: true, propagation: unix.MS_PRIVATE,
			all: unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}}},
		{"bind", "noatime,relatime", mount{kind: "bind", propagation: unix.MS_PRIVATE, clear: unix.MOUNT_ATTR__ATIME}},
	} {
		got, err := parseMount(specs.Mount{Destination: "/a/../b/", Type: tt.kind, Options: strings.Split(tt.options, ",")})
		tt.want.destination = "/b"
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s %s: %+v, %v; want %+v", tt.kind, tt.options, got, err, tt.want)
		}
	}
	for _, bad := range []specs.Mount{
		{Destination: "/../", Type: "tmpfs"},
		{Destination: "/a", Type: "bind", Options: []string{"size=1"}},
		{Destination: "/a", Type: "bind", UIDMappings: []specs.LinuxIDMapping{{}}},
	} {
		if _, err := parseMount(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// TestPlace looks places up in a root that was made to lead elsewhere.
func TestPlace(t *testing.T) {
	base := t.TempDir()
	outside, inside := filepath.Join(base, "outside"), filepath.Join(base, "root")
	for _, dir := range []string{outside, filepath.Join(inside, "dir"), filepath.Join(inside, "run")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"absolute": outside, "up": "../../../../../../.." + outside, "var": "/run", "magic": "/proc/self/cwd",
		"dangling": "/nothing/there", "loop": "loop", "file": "/dir/../file",
	} {
		if err := os.Symlink(target, filepath.Join(inside, name)); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(inside, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r := root{fd: fd}
	for name, want := range map[string]string{
		"/dir/new/deep": "/dir/new/deep", "/var/lock": "/run/lock", "/../../x": "/x",
		"/absolute/a": "", "/up/a": "", "/dangling": "", "/loop/a": "", "/file/a": "", "/magic/a": "",
	} {
		got, err := r.place(name, true)
		if want == "" {
			if err == nil {
				at, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(got))
				if !strings.HasPrefix(at, inside+"/") {
					t.Errorf("%s leads to %s", name, at)
				}
				unix.Close(got)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if at, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(got)); at != inside+want {
			t.Errorf("%s is %s, want %s", name, at, inside+want)
		}
		unix.Close(got)
	}
	if got, err := r.place("/etc/hosts", false); err != nil {
		t.Error(err)
	} else {
		unix.Close(got)
	}
	if info, err := os.Stat(filepath.Join(inside, "etc/hosts")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("a file as a place: %v, %v", info, err)
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
		t.Errorf("outside of the root: %v, %v", list, err)
	}
}

func TestEnvironment(t *testing.T) {
	got, err := environment([]string{"A=1", "HOME=", "B=x=y", "A=2"})
	if err != nil || !slices.Equal(got, []string{"B=x=y", "A=2", "HOME=/"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "A", "=x", "A=\x00"} {
		if _, err := environment([]string{bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"good/run": 0o755, "denied/run": 0o644, "denied/only": 0o644, "good/sub/run": 0o755} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"PATH=" + dir + "/none:" + dir + "/denied:" + dir + "/good"}
	for name, want := range map[string]string{"run": "/good/run", "./run": "/good/run", dir + "/good/sub/run": "/good/sub/run", "sub/run": "/good/sub/run"} {
		if got, err := find(name, filepath.Join(dir, "good"), env); err != nil || got != dir+want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for name, want := range map[string]error{"only": fs.ErrPermission, "nothing": nil, dir + "/good": unix.EISDIR, dir + "/x": fs.ErrNotExist} {
		_, err := find(name, "/", env)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if _, err := find("nothing", "/", env); !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Error(err)
	}
}

// TestOwners: a user namespace's file systems belong to its root.
func TestOwners(t *testing.T) {
	one := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 10}}
	users := &runner.Users{UIDs: one, GIDs: one}
	m := mount{kind: "tmpfs", data: []string{"uid=3", "mode=700"}}
	m.ownedBy(users)
	if !slices.Equal(m.data, []string{"uid=1003", "mode=700", "gid=1000"}) {
		t.Error(m.data)
	}
	m = mount{kind: "devpts", data: []string{"gid=5"}}
	m.ownedBy(users)
	if !slices.Equal(m.data, []string{"gid=1005"}) {
		t.Error(m.data)
	}
}

// TestCheck: what would change the machine is refused, however it is written.
func TestCheck(t *testing.T) {
	all := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}
	machines := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"},
		{Type: specs.IPCNamespace, Path: "/proc/self/ns/ipc"}, {Type: specs.UTSNamespace, Path: "/proc/self/ns/uts"}}
	check := func(spaces []specs.LinuxNamespace, change func(*specs.Spec)) error {
		s := &specs.Spec{Root: &specs.Root{}, Process: &specs.Process{Args: []string{"x"}}, Linux: &specs.Linux{Namespaces: spaces, Sysctl: map[string]string{}}}
		change(s)
		c := &Container{opt: Options{Spec: s}, spaces: map[specs.LinuxNamespaceType]string{}}
		return c.check()
	}
	for _, name := range []string{"net.ipv4.ip_forward", "net/ipv4/ip_forward", "net.ipv4.conf.eth0/1.forwarding", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname"} {
		set := func(s *specs.Spec) { s.Linux.Sysctl[name] = "1" }
		if err := check(all, set); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, spaces := range map[string][]specs.LinuxNamespace{"none": all[:1], "the machine's": machines} {
			if err := check(spaces, set); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s with %s namespaces: %v", name, what, err)
			}
		}
	}
	for _, name := range []string{"", "kernel.core_pattern", "kernel/core_pattern", "vm.swappiness", "net/../kernel/core_pattern", "net.//.kernel.core_pattern",
		"../../etc/passwd", "kernel.hostname", "user.max_user_namespaces", "net", "/net/ipv4/ip_forward"} {
		if err := check(all, func(s *specs.Spec) { s.Linux.Sysctl[name] = "1" }); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for what, change := range map[string]func(*specs.Spec){"host name": func(s *specs.Spec) { s.Hostname = "x" }, "domain name": func(s *specs.Spec) { s.Domainname = "x" }} {
		if err := check(all, change); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if check(all[:1], change) == nil || check(machines, change) == nil {
			t.Errorf("the machine's %s can be changed", what)
		}
	}
}

func TestCapBits(t *testing.T) {
	if got := capBits([]string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE", "CAP_NONE"}, 40); got != 1|1<<40 {
		t.Errorf("%x", got)
	}
	if got := capBits([]string{"CAP_CHECKPOINT_RESTORE"}, 37); got != 0 {
		t.Errorf("of an older kernel: %x", got)
	}
}

func emptyPlan(t *testing.T) *plan {
	t.Helper()
	p, err := newPlan()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// launchHere carries out a plan in a copy of this process.
func launchHere(t *testing.T, p *plan, share bool) (*child, error) {
	t.Helper()
	pid, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pid.Close()
	var c *child
	if err := onThread(func() (last func(), err error) {
		c, last, err = p.start(forked{ownPID: pid, share: share})
		return last, err
	}); err != nil {
		t.Fatal(err)
	}
	err = c.await()
	if err != nil {
		c.kill()
	}
	return c, err
}

// TestPlan: results are arguments, errors are told with what they are of,
// conditions hold, and files that no op uses are closed.
func TestPlan(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := emptyPlan(t)
	var out, missing result
	p.call("open", unix.SYS_OPENAT, unix.AT_FDCWD, filepath.Join(dir, "out"), unix.O_CREAT|unix.O_WRONLY, 0o600, keep(&out))
	p.call("missing", unix.SYS_OPENAT, unix.AT_FDCWD, filepath.Join(dir, "missing"), 0, 0, keep(&missing), ignoring(unix.ENOENT))
	p.call("skipped", unix.SYS_WRITE, fromResult(missing), "no", 2, ifDone(missing))
	p.call("write", unix.SYS_WRITE, fromResult(out), "yes", 3, ifFailed(missing))
	p.call("closed", unix.SYS_FCNTL, int(f.Fd()), unix.F_GETFD, 0, ignoring(unix.EBADF), keep(&missing))
	p.call("write", unix.SYS_WRITE, fromResult(out), "!", 1, ifFailed(missing))
	p.call("look for it", unix.SYS_CHDIR, filepath.Join(dir, "nowhere"))
	if _, err := launchHere(t, p, false); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "look for it") {
		t.Errorf("error %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(got) != "yes!" {
		t.Errorf("written: %q, %v", got, err)
	}
}

// TestPlanWaits: a process that waits goes on when it is told to, and ends with
// the one that would tell it.
func TestPlanWaits(t *testing.T) {
	for _, told := range []bool{true, false} {
		p := emptyPlan(t)
		gate, err := p.gate()
		if err != nil {
			t.Fatal(err)
		}
		p.waitAt(gate)
		p.execute(program{path: "/bin/sh"}, []string{"sh", "-c", "exit 7"})
		c, err := launchHere(t, p, false)
		if err != nil {
			t.Fatal(err)
		}
		process := newProcess(c, nil)
		if told {
			if err := c.release(); err != nil {
				t.Error(err)
			}
		}
		c.close()
		if code, err := process.Wait(); err != nil || (code == 7) != told {
			t.Errorf("told %v: code %d, %v", told, code, err)
		}
		if err := process.Signal(unix.SIGKILL); err != nil {
			t.Errorf("a signal after its end: %v", err)
		}
	}
}

func TestPlanForks(t *testing.T) {
	p := emptyPlan(t)
	p.call("fork", opFork, unix.CLONE_PARENT)
	gate, err := p.gate()
	if err != nil {
		t.Fatal(err)
	}
	p.waitAt(gate)
	p.execute(program{path: "/bin/sh"}, []string{"sh", "-c", "kill -9 $$"})
	c, err := launchHere(t, p, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.release(); err != nil {
		t.Error(err)
	}
	c.close()
	if code, err := newProcess(c, nil).Wait(); err != nil || code != 128+9 {
		t.Errorf("code %d, %v", code, err)
	}
}
