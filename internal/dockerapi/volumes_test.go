package dockerapi_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// volumes are the names of those that the filters leave.
func (a *api) volumes(filters client.Filters) []string {
	a.t.Helper()
	list, err := a.VolumeList(a.t.Context(), client.VolumeListOptions{Filters: filters})
	if err != nil {
		a.t.Fatal(err)
	}
	names := []string{}
	for _, v := range list.Items {
		names = append(names, v.Name)
	}
	return names
}

func (a *api) remove(id string, opt client.ContainerRemoveOptions) {
	a.t.Helper()
	if _, err := a.ContainerRemove(a.t.Context(), id, opt); err != nil {
		a.t.Fatal(err)
	}
}

// dataImage has content in /data, owned by 1000:1001, and asks for volumes there and at /empty.
func dataImage(t *testing.T) []byte {
	return enginetest.Archive(t, "data:v1", append(busyboxFiles(t), enginetest.File{Name: "data/", Mode: 0o2750}, enginetest.File{Name: "data/f", Data: []byte("image\n"), Mode: 0o640},
		enginetest.File{Name: "old/", Mode: 0o755}, enginetest.File{Name: "old/before", Data: []byte("x")},
		enginetest.File{Name: "data/sub/", Mode: 0o755}, enginetest.File{Name: "data/sub/link", Link: "../f"}, enginetest.File{Name: "file", Data: []byte("x")}),
		ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/data": {}, "/empty": {}}})
}

func TestVolumes(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	for name, labels := range map[string]map[string]string{"one": {"a": "b"}, "two": nil} {
		v, err := a.VolumeCreate(ctx, client.VolumeCreateOptions{Name: name, Labels: labels})
		if err != nil || v.Volume.Name != name || v.Volume.Driver != "local" || v.Volume.Scope != "local" || v.Volume.Mountpoint != filepath.Join(a.machine.Dir(), "volumes", name, "_data") {
			t.Errorf("%+v, %v", v, err)
		}
	}
	anonymous, err := a.VolumeCreate(ctx, client.VolumeCreateOptions{})
	if err != nil || len(anonymous.Volume.Name) != 64 {
		t.Fatalf("%+v, %v", anonymous, err)
	}
	write := shell("echo kept > /data/f")
	write.host.Binds = []string{"one:/data"}
	id := a.run(write).id
	for _, tt := range []struct {
		filters client.Filters
		want    []string
	}{
		{client.Filters{}.Add("name", "o"), []string{"one", "two"}},
		{client.Filters{}.Add("label", "a"), []string{"one"}},
		{client.Filters{}.Add("dangling", "false"), []string{"one"}},
		{client.Filters{}.Add("dangling", "true").Add("name", "two"), []string{"two"}},
		{client.Filters{}.Add("driver", "nfs"), []string{}},
	} {
		if got := a.volumes(tt.filters); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.filters, got, tt.want)
		}
	}
	if got := a.do("DELETE", "/volumes/one", ""); got.status != http.StatusConflict || !strings.Contains(got.message, "volume is in use - ["+id+"]") {
		t.Errorf("in use: %+v", got)
	}
	if m := a.inspect(id).Mounts; len(m) != 1 || m[0].Type != mount.TypeVolume || m[0].Name != "one" || m[0].Driver != "local" || !m[0].RW || m[0].Mode != "z" ||
		m[0].Source != filepath.Join(a.machine.Dir(), "volumes/one/_data") {
		t.Errorf("%+v", m)
	}
	for filter, want := range map[string]int{"one": 1, "/data": 1, "two": 0} {
		list, err := a.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("volume", filter)})
		if err != nil || len(list.Items) != want {
			t.Errorf("volume=%s: %+v, %v", filter, list.Items, err)
		}
	}
	a.remove(id, client.ContainerRemoveOptions{RemoveVolumes: true}) // a named one stays
	a.stop()
	a.start() // the volume outlives container and server
	read := shell("cat /data/f; touch /data/x || echo refused")
	read.host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "one", Target: "/data", ReadOnly: true}}
	if r := a.run(read); r.out != "kept\nrefused\n" {
		t.Errorf("%+v", r)
	}
	pruned, err := a.VolumePrune(ctx, client.VolumePruneOptions{})
	if err != nil || !slices.Equal(pruned.Report.VolumesDeleted, []string{anonymous.Volume.Name}) {
		t.Errorf("%+v, %v", pruned, err)
	}
	pruned, err = a.VolumePrune(ctx, client.VolumePruneOptions{All: true})
	if err != nil || !slices.Equal(pruned.Report.VolumesDeleted, []string{"two"}) {
		t.Errorf("%+v, %v", pruned, err)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/volumes/none", "", 404, "no such volume"},
		{"DELETE", "/volumes/none", "", 404, "no such volume"},
		{"DELETE", "/volumes/none?force=1", "", 204, ""},
		{"POST", "/volumes/create", `{"Name":"../x"}`, 400, "invalid characters"},
		{"POST", "/volumes/create", `{"Name":"one","DriverOpts":{"type":"tmpfs"}}`, 409, "other options"},
		{"POST", "/volumes/create", `{"Driver":"nfs"}`, 404, "plugin"},
		{"GET", "/volumes?filters={%22odd%22:[%22x%22]}", "", 400, "odd"},
	} {
		if got := a.do(tt.method, tt.path, tt.body); got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s %s: %+v", tt.method, tt.path, got)
		}
	}
}

// TestVolumeCopyUp: a new volume begins with what the image has in its place,
// owner and mode included; one that holds something is left alone.
func TestVolumeCopyUp(t *testing.T) {
	a := newAPI(t)
	a.load(dataImage(t))
	look := func(binds ...string) spec {
		return spec{config: container.Config{Image: "data:v1", Cmd: []string{"sh", "-c", "busybox stat -c '%a' /data; cat /data/f /data/sub/link; echo $? > /data/new"}}, host: container.HostConfig{Binds: binds}}
	}
	first := a.run(look("named:/data"))
	if first.out != "2750\nimage\nimage\n" {
		t.Errorf("%+v", first)
	}
	if err := os.WriteFile(filepath.Join(a.machine.Dir(), "volumes/named/_data/f"), []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := a.run(look("named:/data")); r.out != "2750\nmine\nmine\n" {
		t.Errorf("a second time: %+v", r)
	}
	if r := a.run(look("bare:/data:nocopy")); r.out != "755\n" {
		t.Errorf("nocopy: %+v", r)
	}
	mounts := a.inspect(first.id).Mounts
	if len(mounts) != 2 || mounts[0].Name != "named" || mounts[1].Destination != "/empty" || len(mounts[1].Name) != 64 {
		t.Fatalf("%+v", mounts)
	}
	before := len(a.volumes(nil))
	if got := a.do("POST", "/containers/create?name=over", `{"Image":"data:v1","Cmd":["true"],"Volumes":{"/file":{}}}`); got.status != 400 || !strings.Contains(got.message, "file exists /file") {
		t.Errorf("over a file: %+v", got)
	}
	if left := a.volumes(nil); len(left) != before {
		t.Errorf("a container that was not made left volumes: %v", left)
	}
	// A daemon was killed while it filled the volume.
	if err := os.WriteFile(filepath.Join(a.machine.Dir(), "volumes/named/volume.json"), []byte(`{"filling":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.start()
	if r := a.run(look("named:/data")); r.out != "2750\nimage\nimage\n" {
		t.Errorf("after an interruption: %+v", r)
	}
}

// TestAnonymousVolumes go with their container where that is asked for.
// TestVolumesWhileOneIsFilled: the filling of a large volume holds up neither
// what is done to other volumes nor other containers, and it is in use.
func TestVolumesWhileOneIsFilled(t *testing.T) {
	a := newAPI(t)
	for _, name := range []string{"big", "other"} {
		if _, err := a.VolumeCreate(t.Context(), client.VolumeCreateOptions{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(a.machine.Dir(), "volumes", "big", "_data")
	a.server.Filling().Lock(source)
	made := make(chan answer, 1)
	go func() {
		made <- a.do("POST", "/containers/create?name=filling", `{"Image":"`+enginetest.Busybox+`","HostConfig":{"Binds":["big:/etc"]}}`)
	}()
	eventually(t, "the container is there", func() bool { return a.do("GET", "/containers/filling/json", "").status == http.StatusOK })
	if got := a.do("DELETE", "/volumes/other", ""); got.status != http.StatusNoContent {
		t.Errorf("another volume: %+v", got)
	}
	if got := a.do("DELETE", "/volumes/big", ""); got.status != http.StatusConflict {
		t.Errorf("the volume that is filled: %+v", got)
	}
	a.remove(a.create(shell("true")), client.ContainerRemoveOptions{RemoveVolumes: true})
	select {
	case got := <-made:
		t.Errorf("the container was made before its volume was filled: %+v", got)
	default:
	}
	if err := a.server.Filling().Unlock(source); err != nil {
		t.Fatal(err)
	}
	if got := <-made; got.status != http.StatusCreated {
		t.Errorf("%+v", got)
	}
	if _, err := os.Stat(filepath.Join(source, "passwd")); err != nil {
		t.Error(err)
	}
}

func TestAnonymousVolumes(t *testing.T) {
	a := newAPI(t)
	a.load(dataImage(t))
	s := spec{name: "from", config: container.Config{Image: "data:v1", Cmd: []string{"sh", "-c", "echo more >> /data/f; sleep 1000"}, Volumes: map[string]struct{}{"/own": {}}}}
	from := a.up(s)
	if got := a.volumes(client.Filters{}.Add("label", "com.docker.volume.anonymous")); len(got) != 3 {
		t.Errorf("%v", got)
	}
	to := spec{config: container.Config{Image: "data:v1", Cmd: []string{"sh", "-c", "cat /data/f; echo x > /own/x || echo refused"}}}
	to.host.VolumesFrom = []string{"from:ro"}
	eventually(t, "the other container has written", func() bool {
		data, _ := os.ReadFile(a.inspect(from).Mounts[0].Source + "/f")
		return string(data) == "image\nmore\n"
	})
	r := a.run(to)
	if r.out != "image\nmore\nrefused\n" || len(a.volumes(nil)) != 3 {
		t.Errorf("%+v, %v", r, a.volumes(nil))
	}
	a.remove(from, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if got := a.volumes(nil); len(got) != 3 {
		t.Errorf("volumes that another container has are gone: %v", got)
	}
	a.remove(r.id, client.ContainerRemoveOptions{RemoveVolumes: true}) // which borrowed them
	a.stop()
	a.start()
	if got := a.volumes(client.Filters{}.Add("dangling", "true")); len(got) != 3 {
		t.Errorf("left of those that were not to be removed: %v", got)
	}
	if _, err := a.VolumePrune(t.Context(), client.VolumePruneOptions{}); err != nil || len(a.volumes(nil)) != 0 {
		t.Errorf("%v, %v", a.volumes(nil), err)
	}
	auto := shell("true")
	auto.host.AutoRemove, auto.host.Binds = true, []string{"/x", "kept:/y"}
	gone := a.wait(a.create(auto), container.WaitConditionRemoved)
	list, err := a.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	a.startContainer(list.Items[0].ID)
	gone()
	eventually(t, "the named volume alone is left", func() bool { return slices.Equal(a.volumes(nil), []string{"kept"}) })
	if got, want := a.past(`filters={"volume":["kept"]}`), []string{"volume create", "volume mount", "volume unmount"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestVolumesThatAreNotRemoved: nobody asked for the removal of a volume that
// another container has, or of one that a container only borrows.
func TestVolumesThatAreNotRemoved(t *testing.T) {
	a := newAPI(t)
	owner := func(name string) (id, volume string) {
		s := shell("true")
		s.name, s.config.Volumes = name, map[string]struct{}{"/own": {}}
		id = a.create(s)
		return id, a.inspect(id).Mounts[0].Name
	}
	trigger := func() { // a removal that takes volumes along
		t.Helper()
		id, volume := owner("")
		a.remove(id, client.ContainerRemoveOptions{RemoveVolumes: true})
		if slices.Contains(a.volumes(nil), volume) {
			t.Errorf("%s was not removed", volume)
		}
	}
	lent, lentVolume := owner("lent")
	borrower := shell("true")
	borrower.host.VolumesFrom = []string{"lent"}
	a.remove(a.create(borrower), client.ContainerRemoveOptions{RemoveVolumes: true})
	a.remove(lent, client.ContainerRemoveOptions{})
	first, firstVolume := owner("first")
	second := shell("true")
	second.host.Binds = []string{firstVolume + ":/data"}
	id := a.create(second)
	a.remove(first, client.ContainerRemoveOptions{RemoveVolumes: true})
	a.remove(id, client.ContainerRemoveOptions{})
	kept := []string{firstVolume, lentVolume}
	slices.Sort(kept)
	trigger()
	if got := a.volumes(nil); !slices.Equal(got, kept) {
		t.Errorf("after another removal: %v, want %v", got, kept)
	}
	// A daemon ended between its mark and the removal of a container.
	user := shell("true")
	user.host.Binds = []string{firstVolume + ":/data"}
	id = a.create(user)
	if err := os.WriteFile(filepath.Join(a.machine.Dir(), "volumes", firstVolume, "volume.json"), []byte(`{"doomed":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.start()
	a.remove(id, client.ContainerRemoveOptions{})
	trigger()
	a.stop()
	a.start()
	if got := a.volumes(nil); !slices.Equal(got, kept) {
		t.Errorf("after a start: %v, want %v", got, kept)
	}
}

// TestVolumeOptions are those of the local driver.
func TestVolumeOptions(t *testing.T) {
	a := newAPI(t)
	dir := t.TempDir()
	for name, opts := range map[string]map[string]string{"bound": {"type": "none", "o": "bind", "device": dir}, "mem": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}} {
		if _, err := a.VolumeCreate(t.Context(), client.VolumeCreateOptions{Name: name, DriverOpts: opts}); err != nil {
			t.Fatal(err)
		}
	}
	first := sleeper("first")
	first.config.Cmd[2] = "echo shared > /mem/f; echo bound > /bound/f; " + first.config.Cmd[2]
	first.host.Binds = []string{"mem:/mem", "bound:/bound"}
	a.up(first)
	a.awaitOutput("first", "ready")
	if data, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(data) != "bound\n" {
		t.Errorf("%q, %v", data, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	second := shell("cat /mem/f; busybox df -k /mem | busybox tail -n 1 | busybox awk '{print $2}'; echo deep > /sub/deep")
	second.host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "mem", Target: "/mem"},
		{Type: mount.TypeVolume, Source: "bound", Target: "/sub", VolumeOptions: &mount.VolumeOptions{Subpath: "sub"}}}
	if r := a.run(second); r.out != "shared\n1024\n" || r.code != 0 {
		t.Errorf("%+v", r)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "sub/deep")); err != nil || string(data) != "deep\n" {
		t.Errorf("%q, %v", data, err)
	}
	for _, sub := range []string{"out", "none"} { // a link leads to a place in the volume, where nothing is
		s := shell("true")
		s.name = "refused-" + sub
		s.host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "bound", Target: "/sub", VolumeOptions: &mount.VolumeOptions{Subpath: sub}}}
		a.create(s)
		if got := a.do("POST", "/containers/"+s.name+"/start", ""); got.status < 400 || !strings.Contains(got.message, "sub path") {
			t.Errorf("%s: %+v", sub, got)
		}
	}
}
