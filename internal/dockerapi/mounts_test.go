package dockerapi_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

func TestBinds(t *testing.T) {
	a := newAPI(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "made", "here")
	s := shell("cat /data/file; echo container > /data/new; touch /ro/x 2>/dev/null || echo refused; cat /ro/new; ls /made; echo x > /made/x; cat /one; ls /outer")
	s.host.Binds = []string{dir + ":/data", dir + ":/ro:ro", missing + ":/made:rw", dir + "/file:/one:ro,rslave",
		dir + ":/outer/inner", missing + ":/outer"} // the parent last
	r := a.run(s)
	if r.out != "host\nrefused\ncontainer\ninner\nhost\ninner\nx\n" || r.code != 0 {
		t.Errorf("%+v", r)
	}
	if data, err := os.ReadFile(filepath.Join(missing, "x")); err != nil || string(data) != "x\n" {
		t.Errorf("%q, %v", data, err)
	}
	byDestination := map[string]container.MountPoint{}
	for _, m := range a.inspect(r.id).Mounts {
		byDestination[m.Destination] = m
	}
	if m := byDestination["/ro"]; m.Type != mount.TypeBind || m.Source != dir || m.RW {
		t.Errorf("/ro: %+v", m)
	}
	if m := byDestination["/data"]; !m.RW || m.Source != dir {
		t.Errorf("/data: %+v", m)
	}
	if m := byDestination["/one"]; m.Propagation != mount.PropagationRSlave {
		t.Errorf("/one: %+v", m)
	}
}

func TestTmpfs(t *testing.T) {
	a := newAPI(t)
	s := shell("busybox grep -E '/(a|b|c) ' /proc/mounts | while read fs dir type options rest; do echo $dir $type $options; done; touch /c/x || echo refused")
	s.host.Tmpfs = map[string]string{"/a": "", "/b": "size=1m,exec"}
	s.host.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/c", ReadOnly: true, TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 2 << 20, Mode: 0o700, Options: [][]string{{"uid", "5"}}}}}
	got := map[string]string{}
	r := a.run(s)
	for line := range strings.Lines(r.out) {
		dir, options, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[dir] = options
	}
	for dir, want := range map[string][]string{
		"/a": {"tmpfs rw,", "nosuid", "nodev", "noexec"},
		"/b": {"tmpfs rw,", "nosuid", "nodev", "size=1024k"},
		"/c": {"tmpfs ro,", "nosuid", "nodev", "noexec", "size=2048k", "mode=700", "uid=5"},
	} {
		for _, option := range want {
			if !strings.Contains(got[dir], option) {
				t.Errorf("%s without %s: %s", dir, option, got[dir])
			}
		}
	}
	if strings.Contains(got["/b"], "noexec") || got["refused"] != "" || !strings.HasSuffix(r.out, "refused\n") {
		t.Errorf("%+v", r)
	}
}

func TestMounts(t *testing.T) {
	a := newAPI(t)
	dir := t.TempDir()
	const model = "localhost:5000/models/digits:v1"
	layer := enginetest.Tar(t, []enginetest.File{{Name: "weights", Data: []byte("model\n")}, {Name: "meta/", Mode: 0o755}, {Name: "meta/info", Data: []byte("info\n")}})
	archive := enginetest.ArtifactArchive(t, model, "application/vnd.cncf.model.config.v1+json", []byte(`{}`), "application/vnd.cncf.model.weight.v1.tar", layer)
	res, err := a.ImageLoad(t.Context(), bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	res.Close()
	made := filepath.Join(dir, "made")
	s := shell("cat /model/weights /meta/info; touch /model/x 2>/dev/null || echo refused; echo y > /made/y")
	s.host.Mounts = []mount.Mount{
		{Type: mount.TypeImage, Source: model, Target: "/model"},
		{Type: mount.TypeImage, Source: model, Target: "/meta", ImageOptions: &mount.ImageOptions{Subpath: "meta"}},
		{Type: mount.TypeBind, Source: dir, Target: "/dir", ReadOnly: true, BindOptions: &mount.BindOptions{Propagation: "slave", ReadOnlyNonRecursive: true}},
		{Type: mount.TypeBind, Source: made, Target: "/made", BindOptions: &mount.BindOptions{CreateMountpoint: true}},
	}
	if r := a.run(s); r.out != "model\ninfo\nrefused\n" || r.code != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(filepath.Join(made, "y")); err != nil {
		t.Error(err)
	}
	if list, err := a.ImageList(t.Context(), client.ImageListOptions{}); err != nil || len(list.Items) != 1 {
		t.Errorf("an artifact among the images: %+v, %v", list.Items, err)
	}
}

// TestMountsRefused also looks that no directory was made for them.
func TestMountsRefused(t *testing.T) {
	a := newAPI(t)
	dir := filepath.Join(t.TempDir(), "never")
	for _, tt := range []struct {
		host   string
		status int
		says   string
	}{
		{`"Binds":["data"]`, 400, "invalid volume specification"},
		{`"Binds":["./data:/data"]`, 400, "includes invalid characters"},
		{`"Binds":["data:/data:rshared"]`, 400, "invalid mode: rshared"},
		{`"Binds":["data:/data","/data"]`, 400, "Duplicate mount point: /data"},
		{`"VolumesFrom":["nobody"]`, 400, "No such container: nobody"},
		{`"Binds":["` + dir + `:data"]`, 400, "absolute path"},
		{`"Binds":["` + dir + `:/"]`, 400, `"/"`},
		{`"Binds":["` + dir + `:"]`, 400, "invalid volume specification"},
		{`"Binds":[":/data"]`, 400, "invalid volume specification"},
		{`"Binds":["a:b:c:d"]`, 400, "invalid volume specification"},
		{`"Binds":["` + dir + `:/data:odd"]`, 400, "invalid mode: odd"},
		{`"Binds":["` + dir + `:/data","` + dir + `:/data/"]`, 400, "Duplicate mount point: /data"},
		{`"Binds":["` + dir + `:/data"],"CapAdd":["FLY"]`, 400, "unknown capability"},
		{`"Binds":["` + dir + `/deep:/data","/dev/null/x:/x"]`, 400, "bind mount's source"},
		{`"Tmpfs":{"data":""}`, 400, "absolute path"},
		{`"Mounts":[{"Type":"volume","Source":"vv","Target":"v"}]`, 400, "absolute path"},
		{`"Mounts":[{"Type":"volume","Source":"vv","Target":"/v","VolumeOptions":{"Subpath":"a/../../b"}}]`, 400, "relative path"},
		{`"Mounts":[{"Type":"volume","Target":"/v","VolumeOptions":{"Subpath":"a"}}]`, 400, "anonymous"},
		{`"Mounts":[{"Type":"volume","Target":"/v","VolumeOptions":{"DriverConfig":{"Name":"nfs"}}}]`, 404, "plugin"},
		{`"Mounts":[{"Type":"volume","Source":"vv","Target":"/v","VolumeOptions":{"DriverConfig":{"Options":{"type":"nfs","o":"addr=x","device":":/x"}}}}]`, 501, "nfs"},
		{`"Mounts":[{"Type":"volume","Source":"vv","Target":"/v","VolumeOptions":{"DriverConfig":{"Options":{"type":"none","o":"bind","device":"` + dir + `"}}}}]`, 400, "no such file"},
		{`"Mounts":[{"Type":"cluster","Target":"/v"}]`, 501, `type "cluster"`},
		{`"Mounts":[{"Type":"bind","Source":"` + dir + `","Target":"/v"}]`, 400, "bind source path does not exist: " + dir},
		{`"Mounts":[{"Type":"bind","Source":"here","Target":"/v"}]`, 400, "must be absolute"},
		{`"Mounts":[{"Type":"bind","Source":"here","Target":"/v","BindOptions":{"CreateMountpoint":true}}]`, 400, "must be absolute"},
		{`"Mounts":[{"Type":"bind","Source":"/tmp","Target":"/v","BindOptions":{"Propagation":"odd"}}]`, 400, "invalid propagation mode: odd"},
		{`"Mounts":[{"Type":"bind","Source":"/tmp","Target":"/v","BindOptions":{"NonRecursive":true}}]`, 501, "bind-recursive"},
		{`"Mounts":[{"Type":"bind","Source":"/tmp"}]`, 400, "invalid mount destination"},
	} {
		got := a.do("POST", "/containers/create", `{"Image":"`+enginetest.Busybox+`","HostConfig":{`+tt.host+`}}`)
		if got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s: %d %q, want %d %q", tt.host, got.status, got.message, tt.status, tt.says)
		}
	}
	if pods := a.machine.Pods(t.Context(), ""); len(pods) != 0 {
		t.Errorf("%d pods are left", len(pods))
	}
	// The image of a mount is looked for at the start.
	s := spec{name: "mm", config: container.Config{Image: enginetest.Busybox}}
	s.host.Mounts = []mount.Mount{{Type: mount.TypeImage, Source: "nothing", Target: "/m"}}
	a.create(s)
	if got := a.do("POST", "/containers/mm/start", ""); got.status != http.StatusNotFound || !strings.Contains(got.message, "image volume /m") {
		t.Errorf("%+v", got)
	}
}
