package contextkey

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// contextOf makes a context of files: a name and content each.
func contextOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	return dir
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// keyOf is the key some time after the last change.
func keyOf(t *testing.T, dir, dockerfile, settings string) string {
	t.Helper()
	k, err := of(dir, dockerfile, []byte(settings), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKey(t *testing.T) {
	dir := contextOf(t, map[string]string{"Dockerfile": "FROM scratch", "a/b": "1", "c": "2", "ignored/x": "3", "ignored/kept": "4", "d/ignored": "5",
		".dockerignore": "ignored\n!ignored/kept\n"})
	dockerfile := filepath.Join(dir, "Dockerfile")
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	old := keyOf(t, dir, dockerfile, "")
	for _, step := range []struct {
		what    string
		do      func() error
		changes bool
	}{
		{"nothing", func() error { return nil }, false},
		{"a file that is left out", func() error { return os.WriteFile(path("ignored/x"), []byte("4"), 0o644) }, false},
		{"a new file that is left out", func() error { return os.WriteFile(path("ignored/y"), nil, 0o644) }, true}, // the directory itself counts
		{"a file that is kept from being left out", func() error { return os.WriteFile(path("ignored/kept"), []byte("5"), 0o644) }, true},
		{"a file of the same size and time", func() error {
			st, err := os.Stat(path("c"))
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(path("c"), []byte("3"), 0o644), os.Chtimes(path("c"), st.ModTime(), st.ModTime()))
		}, true},
		{"permissions", func() error { return os.Chmod(path("a/b"), 0o755) }, true},
		{"a name", func() error { return os.Rename(path("a/b"), path("a/e")) }, true},
		{"a link", func() error { return errors.Join(os.Remove(path("link")), os.Symlink("b", path("link"))) }, true},
		{"a new file", func() error { return os.WriteFile(path("new"), nil, 0o644) }, true},
		{"a file less", func() error { return os.Remove(path("new")) }, true},
		{"what is left out", func() error { return os.WriteFile(path(".dockerignore"), []byte("ignored"), 0o644) }, true},
		{"a file in a directory left out", func() error { return os.WriteFile(path("ignored/kept"), []byte("6"), 0o644) }, false},
		{"a new file in a directory left out", func() error { return os.WriteFile(path("ignored/z"), nil, 0o644) }, false},
		{"a list of the Dockerfile's own", func() error { return os.WriteFile(dockerfile+".dockerignore", nil, 0o644) }, true},
		{"a file in a directory that the context's list leaves out", func() error { return os.WriteFile(path("ignored/kept"), []byte("7"), 0o644) }, true},
		{"the Dockerfile", func() error { return os.WriteFile(dockerfile, []byte("FROM other!!"), 0o644) }, true},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		now := keyOf(t, dir, dockerfile, "")
		if (now != old) != step.changes {
			t.Errorf("%s: the key changes: %v", step.what, now != old)
		}
		old = now
	}
	if keyOf(t, dir, dockerfile, "other settings") == old {
		t.Error("other settings, and the same key")
	}
	moved := dir + "-moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(moved) })
	if err := os.Symlink(moved, dir); err != nil {
		t.Fatal(err)
	}
	if keyOf(t, moved, filepath.Join(moved, "Dockerfile"), "") != keyOf(t, dir, filepath.Join(dir, "Dockerfile"), "") {
		t.Error("a link to the context has another key")
	}
}

// TestNoKey: there is no key where one could be the same for another context.
func TestNoKey(t *testing.T) {
	dir := contextOf(t, map[string]string{"Dockerfile": "FROM scratch", "a": "1"})
	dockerfile := filepath.Join(dir, "Dockerfile")
	if _, err := Of(dir, dockerfile, nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("right after a change: %v", err)
	}
	if err := os.Chtimes(filepath.Join(dir, "a"), time.Now().Add(time.Hour), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := of(dir, dockerfile, nil, time.Now().Add(time.Minute)); !errors.Is(err, ErrNoKey) {
		t.Errorf("a change in the future: %v", err)
	}
	for what, file := range map[string]string{"absent": "none", "a directory": "."} {
		if k, err := Of(dir, filepath.Join(dir, file), nil); err == nil {
			t.Errorf("the Dockerfile is %s: %s", what, k)
		}
	}
	if err := os.Symlink("Dockerfile", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := of(dir, filepath.Join(dir, "link"), nil, time.Now().Add(time.Minute)); !errors.Is(err, ErrNoKey) {
		t.Errorf("the Dockerfile is a link: %v", err)
	}
	if k, err := Of(filepath.Join(dir, "none"), dockerfile, nil); err == nil {
		t.Errorf("there is no context: %s", k)
	}
}

func TestRecent(t *testing.T) {
	now := time.Now()
	for _, step := range []struct {
		nanosecond int
		age        time.Duration
		recent     bool
	}{{1, margin + time.Second, false}, {123456789, time.Second, false}, {123456789, 10 * time.Millisecond, true}, {0, time.Second, true}, {20_000_000, time.Second, true}, {0, 3 * time.Second, false}} {
		changed := now.Truncate(time.Second).Add(time.Duration(step.nanosecond))
		k := key{now: changed.Add(step.age)}
		if k.recent(changed) != step.recent {
			t.Errorf("changed at %d ns, %v ago: recent is %v", step.nanosecond, step.age, !step.recent)
		}
	}
}
