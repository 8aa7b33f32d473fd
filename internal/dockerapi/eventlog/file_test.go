package eventlog

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/events"
)

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// wants checks that a log has the events of these numbers, both included.
func wants(t *testing.T, l *Log, first, last int64) {
	t.Helper()
	got, next := l.After(0)
	if len(got) != int(last-first+1) || int(next) < len(got) {
		t.Fatalf("%d events, next %d, want %d to %d", len(got), next, first, last)
	}
	for i, m := range got {
		if m.TimeNano != first+int64(i) {
			t.Fatalf("event %d is %d, of %d to %d", i, m.TimeNano, first, last)
		}
	}
}

// TestKept: who comes after is told what was before, as it was.
func TestKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "events")
	l := open(t, dir)
	first := events.Message{Type: events.ContainerEventType, Action: events.ActionDie, Scope: "local", Time: 5, TimeNano: 1,
		Actor: events.Actor{ID: "c", Attributes: map[string]string{"exitCode": "3", "label": "a\nb\x00 \u2028"}}}
	l.Publish(first)
	l.Publish(message(2)) // and is killed
	again := open(t, dir)
	wants(t, again, 1, 2)
	if got, _ := again.After(0); got[0].Actor.Attributes["label"] != first.Actor.Attributes["label"] || got[0].Action != first.Action || got[0].Time != 5 {
		t.Errorf("%+v", got[0])
	}
	again.Publish(message(3))
	wants(t, open(t, dir), 1, 3)
}

// TestBounded: however many there are, what is remembered is kept and the files
// do not grow.
func TestBounded(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	const all = 3*kept + 7
	for n := range all {
		l.Publish(message(n + 1))
	}
	wants(t, open(t, dir), all-kept+1, all)
	size := 0
	for _, name := range []string{newerFile, olderFile} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += strings.Count(string(data), "\n")
	}
	if size > 2*kept+1 {
		t.Errorf("%d lines", size)
	}
	long := message(all + 1)
	long.Actor.Attributes = map[string]string{"label": strings.Repeat("x", maxFile)}
	l.Publish(long)
	l.Publish(message(all + 2))
	if st, err := os.Stat(filepath.Join(dir, newerFile)); err != nil || st.Size() > maxFile {
		t.Errorf("%v, %v", st, err)
	}
}

// TestTorn: the daemon was killed in the middle of a line.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.Publish(message(1))
	f, err := os.OpenFile(filepath.Join(dir, newerFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(`{"Type":"contai`)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	wants(t, again, 1, 1)
	again.Publish(message(2))
	wants(t, open(t, dir), 1, 2)
}

// TestNoRoom: events are told also where they cannot be kept, and kept again
// where they can.
func TestNoRoom(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.Publish(message(1))
	if err := l.file.f.Close(); err != nil { // as good as a full disk
		t.Fatal(err)
	}
	l.Publish(message(2))
	l.Publish(message(3))
	wants(t, l, 1, 3)
	got, _ := open(t, dir).After(0)
	if len(got) != 2 || got[0].TimeNano != 1 || got[1].TimeNano != 3 {
		t.Errorf("%+v", got)
	}
	if _, err := Open(filepath.Join(dir, newerFile), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a file was taken for a directory")
	}
}

func BenchmarkPublish(b *testing.B) {
	l, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for n := range b.N {
		l.Publish(message(n + 1))
	}
}
