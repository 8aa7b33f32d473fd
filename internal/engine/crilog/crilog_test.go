package crilog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var data []byte
	for _, line := range lines {
		text, partial := strings.CutSuffix(line, "…")
		data = AppendEntry(data, start, "stdout", []byte(text), partial)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
}

func TestParseIsAppendBackwards(t *testing.T) {
	for _, want := range []Entry{
		{start, "stdout", false, []byte("hello world")}, {start, "stderr", true, []byte("  spaces ")}, {start, "stdout", false, []byte{}},
	} {
		line := AppendEntry(nil, want.Time, want.Stream, want.Content, want.Partial)
		got, err := Parse(line)
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("%s: %v\n%s", line, err, cmp.Diff(want, got))
		}
	}
	for _, bad := range []string{"", "x", "2026-01-02T03:04:05Z stdin F x", "yesterday stdout F x"} {
		if e, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, e)
		}
	}
}

func TestReadTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var all []string
	for i := range 5000 {
		all = append(all, fmt.Sprint("line ", i))
	}
	write(t, path, all...)
	for _, tail := range []int{-1, 0, 1, 3, 4999, 5000, 6000} {
		var got []string
		if err := Read(t.Context(), path, Options{Tail: tail}, func(e Entry) error { got = append(got, string(e.Content)); return nil }); err != nil {
			t.Fatal(err)
		}
		want := all
		if tail >= 0 && tail < len(all) {
			want = all[len(all)-tail:]
		}
		if len(got) != len(want) || len(want) > 0 && (got[0] != want[0] || got[len(got)-1] != want[len(want)-1]) {
			t.Errorf("tail %d: %d lines", tail, len(got))
		}
	}
}

func TestFollowAcrossRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	got, ended, done := make(chan string, 100), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- Read(context.WithoutCancel(t.Context()), path, Options{Tail: -1, Follow: true, Ended: ended}, func(e Entry) error {
			got <- string(e.Content)
			return nil
		})
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case line := <-got:
			if line != want {
				t.Fatalf("got %q, want %q", line, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no %q", want)
		}
	}
	write(t, path, "one")
	expect("one")
	write(t, path, "two")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path, "three")
	expect("two")
	expect("three")
	write(t, path, "four")
	close(ended)
	expect("four")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.000000006Z stdout F hello\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if e, err := Parse(line); err == nil && e.Stream != "stdout" && e.Stream != "stderr" {
			t.Errorf("%q: %+v", line, e)
		}
	})
}

// TestReadAfterClockPutBack: what was written once the clock was put back is of
// the time before, and is found by that, in whatever place.
func TestReadAfterClockPutBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	var data []byte
	for _, second := range []int64{1, 2, 1002, 1003, 3, 4} {
		data = AppendEntry(data, time.Unix(second, 0), "stdout", []byte(fmt.Sprint(second)), false)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		opt  Options
		want string
	}{
		{Options{Tail: -1}, "1 2 1002 1003 3 4"}, {Options{Tail: -1, Since: time.Unix(3, 0)}, "1002 1003 3 4"},
		{Options{Tail: -1, Until: time.Unix(100, 0)}, "1 2 3 4"}, {Options{Tail: 4, Until: time.Unix(100, 0)}, "3 4"},
		{Options{Tail: -1, Since: time.Unix(2, 0), Until: time.Unix(3, 0)}, "2 3"},
		{Options{Tail: -1, Until: time.Unix(100, 0), Follow: true}, "1 2"}, // who follows has come to the end
	} {
		var got []string
		if err := Read(t.Context(), path, tt.opt, func(e Entry) error { got = append(got, string(e.Content)); return nil }); err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: %q, %v, want %q", tt.opt, got, err, tt.want)
		}
	}
}

// TestReadRotated: the files that were rotated away come first, and count for the tail.
func TestReadRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	for i, name := range []string{path + ".2", path + ".1", path} {
		var data []byte
		for n := range 2 {
			data = AppendEntry(data, time.Unix(int64(2*i+n), 0), "stdout", []byte(strconv.Itoa(2*i+n)), false)
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		opt  Options
		want string
	}{
		{Options{Tail: -1, Rotated: true}, "012345"}, {Options{Tail: -1}, "45"}, {Options{Tail: 2, Rotated: true}, "45"},
		{Options{Tail: 3, Rotated: true}, "345"}, {Options{Tail: 5, Rotated: true}, "12345"}, {Options{Tail: 50, Rotated: true}, "012345"},
		{Options{Tail: 0, Rotated: true}, ""}, {Options{Tail: -1, Rotated: true, Since: time.Unix(1, 0), Until: time.Unix(2, 0)}, "12"},
	} {
		got := ""
		if err := Read(t.Context(), path, tt.opt, func(e Entry) error { got += string(e.Content); return nil }); err != nil || got != tt.want {
			t.Errorf("%+v: %q, %v, want %q", tt.opt, got, err, tt.want)
		}
	}
}
