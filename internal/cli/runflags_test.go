package cli

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

func pointer[T any](v T) *T { return &v }

// parse gives the command line "run ARGS…" to the flags of run.
func parse(t *testing.T, args ...string) (client.ContainerCreateOptions, error) {
	t.Helper()
	var o createFlags
	cmd := &cobra.Command{}
	cmd.Flags().SetInterspersed(false)
	o.addFlags(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"HERE": "value", "EMPTY": ""}
	return o.request(cmd.Flags().Args(), cmd.Flags().Changed("entrypoint"), func(key string) (string, bool) { v, ok := env[key]; return v, ok })
}

// plain is the request of a command line without flags.
func plain(cmd ...string) client.ContainerCreateOptions {
	return client.ContainerCreateOptions{HostConfig: &container.HostConfig{},
		Config: &container.Config{Image: "app", Cmd: cmd, AttachStdout: true, AttachStderr: true}}
}

// TestRequest: the API's request for each flag of run.
func TestRequest(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{"env": "# comment\n\nA=1\n  B=2 \r\nHERE\nMISSING\n", "seccomp": `{"defaultAction":"SCMP_ACT_ALLOW"}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	web, dns := network.MustParsePort("80/tcp"), network.MustParsePort("53/udp")
	for _, tt := range []struct {
		args string
		set  func(c *container.Config, h *container.HostConfig, out *client.ContainerCreateOptions)
	}{
		{"", func(*container.Config, *container.HostConfig, *client.ContainerCreateOptions) {}},
		{"--name web --hostname box", func(c *container.Config, _ *container.HostConfig, out *client.ContainerCreateOptions) {
			out.Name, c.Hostname = "web", "box"
		}},
		{"-it", func(c *container.Config, _ *container.HostConfig, _ *client.ContainerCreateOptions) {
			c.OpenStdin, c.StdinOnce, c.AttachStdin, c.Tty = true, true, true, true
		}},
		{"--rm --read-only --privileged -P", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.AutoRemove, h.ReadonlyRootfs, h.Privileged, h.PublishAllPorts = true, true, true, true
		}},
		{"--env-file env -e C=3=4 -e HERE -e EMPTY -e MISSING -e D=", func(c *container.Config, _ *container.HostConfig, _ *client.ContainerCreateOptions) {
			c.Env = []string{"A=1", "B=2 ", "HERE=value", "C=3=4", "HERE=value", "EMPTY=", "D="}
		}},
		{"-w /data -u user:group --stop-signal HUP --stop-timeout 0", func(c *container.Config, _ *container.HostConfig, _ *client.ContainerCreateOptions) {
			c.WorkingDir, c.User, c.StopSignal, c.StopTimeout = "/data", "user:group", "HUP", pointer(0)
		}},
		{"--entrypoint sh", func(c *container.Config, _ *container.HostConfig, _ *client.ContainerCreateOptions) {
			c.Entrypoint = []string{"sh"}
		}},
		{"--entrypoint=", func(c *container.Config, _ *container.HostConfig, _ *client.ContainerCreateOptions) {
			c.Entrypoint = []string{""}
		}},
		{"-l a -l b=c=d", func(c *container.Config, _ *container.HostConfig, _ *client.ContainerCreateOptions) {
			c.Labels = map[string]string{"a": "", "b": "c=d"}
		}},
		{"-v /a:/b:ro -v ./x:/y -v .:/z -v named:/n", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.Binds = []string{"/a:/b:ro", dir + "/x:/y", dir + ":/z", "named:/n"}
		}},
		{"--mount type=bind,src=./x,dst=/y,readonly,bind-propagation=rslave --mount type=image,source=model:v1,target=/m,image-subpath=sub --mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700,ro=false",
			func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
				h.Mounts = []mount.Mount{{Type: "bind", Source: dir + "/x", Target: "/y", ReadOnly: true, BindOptions: &mount.BindOptions{Propagation: "rslave"}},
					{Type: "image", Source: "model:v1", Target: "/m", ImageOptions: &mount.ImageOptions{Subpath: "sub"}},
					{Type: "tmpfs", Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o700}}}
			}},
		{"--tmpfs /a --tmpfs /b:size=1m,exec", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.Tmpfs = map[string]string{"/a": "", "/b": "size=1m,exec"}
		}},
		{"--device /dev/fuse --device /dev/null:/dev/x:r", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.Devices = []container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm"}, {PathOnHost: "/dev/null", PathInContainer: "/dev/x", CgroupPermissions: "r"}}
		}},
		{"--network none --add-host db:10.0.0.1 --dns 9.9.9.9 --sysctl net.a=1=2", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.NetworkMode, h.ExtraHosts, h.DNS, h.Sysctls = "none", []string{"db:10.0.0.1"}, []netip.Addr{netip.MustParseAddr("9.9.9.9")}, map[string]string{"net.a": "1=2"}
		}},
		{"-p 8080:80 -p 127.0.0.1::53/udp", func(c *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.PortBindings = network.PortMap{web: {{HostPort: "8080"}}, dns: {{HostIP: netip.MustParseAddr("127.0.0.1")}}}
			c.ExposedPorts = network.PortSet{web: {}, dns: {}}
		}},
		{"-m 1.5g --shm-size 8m --cpus 1.5 --pids-limit -1", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
			h.Memory, h.ShmSize, h.NanoCPUs, h.PidsLimit = 3<<29, 8<<20, 15e8, pointer(int64(-1))
		}},
		{"--cpus 0.0000000001", func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) { h.NanoCPUs = 1 }}, // for the daemon to refuse
		{"--cap-add a,b --cap-add c --cap-drop ALL --security-opt no-new-privileges --security-opt seccomp=seccomp --security-opt seccomp=unconfined",
			func(_ *container.Config, h *container.HostConfig, _ *client.ContainerCreateOptions) {
				h.CapAdd, h.CapDrop = []string{"a", "b", "c"}, []string{"ALL"}
				h.SecurityOpt = []string{"no-new-privileges", `seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`, "seccomp=unconfined"}
			}},
	} {
		want := plain("sh", "-c", "--rm")
		tt.set(want.Config, want.HostConfig, &want)
		got, err := parse(t, append(strings.Fields(tt.args), "app", "sh", "-c", "--rm")...)
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b network.Port) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", tt.args, err, diff)
		}
	}
	if got, err := parse(t, "app"); err != nil || len(got.Config.Cmd) != 0 {
		t.Errorf("without a command: %+v, %v", got.Config, err)
	}
}

func TestRequestRefused(t *testing.T) {
	dir := t.TempDir()
	for args, says := range map[string]string{
		"-e =x": "--env =x: the name is empty", "--env-file /nothing": "--env-file /nothing", "--env-file " + dir: "is a directory",
		"-l =x": "--label =x", "--sysctl a": "--sysctl a: no value", "--dns x": "--dns x", "--device a:b:c:d": "more than three parts",
		"--mount type=bind": "target is missing", "--mount target=/a,odd=1": `key "odd" is not known`, "--mount target=/a,ro=perhaps": "ro: ",
		"--mount type=tmpfs,target=/a,tmpfs-size=big": "tmpfs-size: ", "--mount type=tmpfs,target=/a,tmpfs-mode=9": "tmpfs-mode: ",
		"-m lots": "--memory lots", "-m -1": "--memory -1", "--shm-size x": "--shm-size x", "--cpus 0": "--cpus 0", "--cpus -1": "--cpus -1", "--cpus x": "--cpus x",
		"--cpus NaN": "--cpus NaN", "--cpus 1e300": "--cpus 1e300",
		"-p x": `"x" is not a port`, "-p 0": `"0" is not a port`, "-p 70000": "is not a port", "-p 80/icmp": `protocol "icmp"`, "-p x:1:2": "ParseAddr", "-p 1.2.3.4:80": "is not a port",
		"-p 1-2:80": "differ in length", "-p 9-8": "goes backwards", "--security-opt seccomp=/nothing": "no such file",
	} {
		_, err := parse(t, append(strings.Fields(args), "app")...)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), says) || fault.HintOf(err) == "" {
			t.Errorf("%s: %v, hint %q", args, err, fault.HintOf(err))
		}
	}
}

func TestParsePublish(t *testing.T) {
	bound := func(port, host, ip string) publishedPort {
		p := publishedPort{port: network.MustParsePort(port), binding: network.PortBinding{HostPort: host}}
		if ip != "" {
			p.binding.HostIP = netip.MustParseAddr(ip)
		}
		return p
	}
	for spec, want := range map[string][]publishedPort{
		"80":                   {bound("80/tcp", "", "")},
		"80/UDP":               {bound("80/udp", "", "")},
		"8080:80":              {bound("80/tcp", "8080", "")},
		"127.0.0.1:8080:80":    {bound("80/tcp", "8080", "127.0.0.1")},
		"127.0.0.1::80":        {bound("80/tcp", "", "127.0.0.1")},
		"[::1]:8080:80/sctp":   {bound("80/sctp", "8080", "::1")},
		"8000-8001:80-81":      {bound("80/tcp", "8000", ""), bound("81/tcp", "8001", "")},
		"80-81":                {bound("80/tcp", "", ""), bound("81/tcp", "", "")},
		"65535:65535":          {bound("65535/tcp", "65535", "")},
		"10.0.0.1:1-1:7-7/udp": {bound("7/udp", "1", "10.0.0.1")},
	} {
		got, err := parsePublish(spec)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(publishedPort{}), cmp.Comparer(func(a, b network.Port) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", spec, err, diff)
		}
	}
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"80", "127.0.0.1:8000-8001:80-81/udp", "[::1]::80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		ports, err := parsePublish(spec)
		if err == nil && len(ports) == 0 {
			t.Errorf("%q: no port and no error", spec)
		}
		for _, p := range ports {
			if p.port.Num() == 0 {
				t.Errorf("%q: %+v", spec, p)
			}
		}
	})
}

func FuzzParseMount(f *testing.F) {
	f.Add("type=tmpfs,target=/a,tmpfs-size=1m,tmpfs-mode=700")
	f.Add("src=./x,dst=/y,ro")
	f.Fuzz(func(t *testing.T, spec string) {
		if m, err := parseMount(spec); err == nil && (m.Target == "" || m.Type == "bind" && strings.HasPrefix(m.Source, ".")) {
			t.Errorf("%q: %+v", spec, m)
		}
	})
}

func TestPairs(t *testing.T) {
	getenv := func(key string) string { return map[string]string{"HERE": "value"}[key] }
	got, err := pairs("build-arg", []string{"a=b=c", "empty=", "HERE", "a=again"}, getenv)
	if diff := cmp.Diff(map[string]string{"a": "again", "empty": "", "HERE": "value"}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := pairs("label", []string{"=x"}, getenv); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "--label =x: no key") {
		t.Errorf("%v", err)
	}
}
