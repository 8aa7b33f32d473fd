package engine_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
)

var long = flag.Bool("long", false, "as often as it takes to find what is rare")

// tryRun runs a container that may be refused, and returns what it printed.
func tryRun(t *testing.T, m *enginetest.Machine, spec engine.ContainerSpec) (string, error) {
	t.Helper()
	ctx := t.Context()
	pod, err := m.RunPod(ctx, engine.PodSpec{Owner: engine.OwnerDocker, Name: "t", PID: engine.ModeContainer, LogDir: m.Dir(), Network: engine.ModeNone})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.RemovePod(ctx, pod.ID); err != nil {
			t.Error(err)
		}
	}()
	spec.Name, spec.LogPath = "t", pod.ID+".log"
	c, err := m.CreateContainer(ctx, pod.ID, spec)
	if err != nil {
		return "", err
	}
	if err := m.StartContainer(ctx, c.ID); err != nil {
		return "", err
	}
	return logOf(t, m, c), nil
}

// TestEscapeMountTargets: the image has a link where something is to be mounted;
// it leads somewhere inside the image, wherever it points.
func TestEscapeMountTargets(t *testing.T) {
	m := enginetest.New(t)
	host := filepath.Join(m.Dir(), "host")
	if err := os.MkdirAll(filepath.Join(host, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	m.Image("links:latest",
		enginetest.File{Name: "abs", Link: host}, enginetest.File{Name: "up", Link: up[:len(up)-1] + host},
		enginetest.File{Name: "chain", Link: "abs"}, enginetest.File{Name: "below", Link: host}, enginetest.File{Name: "proc-root", Link: "/proc/1/root" + host},
		enginetest.File{Name: "etc/hosts", Link: filepath.Join(host, "hosts")}, enginetest.File{Name: "etc/resolv.conf", Link: up + host[1:] + "/resolv.conf"},
		enginetest.File{Name: "etc/hostname", Link: "/proc/self/fd/1"})
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "given"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/abs", "/up", "/chain", "/below/sub", "/below/new/dir", "/proc-root", "/abs/../../" + host, "/" + up + host} {
		for _, mount := range []engine.Mount{
			{Kind: engine.MountBind, Source: source, Destination: target},
			{Kind: engine.MountTmpfs, Destination: target},
			{Kind: engine.MountImage, Source: enginetest.Busybox, Destination: target},
		} {
			out, err := tryRun(t, m, engine.ContainerSpec{Image: "links:latest", Command: []string{"sh", "-c", "echo ran; touch " + target + "/made"}, Mounts: []engine.Mount{mount}})
			if err == nil && !strings.HasPrefix(out, "ran\n") {
				t.Errorf("%s at %s: %s", mount.Kind, target, out)
			}
			wantUntouched(t, host, "sub")
		}
	}
}

// TestEscapeRoots: directories that every container has mounted are links in the image.
func TestEscapeRoots(t *testing.T) {
	m := enginetest.New(t)
	host := filepath.Join(m.Dir(), "host")
	if err := os.MkdirAll(filepath.Join(host, "kept"), 0o755); err != nil {
		t.Fatal(err)
	}
	const pattern = "/proc/sys/kernel/core_pattern"
	before := sumOf(t, pattern)
	for _, name := range []string{"proc", "sys", "dev", "etc", "dev/shm", "dev/pts", "dev/mqueue", "sys/fs/cgroup"} {
		image := strings.ReplaceAll(name, "/", "-") + ":latest"
		m.Image(image, enginetest.File{Name: name, Link: host})
		out, err := tryRun(t, m, engine.ContainerSpec{Image: image, TTY: true, Command: []string{"sh", "-c", "echo ran"}})
		if err == nil && !strings.Contains(out, "ran") {
			t.Errorf("/%s is a link: %s", name, out)
		}
		wantUntouched(t, host, "kept")
	}
	// Where something of the container's own is mounted over them.
	for _, target := range []string{"/proc", "/proc/self", "/proc/sys", "/proc/self/attr", "/proc/sys/kernel", "/proc/thread-self/attr/exec"} {
		for _, mount := range []engine.Mount{{Kind: engine.MountBind, Source: host, Destination: target}, {Kind: engine.MountTmpfs, Destination: target}} {
			if out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: []string{"sh", "-c", "echo ran"}, Mounts: []engine.Mount{mount}}); err == nil {
				t.Errorf("%s over %s: %s", mount.Kind, target, out)
			}
			wantUntouched(t, host, "kept")
		}
	}
	if after := sumOf(t, pattern); after != before {
		t.Errorf("core_pattern was %s and is %s", before, after)
	}
}

// TestEscapeDevices is CVE-2025-31133 and CVE-2025-52565: /dev/null, which masks
// files, and /dev/console are other things than they should be.
func TestEscapeDevices(t *testing.T) {
	m := enginetest.New(t)
	const pattern = "/proc/sys/kernel/core_pattern"
	before := sumOf(t, pattern)
	evil := t.TempDir() // a /dev that the container's owner, or another container, has made
	for name, to := range map[string]string{"null": pattern, "console": pattern, "zero": "/proc/sysrq-trigger", "ptmx": "/proc/kcore", "fd": "/proc/sys", "stdout": pattern} {
		if err := os.Symlink(to, filepath.Join(evil, name)); err != nil {
			t.Fatal(err)
		}
	}
	m.Image("devices:latest", enginetest.File{Name: "dev/null", Link: pattern}, enginetest.File{Name: "dev/console", Link: pattern},
		enginetest.File{Name: "dev/pts/0", Link: pattern}, enginetest.File{Name: "dev/ptmx", Link: pattern}, enginetest.File{Name: "dev/fd", Link: "/proc/sys"})
	look := []string{"sh", "-c", `echo x > /dev/null; (echo '|/x' > /proc/sys/kernel/core_pattern) 2>/dev/null; (echo '|/x' > /proc/acpi) 2>/dev/null
stat -c %F /dev/null; head -c 1 /proc/timer_list | wc -c; head -c 1 /proc/keys | wc -c; tty`}
	for _, tty := range []bool{false, true} {
		out, err := tryRun(t, m, engine.ContainerSpec{Image: "devices:latest", TTY: tty, Command: look})
		if err != nil || !strings.Contains(strings.ReplaceAll(out, "\r", ""), "character special file\n0\n0\n") {
			t.Errorf("terminal %v: %v\n%s", tty, err, out)
		}
		out, err = tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, TTY: tty, Command: look,
			Mounts: []engine.Mount{{Kind: engine.MountBind, Source: evil, Destination: "/dev"}}})
		if err == nil && strings.Contains(strings.ReplaceAll(out, "\r", ""), "\n1\n") {
			t.Errorf("terminal %v, bound /dev: a masked file can be read:\n%s", tty, out)
		}
	}
	if after := sumOf(t, pattern); after != before {
		t.Errorf("core_pattern was %s and is %s", before, after)
	}
}

// TestEscapeMountRace is CVE-2021-30465: while one container is started with a
// mount inside a volume, another that shares the volume swaps a directory of it
// for a link, over and over.
func TestEscapeMountRace(t *testing.T) {
	m := enginetest.New(t)
	path, content := secret(t, m)
	volume, source := t.TempDir(), t.TempDir()
	for _, dir := range []string{"swap/a/b", "other/a/b"} {
		if err := os.MkdirAll(filepath.Join(volume, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(volume, "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		dir := filepath.Join(volume, "swap")
		for {
			select {
			case <-stop:
				return
			default:
				if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	defer func() { close(stop); swapping.Wait() }()
	tries := 25
	if *long {
		tries = 1000
	}
	started := 0
	for range tries {
		out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox,
			Command: []string{"sh", "-c", "cat " + path + " /v" + path + " /v/swap/a/b" + path + " /v/swap/a" + path + " 2>/dev/null; cat /proc/self/mountinfo"},
			Mounts: []engine.Mount{
				{Kind: engine.MountBind, Source: volume, Destination: "/v"},
				{Kind: engine.MountBind, Source: source, Destination: "/v/swap/a/b"},
				{Kind: engine.MountTmpfs, Destination: "/v/swap/a"}}})
		if err != nil {
			continue // refused, as it may be
		}
		started++
		if strings.Contains(out, content) {
			t.Fatalf("it sees the host:\n%s", out)
		}
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); len(fields) > 5 && fields[3] == "/" && strings.Contains(line, fmt.Sprintf(" %s ", m.Dir())) {
				t.Fatalf("a mount of the host's is in the container:\n%s", out)
			}
		}
		wantUntouched(t, source)
	}
	if started == 0 {
		t.Errorf("none of %d containers started", tries)
	}
}

// TestEscapeMountSources: a source that is a link on the host is the place it
// leads to, which is what its owner asked for; the container cannot change that.
func TestEscapeMountSources(t *testing.T) {
	m := enginetest.New(t)
	path, content := secret(t, m)
	volume := t.TempDir()
	// A container puts a link into its volume; on its next start it is mounted in a part of that.
	if err := os.Symlink(filepath.Dir(path), filepath.Join(volume, "link")); err != nil {
		t.Fatal(err)
	}
	out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: []string{"sh", "-c", "cat /v/link/secret"},
		Mounts: []engine.Mount{{Kind: engine.MountBind, Source: volume, Destination: "/v"}}})
	if err != nil || strings.Contains(out, content) {
		t.Errorf("a link in a volume leads out: %v, %s", err, out)
	}
	// Parts of image volumes are looked for inside the image.
	m.Image("sub:latest", enginetest.File{Name: "link", Link: filepath.Dir(path)}, enginetest.File{Name: "up", Link: strings.Repeat("../", 30) + filepath.Dir(path)[1:]})
	for _, sub := range []string{"link", "up", "../../../../../../../.." + filepath.Dir(path), "/" + filepath.Dir(path)} {
		out, err := tryRun(t, m, engine.ContainerSpec{Image: enginetest.Busybox, Command: []string{"sh", "-c", "cat /i/secret; ls /i"},
			Mounts: []engine.Mount{{Kind: engine.MountImage, Source: "sub:latest", Destination: "/i", SubPath: sub}}})
		if strings.Contains(out, content) || strings.Contains(out, "secret\n") {
			t.Errorf("part %q of an image leads out: %v, %s", sub, err, out)
		}
	}
}
