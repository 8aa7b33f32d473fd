package engine_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestEscapeUserFiles: the lists of users that an image brings are anything but
// lists of users. They are looked for inside the image, and nothing waits or
// grows for them.
func TestEscapeUserFiles(t *testing.T) {
	m := enginetest.New(t)
	hostUsers := filepath.Join(m.Dir(), "passwd")
	if err := os.WriteFile(hostUsers, []byte("hostonly:x:4242:4242::/:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	for name, file := range map[string]enginetest.File{
		"absolute": {Link: hostUsers},
		"up":       {Link: up + hostUsers[1:]},
		"proc":     {Link: "/proc/1/root" + hostUsers},
		"itself":   {Link: "passwd"},
		"pipe":     {Type: tar.TypeFifo},
		"device":   {Type: tar.TypeChar, Device: [2]int64{1, 5}}, // /dev/zero
		"huge":     {Data: bytes.Repeat([]byte("u:x:1:1::/:\n"), 2<<20)},
		"one line": {Data: bytes.Repeat([]byte{'x'}, 8<<20)},
		"binary":   {Data: []byte{0, 0xff, ':', ':', '\n', ':', 0x80}},
		"numbers":  {Data: []byte("hostonly:x:-1:99999999999999999999::/:\nroot:x:0:0:::\n")},
	} {
		t.Run(name, func(t *testing.T) {
			group := file
			file.Name, group.Name = "etc/passwd", "etc/group"
			image := strings.ReplaceAll(name, " ", "-") + ":latest"
			m.Image(image, file, group)
			spec := engine.ContainerSpec{Image: image, Command: []string{"stat", "-L", "-c", "%u", "/proc/self"}}
			for _, user := range []string{"hostonly", "0:hostonly"} {
				spec.Security.User = user
				if out, err := tryRun(t, m, spec); err == nil {
					t.Errorf("user %s is the host's: %s", user, out)
				}
			}
			spec.Security.User = "1:1"
			out, err := tryRun(t, m, spec)
			if tooMuch := name == "huge" || name == "one line"; tooMuch != (err != nil) || err == nil && out != "1\n" {
				t.Errorf("by number: %v, %q", err, out)
			}
		})
	}
}

// TestEscapeLayerFiles: what is setuid or a device in a layer is of no use on
// the host, to whose users the way there is closed, nor in a container.
func TestEscapeLayerFiles(t *testing.T) {
	m := enginetest.New(t)
	busybox, err := os.ReadFile(runnertest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	m.Image("layers:latest", enginetest.File{Name: "root-shell", Data: busybox, Mode: 0o4755},
		enginetest.File{Name: "kmsg", Type: tar.TypeChar, Device: [2]int64{1, 11}, Mode: 0o666},
		enginetest.File{Name: "disk", Type: tar.TypeBlock, Device: [2]int64{254, 0}, Mode: 0o666},
		enginetest.File{Name: "fuse", Type: tar.TypeChar, Device: [2]int64{10, 229}, Mode: 0o666})
	for kind, pod := range map[string]engine.PodSpec{"default": {PID: engine.ModeContainer}, "userns": ownUsers} {
		_, c := m.RunIn(pod, engine.ContainerSpec{Name: "l", Image: "layers:latest", Command: []string{"sh", "-c",
			`for d in kmsg disk fuse; do head -c 1 /$d >/dev/null 2>&1 && echo opened $d; done; echo looked`}})
		out := logOf(t, m, c) // its root stays mounted
		found, err := filepath.Glob(filepath.Join(m.Dir(), "store/snapshots/snapshots/*/fs/root-shell"))
		if err != nil || len(found) == 0 {
			t.Fatalf("the layer is not where it was: %v", err)
		}
		found = append(found, filepath.Join(m.Dir(), "run", "c", c.ID[:12], "rootfs", "root-shell"))
		for _, path := range found {
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(path, "id")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			if out, err := cmd.CombinedOutput(); !os.IsPermission(err) {
				t.Errorf("%s: a user of the machine runs %s: %v, %s", kind, path, err, out)
			}
		}
		if out != "looked\n" {
			t.Errorf("%s: devices of the layer: %s", kind, out)
		}
	}
}

// TestEscapeSettings: strings of an image's configuration and of a request that
// are something else somewhere.
func TestEscapeSettings(t *testing.T) {
	m := enginetest.New(t)
	path, content := secret(t, m)
	for name, spec := range map[string]engine.ContainerSpec{
		"preload":   {Env: []string{"LD_PRELOAD=/x.so", "LD_LIBRARY_PATH=/", "GODEBUG=inittrace=1", "_LIBCONTAINER_INITPIPE=0", "_LIBCONTAINER_FIFOFD=1"}},
		"program":   {Command: []string{"../../../../../../../.." + path}},
		"directory": {WorkingDir: "../../../../../../../../.." + filepath.Dir(path)},
		"home":      {Env: []string{"HOME=" + filepath.Dir(path), "PATH=" + filepath.Dir(path)}},
		"sysctl":    {Annotations: map[string]string{"run.oci.handler": "x", "org.systemd.property.Foo": "'x'", "io.kubernetes.cri-o.Devices": "/dev/kmsg"}},
	} {
		spec.Image = enginetest.Busybox
		if spec.Command == nil {
			spec.Command = []string{"/bin/sh", "-c", "echo ran; /bin/cat secret 2>/dev/null; /bin/ls /dev/kmsg 2>/dev/null"}
		}
		out, err := tryRun(t, m, spec)
		if strings.Contains(out, content) || strings.Contains(out, "kmsg") {
			t.Errorf("%s: it sees the host: %s", name, out)
		}
		if name == "preload" && (err != nil || !strings.HasPrefix(out, "ran\n")) {
			t.Errorf("%s: variables meant for its own programs did something to the runtime's: %v, %s", name, err, fmt.Sprintf("%.300s", out))
		}
	}
}
