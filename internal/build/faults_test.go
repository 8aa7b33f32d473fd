package build

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestDiskFull: a step, a context and an image that do not fit fail and say so;
// once there is room, builds go on, on what was built before.
func TestDiskFull(t *testing.T) {
	runnertest.NeedRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=96m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", disk)
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBuilder(t)
	const kept = "RUN echo kept > /kept\n"
	if a := b.build("t=kept", kept); a.id == "" {
		t.Fatalf("%+v", a)
	}
	for range 2 {
		if a := b.build("", kept+"RUN dd if=/dev/zero of=/big bs=1M count=200"); !noSpace(a) {
			t.Errorf("step: %+v", a)
		}
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: 120 << 20}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 120<<20)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if a := b.post(t.Context(), "", &buf); a.status != 503 || !strings.Contains(a.text, "no space left on device") {
			t.Errorf("context: %+v", a)
		}
		// Fits as a file, and not as a layer beside it: what is random does not compress.
		if a := b.build("t=big", kept+"RUN dd if=/dev/urandom of=/big bs=1M count=50"); !noSpace(a) {
			t.Errorf("image: %+v", a)
		}
		if b.steps() != 0 || b.stepMounts() != 0 {
			t.Error("a step or its root is left")
		}
	}
	if err := os.Remove(ballast); err != nil { // databases need room to shrink
		t.Fatal(err)
	}
	if _, err := b.PruneCache(t.Context(), Prune{All: true}); err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start() // the cache's databases are sound
	if a := b.build("t=small", kept+"RUN cat /kept"); !strings.Contains(a.text, "\nkept\n") || a.id == "" {
		t.Errorf("with room again: %+v", a)
	}
}

// noSpace reports a build that failed because the disk is full, and says so.
func noSpace(a answer) bool {
	return a.id == "" && strings.Contains(strings.ToLower(a.text+a.err), "no space left on device")
}
