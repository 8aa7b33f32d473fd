package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestUnsynced: the build cache outlives the process and, once it has come to
// the disk, the machine; if the machine went down before, it begins anew.
func TestUnsynced(t *testing.T) {
	runnertest.NeedRoot(t)
	b := newBuilder(t)
	const steps = "RUN echo kept > /kept\n"
	marker := filepath.Join(b.opt.Root, unsyncedFile)
	marked := func() bool {
		_, err := os.Stat(marker)
		return err == nil
	}
	waits := func() (yes bool) {
		for _, db := range b.kit.unsynced.databases {
			if err := db.Update(func(tx *bolt.Tx) error { yes = !tx.DB().NoSync; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		return yes
	}
	if a := b.build("t=kept", steps); a.id == "" {
		t.Fatalf("%+v", a)
	}
	if !marked() || waits() {
		t.Errorf("right after a build: marker %v, commits wait for the disk: %v", marked(), waits())
	}
	for end := time.Now().Add(limit); marked(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the cache does not come to the disk")
		}
	}
	if !waits() {
		t.Error("commits do not wait for the disk though there is no marker")
	}
	for _, down := range []struct {
		why, boot string
		cached    bool
	}{{"the daemon restarted", "", true}, {"the daemon was killed", "this", true}, {"the machine went down", "another", false}} {
		// BuildKit keeps the sums of contexts by process, with the database that is closed next.
		if _, err := b.PruneCache(t.Context(), Prune{Filters: map[string][]string{"type": {"source.local"}}}); err != nil {
			t.Fatal(err)
		}
		b.stop()
		if marked() {
			t.Error("stopped, and not on the disk")
		}
		switch down.boot {
		case "this":
			boot, err := os.ReadFile(bootIDFile)
			if err == nil {
				err = os.WriteFile(marker, boot, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		case "another":
			if err := os.WriteFile(marker, []byte("another\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b.start()
		if a := b.build("t=kept", steps); a.id == "" || strings.Contains(a.text, "Using cache") != down.cached {
			t.Errorf("%s: the cache should be there: %v; %+v", down.why, down.cached, a)
		}
	}
}
