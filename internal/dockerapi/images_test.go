package dockerapi_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// load loads an archive and returns what the API says of it.
func (a *api) load(archive []byte) string {
	a.t.Helper()
	res, err := a.ImageLoad(a.t.Context(), bytes.NewReader(archive))
	if err != nil {
		a.t.Fatalf("load: %v", err)
	}
	defer res.Close()
	text, err := io.ReadAll(res)
	if err != nil {
		a.t.Fatalf("load: %v", err)
	}
	return string(text)
}

// busyboxFiles are a root with a shell.
func busyboxFiles(t *testing.T) []enginetest.File {
	t.Helper()
	data, err := os.ReadFile(runnertest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	files := []enginetest.File{{Name: "bin/", Mode: 0o755}, {Name: "tmp/", Mode: 0o1777}, {Name: "bin/busybox", Data: data, Mode: 0o755}}
	for _, name := range []string{"sh", "echo", "sleep"} {
		files = append(files, enginetest.File{Name: "bin/" + name, Link: "busybox"})
	}
	return files
}

// small is an archive of an image of one file.
func small(t *testing.T, name, content string) []byte {
	return enginetest.Archive(t, name, []enginetest.File{{Name: "file", Data: []byte(content)}},
		ocispec.ImageConfig{Cmd: []string{"/file"}, Labels: map[string]string{"content": content}})
}

func (a *api) imageNames(filters client.Filters) []string {
	a.t.Helper()
	list, err := a.ImageList(a.t.Context(), client.ImageListOptions{Filters: filters})
	if err != nil {
		a.t.Fatal(err)
	}
	var names []string
	for _, img := range list.Items {
		if len(img.RepoTags) == 0 {
			names = append(names, "<none>")
		}
		names = append(names, img.RepoTags...)
	}
	slices.Sort(names)
	return names
}

func TestImages(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	for name, archive := range map[string][]byte{
		"Loaded image: app:v1": small(t, "app:v1", "one"), "Loaded image: localhost:5000/team/app:v2": small(t, "localhost:5000/team/app:v2", "two"),
		"Loaded image ID: sha256:": small(t, "", "three"),
	} {
		if said := a.load(archive); !strings.Contains(said, name) {
			t.Errorf("%q without %q", said, name)
		}
	}
	all := []string{"<none>", "app:v1", enginetest.Busybox, "localhost:5000/team/app:v2"}
	for _, tt := range []struct {
		name    string
		filters client.Filters
		want    []string
	}{
		{"all", nil, all},
		{"by name", client.Filters{}.Add("reference", "app"), []string{"app:v1"}},
		{"by pattern", client.Filters{}.Add("reference", "localhost:5000/*/app:*"), []string{"localhost:5000/team/app:v2"}},
		{"by label", client.Filters{}.Add("label", "content=two"), []string{"localhost:5000/team/app:v2"}},
		{"nameless", client.Filters{}.Add("dangling", "true"), []string{"<none>"}},
		{"named", client.Filters{}.Add("dangling", "0"), all[1:]},
	} {
		if got := a.imageNames(tt.filters); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if _, err := a.ImageTag(ctx, client.ImageTagOptions{Source: "app:v1", Target: "app:latest"}); err != nil {
		t.Fatal(err)
	}
	img, err := a.ImageInspect(ctx, "app")
	if err != nil || img.Os != "linux" || img.Architecture != "amd64" || img.Size == 0 || !slices.Equal(img.RepoTags, []string{"app:latest", "app:v1"}) ||
		len(img.RepoDigests) != 1 || !strings.HasPrefix(img.RepoDigests[0], "app@sha256:") || img.RootFS.Type != "layers" || len(img.RootFS.Layers) != 1 ||
		img.Config == nil || !slices.Equal(img.Config.Cmd, []string{"/file"}) || img.Config.Labels["content"] != "one" {
		t.Errorf("%+v, %v", img, err)
	}
	for _, key := range []string{img.ID, img.ID[:17], strings.TrimPrefix(img.ID, "sha256:")[:12], img.RepoDigests[0]} {
		if again, err := a.ImageInspect(ctx, key); err != nil || again.ID != img.ID {
			t.Errorf("%s: %v, %v", key, again.ID, err)
		}
	}
	list, err := a.ImageList(ctx, client.ImageListOptions{Filters: client.Filters{}.Add("reference", "app:v1")})
	if err != nil || len(list.Items) != 1 || list.Items[0].ID != img.ID || list.Items[0].Containers != 0 || list.Items[0].Created != 0 {
		t.Errorf("%+v, %v", list.Items, err)
	}
	if h, err := a.ImageHistory(ctx, enginetest.Busybox); err != nil || len(h.Items) != 0 {
		t.Errorf("history of an image that has none: %+v, %v", h, err)
	}
}

func TestImageHistory(t *testing.T) {
	a := newAPI(t)
	layer := enginetest.Tar(t, []enginetest.File{{Name: "file", Data: []byte("x")}})
	var config ocispec.Image
	config.OS, config.Architecture = "linux", "amd64"
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", []digest.Digest{digest.FromBytes(layer)}
	config.History = []ocispec.History{{CreatedBy: "COPY file /"}, {CreatedBy: "CMD /file", EmptyLayer: true, Comment: "last"}}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	a.load(enginetest.ArtifactArchive(t, "app:v1", ocispec.MediaTypeImageConfig, data, ocispec.MediaTypeImageLayer, layer))
	h, err := a.ImageHistory(t.Context(), "app:v1")
	want := []image.HistoryResponseItem{{ID: h.Items[0].ID, CreatedBy: "CMD /file", Comment: "last", Tags: []string{"app:v1"}},
		{ID: "<missing>", CreatedBy: "COPY file /", Size: int64(len(layer)), Tags: []string{}}}
	if err != nil || len(h.Items) != 2 || !slices.EqualFunc(h.Items, want, func(a, b image.HistoryResponseItem) bool {
		return a.ID == b.ID && a.CreatedBy == b.CreatedBy && a.Comment == b.Comment && a.Size == b.Size && slices.Equal(a.Tags, b.Tags)
	}) {
		t.Errorf("%+v, %v", h.Items, err)
	}
}

// TestSaveLoad takes images away and brings them back from what was saved.
func TestSaveLoad(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	a.load(small(t, "app:v1", "one"))
	before, err := a.ImageInspect(ctx, "app:v1")
	if err != nil {
		t.Fatal(err)
	}
	res, err := a.ImageSave(ctx, []string{"app:v1", enginetest.Busybox})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "saved.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, res); err != nil {
		t.Fatal(err)
	}
	res.Close()
	for _, name := range []string{"app:v1", enginetest.Busybox} {
		if _, err := a.ImageRemove(ctx, name, client.ImageRemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.machine.Store.GC(ctx); err != nil {
		t.Fatal(err)
	}
	saved, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if said := a.load(saved); !strings.Contains(said, "app:v1") || !strings.Contains(said, enginetest.Busybox) {
		t.Errorf("%q", said)
	}
	if after, err := a.ImageInspect(ctx, "app:v1"); err != nil || after.ID != before.ID {
		t.Errorf("%+v, %v", after, err)
	}
	if r := a.run(shell("echo hi")); r.out != "hi\n" {
		t.Errorf("%+v", r)
	}
	if got := a.do("GET", "/images/app:v1/get", ""); got.status != 200 || got.header.Get("Content-Type") != "application/x-tar" || len(got.body) < 2048 {
		t.Errorf("%d, %v", got.status, got.header)
	}
}

func TestImageRemove(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	a.load(small(t, "app:v1", "one"))
	for _, name := range []string{"app:v2", "localhost:5000/app:v1"} {
		if _, err := a.ImageTag(ctx, client.ImageTagOptions{Source: "app:v1", Target: name}); err != nil {
			t.Fatal(err)
		}
	}
	img, err := a.ImageInspect(ctx, "app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if got := a.do("DELETE", "/images/"+img.ID, ""); got.status != http.StatusConflict || !strings.Contains(got.message, "3 names") {
		t.Errorf("by ID: %+v", got)
	}
	a.load(small(t, "app:v2", "two")) // takes the name
	res, err := a.ImageRemove(ctx, "localhost:5000/app:v1", client.ImageRemoveOptions{})
	if err != nil || !slices.Equal(res.Items, []image.DeleteResponse{{Untagged: "localhost:5000/app:v1"}}) {
		t.Errorf("%+v, %v", res.Items, err)
	}
	res, err = a.ImageRemove(ctx, "app:v1", client.ImageRemoveOptions{})
	if err != nil || !slices.Equal(res.Items, []image.DeleteResponse{{Untagged: "app:v1"}, {Deleted: img.ID}}) {
		t.Errorf("%+v, %v", res.Items, err)
	}
	if _, err := a.ImageInspect(ctx, img.ID); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if got := a.imageNames(nil); !slices.Equal(got, []string{"app:v2", enginetest.Busybox}) {
		t.Errorf("%v", got)
	}
}

// TestImageInUse: the last name of an image that a container uses stays; any other may go.
func TestImageInUse(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	stopped := a.run(shell("true")).id
	if _, err := a.ImageTag(ctx, client.ImageTagOptions{Source: enginetest.Busybox, Target: "other:v1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ImageRemove(ctx, "other:v1", client.ImageRemoveOptions{}); err != nil {
		t.Errorf("one of two names: %v", err)
	}
	refused := func(query string) {
		t.Helper()
		if got := a.do("DELETE", "/images/"+enginetest.Busybox+query, ""); got.status != http.StatusConflict || !strings.Contains(got.message, "uses the image") {
			t.Errorf("%s: %+v", query, got)
		}
	}
	refused("")
	up := a.up(sleeper("up"))
	refused("?force=1")
	if _, err := a.ImageTag(ctx, client.ImageTagOptions{Source: enginetest.Busybox, Target: "other:v1"}); err != nil {
		t.Fatal(err)
	}
	img, err := a.ImageInspect(ctx, "other:v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range append(img.RepoDigests, img.ID, strings.TrimPrefix(img.ID, "sha256:")[:12]) {
		if got := a.do("DELETE", "/images/"+key+"?force=1", ""); got.status != http.StatusConflict || !strings.Contains(got.message, "uses the image") {
			t.Errorf("%s: %+v", key, got)
		}
	}
	if _, err := a.ImageRemove(ctx, "other:v1", client.ImageRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ContainerRemove(ctx, up, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ImageRemove(ctx, enginetest.Busybox, client.ImageRemoveOptions{Force: true}); err != nil {
		t.Errorf("forced: %v", err)
	}
	if err := a.machine.Store.GC(ctx); err != nil {
		t.Fatal(err)
	}
	a.startContainer(stopped) // has its layers still
	if code := a.wait(stopped, "not-running")(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestMountedImageInUse: an image that a container has mounted is as much in use as the one it is made of.
func TestMountedImageInUse(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	a.load(enginetest.Archive(t, "mounted:v1", []enginetest.File{{Name: "f", Data: []byte("mounted\n")}}, ocispec.ImageConfig{}))
	s := shell("cat /m/f")
	s.host.Mounts = []mount.Mount{{Type: mount.TypeImage, Source: "mounted:v1", Target: "/m"}}
	id := a.run(s).id
	if got := a.do("DELETE", "/images/mounted:v1", ""); got.status != http.StatusConflict || !strings.Contains(got.message, id[:12]+" uses the image") {
		t.Errorf("%+v", got)
	}
	if _, err := a.ImagePrune(ctx, client.ImagePruneOptions{Filters: client.Filters{}.Add("dangling", "false")}); err != nil {
		t.Fatal(err)
	}
	a.startContainer(id)
	if code := a.wait(id, container.WaitConditionNotRunning)(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	a.remove(id, client.ContainerRemoveOptions{})
	if _, err := a.ImageRemove(ctx, "mounted:v1", client.ImageRemoveOptions{}); err != nil {
		t.Errorf("when nothing uses it: %v", err)
	}
}

// emptyTarBzip2 is an archive of nothing, which is recognized only when decompressed.
const emptyTarBzip2 = "\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\x59\x7b\xb8\xe4\x00\x00\x14\x50\x00\xc0\x00\x04\x00\x00\x08\x20\x00\x30\xcc\x05\x29\xa6\x13\x62\x27\x8b\xb9\x22\x9c\x28\x48\x2c\xbd\xdc\x72\x00"

func TestImagesRefused(t *testing.T) {
	a := newAPI(t)
	before := a.imageNames(nil)
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/images/nothing/json", "", 404, "No such image: nothing"},
		{"GET", "/images/team/nothing/json", "", 404, "No such image: team/nothing"},
		{"GET", "/images/nothing/history", "", 404, "No such image"},
		{"GET", "/images/nothing/get", "", 404, "No such image"},
		{"GET", "/images/get?names=nothing", "", 404, "No such image"},
		{"GET", "/images/get?names=" + enginetest.Busybox + "&names=nothing", "", 404, "No such image"},
		{"GET", "/images/get", "", 400, "no image named"},
		{"GET", "/images/get?names=" + enginetest.Busybox + "&platform=" + `{"os":"linux","architecture":"s390x"}`, "", 404, "platform linux/s390x"},
		{"GET", "/images/" + enginetest.Busybox + "/odd", "", 404, "does not serve"},
		{"POST", "/images/" + enginetest.Busybox + "/odd", "", 404, "does not serve"},
		{"GET", `/images/json?filters={"odd":["x"]}`, "", 400, `filter "odd"`},
		{"GET", `/images/json?filters={"dangling":["perhaps"]}`, "", 400, "dangling=perhaps"},
		{"POST", "/images/nothing/tag?repo=x", "", 404, "No such image"},
		{"POST", "/images/" + enginetest.Busybox + "/tag?repo=UPPER", "", 400, "UPPER"},
		{"POST", "/images/" + enginetest.Busybox + "/tag", "", 400, "image name"},
		{"POST", "/images/" + enginetest.Busybox + "/tag?repo=x&tag=a:b", "", 400, "image name"},
		{"DELETE", "/images/nothing", "", 404, "No such image"},
		{"POST", "/images/load", "", 400, "unrecognized image format"},
		{"POST", "/images/load", emptyTarBzip2, 400, "unrecognized image format"},
		{"POST", "/images/load", "\xfd7zXZ\x00", 501, "xz"},
		{"POST", "/images/load", "this is no archive, and long enough to be told from one: " + strings.Repeat("x", 1024), 400, "load images"},
		{"POST", "/images/create", "", 400, "image name"},
		{"POST", "/images/create?fromSrc=-", "", 400, "the archive is empty"},
		{"POST", "/images/create?fromImage=x&platform=a/b/c/d", "", 400, "platform"},
		{"POST", "/images/create?fromImage=localhost:1/x&tag=v1", "", 503, "localhost:1/x:v1"},
		{"POST", "/images/nothing/push?tag=v1", "", 404, "nothing:v1"},
		{"POST", "/images/" + enginetest.Busybox + "/push?platform=linux/s390x", "", 404, "platform linux/s390x"},
		{"GET", "/images/" + enginetest.Busybox + "/json?platform=linux/s390x", "", 404, "platform linux/s390x"},
		{"GET", "/images/" + enginetest.Busybox + "/get?platform=linux/amd64&platform=linux/s390x", "", 501, "more than one platform"},
		{"GET", "/images/search?term=x", "", 501, "searching"},
		{"POST", "/auth", `{"username":"u","password":"p","serveraddress":"localhost:1"}`, 503, "localhost:1"},
		{"POST", "/auth", "{}", 400, "no user name"},
		{"GET", "/distribution/localhost:1/x/json", "", 503, "localhost:1"},
		{"GET", "/distribution/x/odd", "", 404, "does not serve"},
	} {
		got := a.do(tt.method, tt.path, tt.body)
		if got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.path, got.status, got.message, tt.status, tt.says)
		}
	}
	if after := a.imageNames(nil); !slices.Equal(before, after) {
		t.Errorf("%v became %v", before, after)
	}
}

// TestUsageAndPrune: images that share a layer, a container and a volume of each state.
func TestUsageAndPrune(t *testing.T) {
	a := newAPI(t)
	ctx := t.Context()
	a.load(dataImage(t))
	used := spec{name: "used", config: container.Config{Image: "data:v1", Cmd: []string{"sh", "-c", "busybox head -c 100000 /dev/zero > /big; busybox head -c 5000 /dev/zero > /data/f"}, Labels: map[string]string{"keep": ""}}}
	used.host.Binds = []string{"named:/data"}
	a.wait(a.up(used), "")()
	if _, err := a.ContainerCommit(ctx, "used", client.ContainerCommitOptions{Reference: "made:v1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ContainerCommit(ctx, "used", client.ContainerCommitOptions{Comment: "nameless"}); err != nil {
		t.Fatal(err)
	}
	df, err := a.DiskUsage(ctx, client.DiskUsageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]image.Summary{}
	var sum int64
	for _, img := range df.Images.Items {
		sum += img.Size
		sizes[strings.Join(img.RepoTags, " ")] = img
	}
	if base := sizes["data:v1"]; len(df.Images.Items) != 4 || df.Images.TotalSize >= sum || base.SharedSize <= 0 || base.SharedSize >= base.Size || base.Containers != 1 ||
		sizes["made:v1"].SharedSize < base.SharedSize || sizes[enginetest.Busybox].SharedSize != 0 {
		t.Errorf("%+v", df.Images)
	}
	if c := df.Containers.Items; len(c) != 1 || c[0].SizeRw < 100000 || c[0].SizeRootFs < c[0].SizeRw+1<<20 {
		t.Errorf("%+v", c)
	}
	if v := df.Volumes; len(v.Items) != 2 || v.ActiveCount != 2 || v.TotalSize < 5000 || v.Reclaimable != 0 {
		t.Errorf("%+v", v)
	}
	if df, err := a.DiskUsage(ctx, client.DiskUsageOptions{Volumes: true}); err != nil || len(df.Images.Items) != 0 || len(df.Volumes.Items) != 2 {
		t.Errorf("volumes alone: %+v, %v", df, err)
	}
	for _, tt := range []struct {
		filters client.Filters
		gone    int
		left    []string
	}{
		{client.Filters{}.Add("until", "1h"), 0, []string{"<none>", "data:v1", enginetest.Busybox, "made:v1"}},
		{nil, 1, []string{"data:v1", enginetest.Busybox, "made:v1"}},
		{client.Filters{}.Add("dangling", "false").Add("label!", "keep"), 1, []string{"data:v1", "made:v1"}},
		{client.Filters{}.Add("dangling", "false"), 1, []string{"data:v1"}},
	} {
		res, err := a.ImagePrune(ctx, client.ImagePruneOptions{Filters: tt.filters})
		deleted := slices.DeleteFunc(slices.Clone(res.Report.ImagesDeleted), func(d image.DeleteResponse) bool { return d.Deleted == "" })
		if err != nil || len(deleted) != tt.gone || (res.Report.SpaceReclaimed > 0) != (tt.gone > 0) {
			t.Errorf("%v: %+v, %v", tt.filters, res, err)
		}
		if got := a.imageNames(nil); !slices.Equal(got, tt.left) {
			t.Errorf("%v: left is %v, want %v", tt.filters, got, tt.left)
		}
	}
	for _, tt := range []struct {
		filters client.Filters
		gone    int
	}{
		{client.Filters{}.Add("until", "1h"), 0}, {client.Filters{}.Add("label!", "keep"), 0}, {client.Filters{}.Add("label", "keep").Add("until", "0.001s"), 1},
	} {
		if res, err := a.ContainerPrune(ctx, client.ContainerPruneOptions{Filters: tt.filters}); err != nil || len(res.Report.ContainersDeleted) != tt.gone {
			t.Errorf("%v: %+v, %v", tt.filters, res, err)
		}
	}
	if got := a.do("POST", `/containers/prune?filters={"until":["yesterday"]}`, ""); got.status != 400 {
		t.Errorf("%+v", got)
	}
}
