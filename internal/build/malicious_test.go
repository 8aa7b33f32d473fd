package build

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

const secret = "only-the-host-knows-this"

// victim is a directory of the machine with a secret, an empty file and an
// empty directory, which no build may read, write or remove.
type victim struct {
	t   *testing.T
	dir string
}

func newVictim(t *testing.T) victim {
	t.Helper()
	v := victim{t, t.TempDir()}
	for name, data := range map[string]string{"secret": secret, "empty": "", "resolv.conf": "", "hosts": ""} {
		if err := os.WriteFile(filepath.Join(v.dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(v.dir, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	return v
}

// check fails if the victim has changed or a build has told the secret.
func (v victim) check(name string, a answer) {
	v.t.Helper()
	if strings.Contains(a.text+a.err, secret) {
		v.t.Errorf("%s reads the machine's files: %+v", name, a)
	}
	var found []string
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	if got := strings.Join(found, " "); got != "directory empty hosts resolv.conf secret" {
		v.t.Errorf("%s: the machine's directory has now %s", name, got)
	}
	if data, err := os.ReadFile(filepath.Join(v.dir, "secret")); err != nil || string(data) != secret {
		v.t.Errorf("%s: the machine's file has %q, %v", name, data, err)
	}
}

// TestMaliciousDockerfiles: whatever a Dockerfile links to, mounts or moves, the
// machine's files are neither read nor written nor removed.
func TestMaliciousDockerfiles(t *testing.T) {
	b, v := newBuilder(t), newVictim(t)
	t.Setenv("TMPDIR", t.TempDir()) // BuildKit leaves a directory there for a mount that fails
	for _, tt := range []struct{ name, dockerfile string }{
		{"copy from a link", "RUN ln -s HOST /link\nFROM box\nCOPY --from=0 /link /x\nRUN cat /x/secret /x"},
		{"copy through a link", "RUN ln -s HOST /link\nFROM box\nCOPY --from=0 /link/secret /x\nRUN cat /x"},
		{"copy to a link", "RUN ln -s HOST /link\nCOPY file /link/file"},
		{"copy over a link", "RUN ln -s HOST/secret /link\nCOPY file /link"},
		{"work in a link", "RUN ln -s HOST /link\nWORKDIR /link/made\nRUN touch here && cat ../secret"},
		{"work outside", "WORKDIR ../../../../..HOST\nRUN cat secret"},
		{"mount source is a link (CVE-2024-23651)", "RUN --mount=type=cache,id=a,target=/c ln -s HOST /c/sub\nRUN --mount=type=cache,id=a,source=sub,target=/m cat /m/secret; touch /m/written"},
		{"mount from a stage by a link", "RUN ln -s HOST /link\nFROM box\nRUN --mount=type=bind,from=0,source=/link,target=/m,rw cat /m/secret; touch /m/written"},
		{"mount from a stage below a link", "RUN ln -s HOST /link\nFROM box\nRUN --mount=type=bind,from=0,source=/link/directory,target=/m,rw touch /m/written"},
		{"mount on a link", "RUN ln -s HOST /link\nRUN --mount=type=tmpfs,target=/link/directory touch /link/directory/x; ls -a /link/directory"},
		{"stub's parent becomes a link (CVE-2024-23652)", "RUN --mount=type=tmpfs,target=/a/directory mv /a /b && ln -s HOST /a"},
		{"stub's grandparent becomes a link", "RUN --mount=type=tmpfs,target=/a/b/directory mv /a/b /a/c && ln -s HOST /a/b"},
		{"stub is removed", "RUN --mount=type=tmpfs,target=/a/directory rm -rf /a; ln -s HOST /a; true"},
		{"stub of a file becomes a link", "RUN --mount=type=bind,source=file,target=/a/empty mv /a /b && ln -s HOST /a"},
		{"resolv.conf's directory becomes a link", "RUN rm -rf /etc; mv /etc /etc2 && ln -s HOST /etc"},
		{"resolv.conf is a link", "RUN rm -f /etc/resolv.conf; mkdir -p /etc && ln -s HOST/empty /etc/resolv.conf\nRUN echo written > /etc/resolv.conf"},
		{"hosts is a link", "FROM scratch\nCOPY --from=box / /\nRUN true\nFROM box\nRUN rm -f /etc/hosts; ln -s HOST/secret /etc/hosts; true\nRUN cat /etc/hosts; echo written > /etc/hosts"},
		{"proc is a link", "FROM scratch\nCOPY --from=box /bin /bin\nRUN rmdir /proc; ln -s HOST /proc; true\nRUN cat /proc/secret"},
		{"users are a link", "RUN rm -f /etc/passwd && ln -s HOST/secret /etc/passwd\nUSER nobody\nRUN id"},
		{"escape by the root of another process", "RUN cat /proc/*/rootHOST/secret; for p in /proc/[0-9]*; do cat $p/cwdHOST/secret; done; true"},
		{"block device", "RUN mknod /d b 254 0 && head -c 512 /d > /x && echo read-the-disk; true"},
		{"kernel settings", "RUN echo '|HOST/x' > /proc/sys/kernel/core_pattern && echo wrote-core-pattern; echo 1 > /proc/sysrq-trigger && echo wrote-sysrq; true"},
		{"mount", "RUN mount -t proc none /proc && echo mounted-proc; mount -o remount,rw /sys && echo mounted-sys; true"},
		{"cgroup release agent", "RUN mkdir -p /cg && mount -t cgroup -o rdma cgroup /cg && echo mounted-cgroup; true"},
	} {
		a := b.build("", strings.ReplaceAll(tt.dockerfile, "HOST", v.dir), "file", "content")
		v.check(tt.name, a)
		for _, achieved := range []string{"read-the-disk\n", "wrote-core-pattern\n", "wrote-sysrq\n", "mounted-proc\n", "mounted-sys\n", "mounted-cgroup\n"} {
			if strings.Contains(a.text, "\n"+achieved) || strings.HasPrefix(a.text, achieved) {
				t.Errorf("%s: %s", tt.name, a.text)
			}
		}
		if b.steps() != 0 || b.stepMounts() != 0 {
			t.Errorf("%s: a step or its root is left", tt.name)
		}
	}
}

// TestLeakedDescriptors works in each descriptor that a step's process might
// have inherited (CVE-2024-21626).
func TestLeakedDescriptors(t *testing.T) {
	b, v := newBuilder(t), newVictim(t)
	up := strings.Repeat("../", 12)
	for n := 3; n < 20; n++ {
		for _, proc := range []string{"self", "thread-self"} {
			v.check(fmt.Sprintf("WORKDIR /proc/%s/fd/%d", proc, n), b.build("", fmt.Sprintf("WORKDIR /proc/%s/fd/%d\nRUN cat %s%s/secret", proc, n, up, v.dir)))
		}
		if n > 10 {
			continue
		}
		v.check(fmt.Sprintf("read by descriptor %d", n), b.build("", fmt.Sprintf("RUN cat /proc/self/fd/%d/%s%s/secret; ls /proc/self/fd/%d/", n, up, v.dir, n)))
	}
}

// TestMaliciousContexts: archives are unpacked by ADD where they cannot lead out.
func TestMaliciousContexts(t *testing.T) {
	b, v := newBuilder(t), newVictim(t)
	evil := func(headers ...tar.Header) string { return string(archive(t, headers...)) }
	up := strings.Repeat("../", 12)
	for name, data := range map[string]string{
		"outside":         evil(tar.Header{Name: up + v.dir[1:] + "/written"}),
		"absolute":        evil(tar.Header{Name: v.dir + "/written"}),
		"through a link":  evil(tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: v.dir}, tar.Header{Name: "d/written"}),
		"hard link":       evil(tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: v.dir + "/secret"}),
		"link, then file": evil(tar.Header{Name: "secret", Typeflag: tar.TypeSymlink, Linkname: v.dir + "/secret"}, tar.Header{Name: "secret"}),
	} {
		v.check("ADD "+name, b.build("", "ADD evil.tar /\nRUN cat /h; true", "evil.tar", data))
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{{Name: "Dockerfile", Typeflag: tar.TypeSymlink, Linkname: v.dir + "/secret"}, {Name: "d", Typeflag: tar.TypeSymlink, Linkname: v.dir}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	v.check("the Dockerfile is a link", b.post(t.Context(), "", bytes.NewReader(buf.Bytes())))
	v.check("the Dockerfile is below a link", b.post(t.Context(), "dockerfile=d/secret", bytes.NewReader(buf.Bytes())))
}

// TestCacheMountRace swaps a directory of a cache mount for a link while other
// steps mount it (CVE-2024-23651).
func TestCacheMountRace(t *testing.T) {
	b, v := newBuilder(t), newVictim(t)
	var g sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	g.Go(func() {
		b.post(ctx, "nocache=1", contextOf(t, onBox("RUN --mount=type=cache,id=race,target=/c mkdir -p /c/real; while true; do rm -rf /c/sub; ln -s "+v.dir+" /c/sub; rm -f /c/sub; cp -r /c/real /c/sub; done")))
	})
	eventually(t, "the racing step runs", func() bool { return b.steps() == 1 })
	for range 25 {
		v.check("race", b.build("nocache=1", "RUN --mount=type=cache,id=race,source=sub,target=/m cat /m/secret; touch /m/written"))
	}
	stop()
	g.Wait()
	eventually(t, "the racing step is gone", func() bool { return b.steps() == 0 })
}

// TestInsecureContainer asks for a privileged container not by a Dockerfile but
// by the interface that frontends have (CVE-2024-23653).
func TestInsecureContainer(t *testing.T) {
	b := newBuilder(t)
	c, _, err := b.client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	run := func(mode pb.SecurityMode, network pb.NetMode) (string, error) {
		var out bytes.Buffer
		_, err := c.Build(t.Context(), client.SolveOpt{}, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			def, err := llb.Image(enginetest.Busybox, llb.ResolveModePreferLocal).Marshal(ctx)
			if err != nil {
				return nil, err
			}
			res, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB()})
			if err != nil {
				return nil, err
			}
			ref, err := res.SingleRef()
			if err != nil {
				return nil, err
			}
			ctr, err := g.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: ref}}, NetMode: network})
			if err != nil {
				return nil, err
			}
			defer ctr.Release(ctx)
			p, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"sh", "-c", "grep CapEff /proc/self/status"}, Env: []string{"PATH=/bin"}, SecurityMode: mode, Stdout: nopCloser{&out}, Cwd: "/"})
			if err != nil {
				return nil, err
			}
			return gateway.NewResult(), p.Wait()
		}, nil)
		return out.String(), err
	}
	if out, err := run(pb.SecurityMode_SANDBOX, pb.NetMode_UNSET); err != nil || !strings.Contains(out, "00000000a80425fb") {
		t.Errorf("an ordinary container: %q, %v", out, err)
	}
	if out, err := run(pb.SecurityMode_INSECURE, pb.NetMode_UNSET); err == nil || !strings.Contains(err.Error(), "security.insecure is not allowed") {
		t.Errorf("a privileged container: %q, %v", out, err)
	}
	if out, err := run(pb.SecurityMode_SANDBOX, pb.NetMode_HOST); err == nil || !strings.Contains(err.Error(), "network.host is not allowed") {
		t.Errorf("the host's network: %q, %v", out, err)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
