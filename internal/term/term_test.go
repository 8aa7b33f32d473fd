package term

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

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
