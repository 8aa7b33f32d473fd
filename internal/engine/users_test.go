package engine_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/fault"
)

// ownUsers is a pod with a user namespace.
var ownUsers = engine.PodSpec{AutoUsers: true, PID: engine.ModeContainer}

// TestUserNamespace: root inside is nobody outside, and all that works for root
// works for it.
func TestUserNamespace(t *testing.T) {
	m := enginetest.New(t)
	ctx := t.Context()
	shared := filepath.Join(m.Dir(), "shared")
	if err := os.MkdirAll(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "root's"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pod, c := m.RunIn(ownUsers, engine.ContainerSpec{Name: "u", Command: []string{"sh", "-c", `
exec 2>&1; cat /proc/self/uid_map; id -u; hostname; echo out > /dev/stdout; echo err > /dev/stderr
echo x >> /etc/passwd; rm -r /tmp; mkdir /tmp; touch /tmp/mine; chown user:extra /tmp/mine
touch /made /dev/shm/made /mapped/made && echo made
stat -c %u:%g /bin/busybox /etc/hosts /etc/resolv.conf /dev/shm /mapped /unmapped
cat /mapped/root* && echo mapped read; cat /unmapped/root* 2>/dev/null || echo unmapped refused
cat /image/bin/busybox > /dev/null && echo image read
ls /sys/class/net; mknod /null c 1 3 2>/dev/null || echo no mknod
echo x > /dev/null; head -c 1 /dev/zero | wc -c; ls /dev/pts/ptmx; wc -l < /proc/net/dev
while true; do sleep 0.1; done`},
		Mounts: []engine.Mount{
			{Kind: engine.MountBind, Source: shared, Destination: "/mapped", IDMap: true},
			{Kind: engine.MountBind, Source: shared, Destination: "/unmapped"},
			{Kind: engine.MountImage, Source: enginetest.Busybox, Destination: "/image"}}})
	users := pod.Spec.Users
	if users == nil {
		t.Fatal("the pod has no user namespace")
	}
	first := users.UIDs[0].Host
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d", c.PID), &st); err != nil || st.Uid != first {
		t.Errorf("its process is user %d's of the host, %v; want %d", st.Uid, err, first)
	}
	var out bytes.Buffer
	if code, err := m.Exec(ctx, c.ID, engine.ExecSpec{Args: []string{"sh", "-c", "id -u; echo to > /dev/stdout"}}, engine.Streams{Stdout: &out}); err != nil || code != 0 || out.String() != "0\nto\n" {
		t.Errorf("exec: %d, %v, %q", code, err, out.String())
	}
	out.Reset()
	if code, err := m.Exec(ctx, c.ID, engine.ExecSpec{Args: []string{"sh", "-c", "id -u; tty; echo to > /dev/tty"}, User: "user", TTY: true},
		engine.Streams{Stdout: &out}); err != nil || code != 0 || out.String() != "1000\r\n/dev/pts/0\r\nto\r\n" {
		t.Errorf("exec with a terminal: %d, %v, %q", code, err, out.String())
	}
	if s, err := m.Stats(ctx, c.ID); err != nil || s.MemoryUsage == 0 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	eventually(t, "the script to come to its loop", func() bool {
		log, err := os.ReadFile(c.LogPath)
		return err == nil && strings.HasSuffix(string(log), " F 4\n")
	})
	if err := m.Pause(ctx, c.ID); err != nil {
		t.Error(err)
	}
	m.Stop() // a daemon that comes back finds it
	m.Start()
	if err := m.StopContainer(ctx, c.ID, 10*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	root := "0:0\n"
	want := fmt.Sprintf("%10d %10d %10d\n0\nbox\nout\nerr\nmade\n", 0, first, users.UIDs[0].Size) + strings.Repeat(root, 5) +
		"65534:65534\nmapped read\nunmapped refused\nimage read\neth0\nlo\nno mknod\n1\n/dev/pts/ptmx\n4\n"
	if got := logOf(t, m, c); got != want {
		t.Errorf("output:\n%swant:\n%s", got, want)
	}
	// On disk all is root's.
	if err := syscall.Stat(filepath.Join(shared, "made"), &st); err != nil || st.Uid != 0 {
		t.Errorf("a file made in a mapped volume is user %d's, %v", st.Uid, err)
	}
	made, err := filepath.Glob(filepath.Join(m.Dir(), "store/containers/*/fs/made"))
	if err != nil || len(made) != 1 {
		t.Fatalf("the file in the writable layer: %v, %v", made, err)
	}
	for name, want := range map[string][2]uint32{".": {}, "made": {}, "tmp": {}, "tmp/mine": {1000, 1001}, "etc": {}, "etc/passwd": {}} {
		path := filepath.Join(filepath.Dir(made[0]), name)
		if err := syscall.Stat(path, &st); err != nil || [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s is %d:%d's on disk, %v; want %v", name, st.Uid, st.Gid, err, want)
		}
	}
	if temps, err := filepath.Glob(filepath.Join(m.Dir(), "store/tmp/*")); err != nil || len(temps) != 0 {
		t.Errorf("left in the store: %v, %v", temps, err)
	}
}

// TestUserNamespaceShared: containers of a pod share the user namespace with the
// others, its process 1 among them, and can do nothing to that.
func TestUserNamespaceShared(t *testing.T) {
	m := enginetest.New(t)
	kind := ownUsers
	kind.PID, kind.Network = engine.ModePod, engine.ModeNone
	_, c := m.RunIn(kind, engine.ContainerSpec{Name: "s", Command: []string{"sh", "-c", `
cat /proc/1/uid_map /proc/self/uid_map | sort -u | wc -l; ls /proc/1/root/ 2>/dev/null; ls -d /proc/1/exe/x 2>/dev/null; kill -9 1 2>/dev/null; test -d /proc/1 && echo alive
ls /sys/class/net`}, Security: engine.Security{AddCaps: []string{"ALL"}, Seccomp: engine.SeccompUnconfined}})
	if got := logOf(t, m, c); got != "1\nalive\nlo\n" {
		t.Errorf("output:\n%s", got)
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	m := enginetest.New(t)
	good := []engine.IDMap{{Inside: 0, Host: 100000, Size: 65536}}
	for name, spec := range map[string]engine.PodSpec{
		"host network":  {Users: &engine.Users{UIDs: good, GIDs: good}, Network: engine.ModeHost},
		"host PID":      {AutoUsers: true, PID: engine.ModeHost},
		"host IPC":      {AutoUsers: true, IPC: engine.ModeHost},
		"two ranges":    {Users: &engine.Users{UIDs: append(good[:1:1], good...), GIDs: good}},
		"no group":      {Users: &engine.Users{UIDs: good}},
		"root's":        {Users: &engine.Users{UIDs: []engine.IDMap{{Size: 1}}, GIDs: good}},
		"begins at 1":   {Users: &engine.Users{UIDs: []engine.IDMap{{Inside: 1, Host: 5, Size: 1}}, GIDs: good}},
		"empty":         {Users: &engine.Users{UIDs: []engine.IDMap{{Host: 5}}, GIDs: good}},
		"ends too high": {Users: &engine.Users{UIDs: []engine.IDMap{{Host: 1<<32 - 10, Size: 20}}, GIDs: good}},
	} {
		spec.Owner, spec.Name = engine.OwnerDocker, "r"
		if _, err := m.RunPod(t.Context(), spec); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if pods := m.Pods(t.Context(), ""); len(pods) != 0 {
		t.Errorf("left: %+v", pods)
	}
}

// TestUserRanges: no two pods have the same ids, also after a restart.
func TestUserRanges(t *testing.T) {
	m := enginetest.New(t)
	kind := engine.PodSpec{Owner: engine.OwnerDocker, Name: "r", AutoUsers: true, Network: engine.ModeNone}
	seen := map[uint32]bool{}
	for i := range 4 {
		if i == 2 {
			m.Stop()
			m.Start()
		}
		make := m.RunPod
		if i%2 == 1 {
			make = m.CreatePod
		}
		pod, err := make(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		first := pod.Spec.Users.UIDs[0].Host
		if seen[first] {
			t.Errorf("range %d is given twice", first)
		}
		seen[first] = true
	}
}
