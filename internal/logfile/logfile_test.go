package logfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func readAll(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := create(t, path)
	w, ok := Bounded(f, path).(*rotating)
	if !ok {
		t.Fatal("the log is not bounded")
	}
	w.maxBytes = 20
	for i := range 9 {
		fmt.Fprintf(w, "line %d\n", i) // 7 bytes, two a file
		if got := readAll(t, path); !strings.HasSuffix(got, fmt.Sprintf("line %d\n", i)) {
			t.Errorf("after line %d the log is %q", i, got)
		}
	}
	fmt.Fprint(f, "panic: what goes past the writer\n") // counts as well
	fmt.Fprint(w, "last\n")
	for name, want := range map[string]string{
		path: "last\n", path + ".1": "line 8\npanic: what goes past the writer\n", path + ".2": "line 6\nline 7\n",
	} {
		if got := readAll(t, name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) != Files {
		t.Errorf("%v, %v; want %d files", files, err, Files)
	}
}

func TestKeepsWhatCannotBeRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := Bounded(create(t, path), path).(*rotating)
	w.maxBytes = 1000
	if err := os.Mkdir(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		fmt.Fprintln(w, "line")
	}
	if got := readAll(t, path); strings.Count(got, "line\n") != 300 || strings.Count(got, "rotate log:") != 1 {
		t.Errorf("log: %q", got)
	}
}

func TestLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "log"), create(t, filepath.Join(dir, "other"))
	for range 2 { // without the file, and with it
		for _, w := range []io.Writer{other, &bytes.Buffer{}} {
			if Bounded(w, path) != w {
				t.Errorf("%T, which is not the log, would be rotated", w)
			}
		}
		create(t, path)
	}
}

// TestDaemon runs a program as `ferry up` does, both outputs to the log.
func TestDaemon(t *testing.T) {
	path := os.Getenv("FERRY_LOGFILE_TEST")
	if path != "" {
		w := Bounded(os.Stderr, path)
		line := []byte(strings.Repeat("x", 1023) + "\n")
		for range (Files*MaxBytes + MaxBytes/2) / len(line) {
			w.Write(line)
		}
		fmt.Println("printed")
		panic("the end")
	}
	path = filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDaemon$")
	cmd.Env = append(os.Environ(), "FERRY_LOGFILE_TEST="+path)
	log := create(t, path)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err == nil {
		t.Error("the program has not ended in a panic")
	}
	if got := readAll(t, path); !strings.Contains(got, "printed\n") || !strings.Contains(got, "panic: the end") {
		t.Errorf("the log ends in %q", got[max(0, len(got)-200):])
	}
	for _, name := range []string{path, path + ".1", path + ".2"} {
		if st, err := os.Stat(name); err != nil || st.Size() > MaxBytes {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) != Files {
		t.Errorf("%v, %v; want %d files", files, err, Files)
	}
}
