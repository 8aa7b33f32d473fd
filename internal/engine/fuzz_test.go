package engine

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// FuzzResolveUser: an image's lists of users, and the user it names.
func FuzzResolveUser(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "extra:x:1001:user\n", "user:extra")
	f.Add("a:x:-1:4294967296::/:\n", "g:x:99999999999:a\n", "a")
	f.Add(":::::\n\x00:x\n#\n", "::::\n", ":")
	f.Add("", "", "4294967295:2147483648")
	root := f.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		for name, text := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		u, err := resolveUser(root, spec, []uint32{7}, false)
		if err != nil {
			return
		}
		if spec == "" && u.uid != 0 {
			t.Errorf("nobody asked for is %d", u.uid)
		}
		if u.home == "" || len(u.groups) == 0 || u.groups[0] != u.gid {
			t.Errorf("%+v", u)
		}
		const most = 1<<31 - 1 // what the kernel's tools take an id for
		for _, id := range append(u.groups, u.uid) {
			if id > most {
				t.Errorf("id %d of %q, %q, %q", id, passwd, group, spec)
			}
		}
	})
}

// FuzzBuildSpec: what an image's configuration and a request say of a process.
func FuzzBuildSpec(f *testing.F) {
	f.Add("PATH=/bin", "K=V", "/", "work", "NET_ADMIN", "/dev/null", "/a/../b")
	f.Add("=", "", "../..", "/proc/self/fd/7", "cap_all", "", "/proc/../proc")
	f.Add("HOME", "HOME=\x00", "//", ".", "ALL", "/dev/nope", "relative")
	f.Fuzz(func(t *testing.T, imageEnv, env, imageDir, dir, capability, device, target string) {
		in := specInput{
			container: ContainerSpec{Env: []string{env}, WorkingDir: dir,
				Devices:  []Device{{HostPath: device, ContainerPath: target, Permissions: "rwm"}},
				Security: Security{AddCaps: []string{capability}, DropCaps: []string{env}}},
			image: imageConfig{Env: []string{imageEnv}, WorkingDir: imageDir}, argv: []string{"sh"}, rootfs: "/rootfs", shm: "/shm",
			heldCaps: runner.Capabilities,
		}
		s, err := buildSpec(in)
		if err != nil {
			return
		}
		if cwd := s.Process.Cwd; !path.IsAbs(cwd) || path.Clean(cwd) != cwd {
			t.Errorf("working directory %q", cwd)
		}
		home := 0
		for _, kv := range s.Process.Env {
			if strings.HasPrefix(kv, "HOME=") {
				home++
			}
		}
		if home != 1 {
			t.Errorf("%d homes in %q", home, s.Process.Env)
		}
		if s.Linux.Seccomp == nil || len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 {
			t.Error("a default is gone")
		}
		if s.Linux.Resources.Devices[0].Allow {
			t.Error("devices are allowed")
		}
	})
}
