package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFiles copies, commits, exports and imports, and keeps volumes.
func TestFiles(t *testing.T) {
	m := running(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "from here\n")
	if err := os.Mkdir(filepath.Join(dir, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "deep", "f"), "deep\n")
	if err := os.Symlink("file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		line, script string
		code         int
		out, err     string
	}{
		{"volume create -l a=b data", "", 0, "data\n", ""},
		{"volume create --opt type=nfs --opt device=:/x remote", "", 1, "", `error: volumes of type "nfs" are not supported\nhint: `},
		{"volume create a b", "", 2, "", "unexpected argument"},
		{"volume inspect data", "", 0, `(?s).*"a": "b".*`, ""},
		{"volume ls", "", 0, `NAME +CREATED +PATH\ndata +\S+ +/\S+\n`, ""},
		{"run --name box -v data:/data -v /own " + image + " sh -c SCRIPT", "echo kept > /data/f; echo new > /new; ln -s /data /l", 0, "", ""},
		{"run --rm --volumes-from box:ro --mount type=volume,src=data,dst=/again,volume-nocopy " + image + " sh -c SCRIPT", "cat /data/f /again/f; touch /data/x || echo refused", 0, "kept\nkept\nrefused\n", "Read-only"},
		{"volume rm data", "", 1, "", "error: remove data: volume is in use"},
		{"cp box:/data/f " + dir + "/out", "", 0, "", ""},
		{"cp " + dir + "/file box:/tmp/renamed", "", 0, "", ""},
		{"cp " + dir + "/deep box:/tmp", "", 0, "", ""},
		{"cp " + dir + "/deep/. box:/data", "", 0, "", ""},
		{"cp -L " + dir + "/link box:/l", "", 0, "", ""}, // to where the link leads
		{"cp box:/data " + dir + "/all", "", 0, "", ""},
		{"cp -L box:/l " + dir + "/followed", "", 0, "", ""},
		{"cp box:/none " + dir, "", 5, "", "error: Could not find the file /none in container box"},
		{"cp " + dir + "/none box:/", "", 5, "", "error: cp: .*no such file"},
		{"cp " + dir + "/deep box:/etc/passwd", "", 2, "", "error: cp: cannot copy directory"},
		{"cp " + dir + " " + dir, "", 2, "", "error: cp: neither .* names a container"},
		{"cp box:/a other:/b", "", 1, "", "error: cp: copying from one container to another"},
		{"diff box", "", 0, `(?s).*A /new\n.*C /tmp\nA /tmp/deep\n.*`, ""},
		{"commit -m words -c SCRIPT box made:v1", `CMD ["cat", "/tmp/renamed"]`, 0, "sha256:.*\n", ""},
		{"commit -c SCRIPT box", "RUN true", 2, "", "error: .*RUN is not a valid change"},
		{"commit box UPPER", "", 2, "", "error: image name UPPER"},
		{"run --rm made:v1", "", 0, "from here\n", ""},
		{"export -o " + dir + "/root.tar box", "", 0, "", ""},
		{"import -c SCRIPT " + dir + "/root.tar flat", `CMD ["cat", "/tmp/renamed"]`, 0, "sha256:.*\n", ""},
		{"import " + dir + "/none flat", "", 5, "", "error: import: .*no such file"},
		{"run --rm flat", "", 0, "from here\n", ""},
		{"system df", "", 0, `(?s)KIND .*images +3 +1 .*containers +1 +0 .*volumes +2 +2 .*build cache +0 .*`, ""},
		{"rm -v box", "", 0, "box\n", ""},
		{"volume prune", "", 0, "", "volumes: 0B reclaimed"},
		{"system prune -a --volumes", "", 0, `(?s).*image flat:latest\n.*`, "reclaimed"},
		{"volume prune -a", "", 0, "volume data\n", "volumes: 15B reclaimed"},
		{"images", "", 0, "NAME .*\n", ""},
	} {
		t.Run(tt.line, func(t *testing.T) { on(t, tt.line, tt.script).wants(t, tt.code, tt.out, tt.err) })
	}
	for name, want := range map[string]string{"out": "kept\n", "all/f": "deep\n", "all/link": "from here\n", "followed/f": "deep\n"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	none(t, m)
}
