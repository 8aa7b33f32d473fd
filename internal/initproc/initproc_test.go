package initproc

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test's own program be the process 1 that is tested.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "--" {
		os.Exit(Main(os.Args, os.Stderr))
	}
	os.Exit(m.Run())
}

// under runs a command under init, which has the orphans of its descendants.
func under(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"--"}, args...)...)
	cmd.SysProcAttr = &unix.SysProcAttr{}
	return cmd
}

func TestExitCodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"true"}, 0, ""}, {[]string{"sh", "-c", "exit 7"}, 7, ""}, {[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"/no/such/program"}, 127, "no such file"}, {[]string{"no-such-program"}, 127, "not found"}, {[]string{file}, 126, "permission denied"},
	} {
		cmd := under(t, tt.args...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		_ = cmd.Run() // the code says it
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(errs.String(), tt.says) {
			t.Errorf("%v: %d %s", tt.args, code, errs.String())
		}
	}
	if code := Main([]string{"init", "true"}, &bytes.Buffer{}); code != codeUsage {
		t.Errorf("without --: %d", code)
	}
}

// TestSignals: a signal goes on to the program, whose end is init's.
func TestSignals(t *testing.T) {
	cmd := under(t, "sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.01; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 42 {
		t.Errorf("%v", cmd.ProcessState)
	}
}
