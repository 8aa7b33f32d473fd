package term

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

func newTest() (*Terminal, *bytes.Buffer, *bytes.Buffer) {
	var out, err bytes.Buffer
	return New(nil, &out, &err, func(string) string { return "" }), &out, &err
}

func TestRows(t *testing.T) {
	term, out, _ := newTest()
	if err := term.Rows([]string{"NAME", "STATUS"}, [][]string{{"a", "Up"}, {"longer", "two\nlines"}}); err != nil {
		t.Fatal(err)
	}
	want := "NAME     STATUS\na        Up\nlonger   two lines\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestFail(t *testing.T) {
	err := fmt.Errorf("stop x: %w", fault.New(fault.NotFound, "no such container: x").Hint("list them with `ferry ps -a`"))
	for _, tc := range []struct {
		format            Format
		err               error
		wantOut, wantErrs string
	}{
		{Table, err, "", "error: stop x: no such container: x\nhint: list them with `ferry ps -a`\n"},
		{Table, errors.New("plain"), "", "error: plain\n"},
		{JSON, err, `{
  "error": {
    "code": "not_found",
    "message": "stop x: no such container: x",
    "hint": "list them with ` + "`ferry ps -a`" + `"
  }
}
`, ""},
		{YAML, errors.New("plain"), "error:\n  code: internal\n  message: plain\n", ""},
	} {
		term, out, errs := newTest()
		term.Fail(tc.format, tc.err)
		if diff := cmp.Diff([]string{tc.wantOut, tc.wantErrs}, []string{out.String(), errs.String()}); diff != "" {
			t.Errorf("%s: %s", tc.format, diff)
		}
	}
}

func TestProgressPlain(t *testing.T) {
	term, _, errs := newTest()
	p := term.Progress()
	p.Start("etcd")
	p.Start("images")
	p.Done("etcd", "12 ms")
	p.Fail("images", "")
	p.Close()
	if diff := cmp.Diff("etcd: done (12 ms)\nimages: failed\n", errs.String()); diff != "" {
		t.Error(diff)
	}
}

func TestParseFormat(t *testing.T) {
	if _, err := ParseFormat("xml"); !fault.Is(err, fault.Invalid) || fault.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

func TestRawAndSize(t *testing.T) {
	none, _, _ := newTest()
	restore, err := none.Raw()
	if err != nil {
		t.Fatal(err)
	}
	restore()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	defer tty.Close()
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	terminal := New(tty, tty, tty, os.Getenv)
	if w, h, ok := terminal.Size(); w != 80 || h != 24 || !ok {
		t.Errorf("Size = %d, %d, %v", w, h, ok)
	}
	echoes := func() bool {
		state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return state.Lflag&unix.ECHO != 0
	}
	if restore, err = terminal.Raw(); err != nil || echoes() {
		t.Errorf("Raw = %v, echo %v", err, echoes())
	}
	if restore(); !echoes() {
		t.Error("the terminal stays raw")
	}
}
