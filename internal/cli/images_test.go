package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	imageapi "github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

func TestImages(t *testing.T) {
	running(t)
	dir := t.TempDir()
	archive := filepath.Join(dir, "app.tar")
	app := enginetest.Archive(t, "ferry.test/app:v1", []enginetest.File{{Name: "file", Data: []byte("x")}}, ocispec.ImageConfig{Cmd: []string{"/file"}})
	if err := os.WriteFile(archive, app, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken.tar")
	write(t, broken, strings.Repeat("no archive", 200))
	saved := filepath.Join(dir, "saved.tar")
	for _, tt := range []struct {
		line     string
		code     int
		out, err string
	}{
		{"images", 0, `NAME +ID +AGE +SIZE\n` + image + ` +[0-9a-f]{12} +- +[0-9.]+MB\n`, ""},
		{"load -i " + archive, 0, "Loaded image: ferry.test/app:v1\n", ""},
		{"load -i " + broken, 2, "", "error: load images: .*\nhint: the file must be an OCI layout"},
		{"tag ferry.test/app:v1 other:v1", 0, "", ""},
		{"tag nothing other:v1", 5, "", "error: No such image: nothing"},
		{"tag other:v1 UPPER", 2, "", "error: image name UPPER: .*must be lowercase\nhint: names look like"},
		{"pull UPPER", 2, "", "error: image name UPPER"},
		{"push a:b:c", 2, "", "error: image name a:b:c"},
		{"images", 0, `(?s)NAME.*\nother:v1 .*\nferry.test/app:v1 .*`, ""},
		{"save -o " + saved + " other:v1", 0, "", ""},
		{"save -o " + filepath.Join(dir, "never.tar") + " nothing", 5, "", "error: No such image: nothing"},
		{"save nothing", 5, "", "error: No such image: nothing"},
		{"rmi other:v1", 0, "untagged other:v1\n", ""},
		{"rmi nothing ferry.test/app:v1", 5, "untagged ferry.test/app:v1\ndeleted sha256:[0-9a-f]{64}\n", "error: No such image: nothing"},
		{"load -i " + saved, 0, "Loaded image: other:v1\n", ""},
		{"run --name user " + image + " true", 0, "", ""},
		{"rmi " + image, 1, "", "error: unable to remove .*uses the image\nhint: remove the container first"},
		{"rmi -f " + image, 0, "untagged " + image + "\ndeleted sha256:.*\n", ""},
		{"rm user", 0, "user\n", ""},
		{"pull localhost:1/x", 6, "", "error: pull localhost:1/x.*\nhint: the registry cannot be reached"},
		{"push other:v1", 6, "(?s).*", "error: .*"},
		{"push nothing", 5, "", "error: no image has the name .*nothing"},
		{"pull --platform a/b/c/d x", 2, "", "error: platform .*\nhint: platforms look like"},
		{"image ls", 0, `(?s)NAME.*other:v1 .*`, ""},
		{"image inspect other:v1", 0, `(?s)\{.*"RepoTags".*other:v1.*`, ""},
		{"image inspect nothing", 5, "", "error: No such image"},
		{"image history other:v1", 0, "AGE +SIZE +CREATED BY\n", ""},
		{"image tag other:v1 more:v1", 0, "", ""},
		{"image prune", 0, "", "0B freed\n"},
		{"image prune --all", 0, `(?s)untagged (other|more):v1\n.*deleted sha256:[0-9a-f]{64}\n`, "freed\n"},
		{"image rm other:v1", 5, "", "error: No such image"},
		{"image bootstrap fedora:41", 2, "", "error: bootstrap fedora:41: the name must be"},
		{"image bootstrap debian:../x", 2, "", "error: bootstrap"},
		{"image bootstrap debian", 2, "", "error: bootstrap"},
	} {
		t.Run(tt.line, func(t *testing.T) { ferry(t, strings.Fields(tt.line)...).wants(t, tt.code, tt.out, tt.err) })
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v: want the three archives", entries, err)
	}
}

// TestPipes: an archive goes through standard streams.
func TestPipes(t *testing.T) {
	running(t)
	ferry(t, "tag", image, "copy:v1").wants(t, 0, "", "")
	r := ferry(t, "save", "copy:v1")
	if r.code != 0 || len(r.out) < 1<<20 {
		t.Fatalf("%d bytes, code %d, %q", len(r.out), r.code, r.err)
	}
	ferry(t, "rmi", "copy:v1").wants(t, 0, "untagged copy:v1\n", "")
	ferryIn(t, bytes.NewReader([]byte(r.out)), "load").wants(t, 0, "Loaded image: copy:v1\n", "")
	var list []imageapi.Summary
	if err := json.Unmarshal([]byte(ferry(t, "images", "-o", "json").out), &list); err != nil || len(list) != 1 || len(list[0].RepoTags) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}
