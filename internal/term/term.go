// Package term writes what people and their scripts read: tables, progress,
// errors, JSON and YAML.
//
// cli and the commands under cmd import it. It knows nothing of Ferry's nouns
// and it is not a logger: results go to standard output, progress and errors to
// standard error. Colour and redrawn lines appear on a terminal alone, and
// never when NO_COLOR is set or TERM is dumb.
package term

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"

	xterm "golang.org/x/term"
	"sigs.k8s.io/yaml"

	"github.com/ferryos/ferry/internal/fault"
)

// Format is how a command that reads shows its result.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// ParseFormat returns the format of that name.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case Table, JSON, YAML:
		return f, nil
	}
	return "", fault.New(fault.Invalid, "output format %q is not known", s).Hint("use one of table, json, yaml")
}

// Colour is one of the few colours the terminal printer uses.
type Colour string

// The colours, as SGR parameters.
const (
	Bold   Colour = "1"
	Dim    Colour = "2"
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
)

// Terminal is a process's three streams and what they can show.
type Terminal struct {
	In       io.Reader
	Out, Err io.Writer

	outTTY, errTTY bool
	colour         bool
}

// New returns the Terminal of the streams; getenv is os.Getenv outside tests.
// A stream is a terminal only if it is an *os.File open on one.
func New(in io.Reader, out, err io.Writer, getenv func(string) string) *Terminal {
	t := &Terminal{In: in, Out: out, Err: err, outTTY: isTTY(out), errTTY: isTTY(err)}
	dumb := getenv("TERM") == "dumb"
	t.colour = getenv("NO_COLOR") == "" && !dumb
	if dumb { // cannot redraw a line either
		t.outTTY, t.errTTY = false, false
	}
	return t
}

func isTTY(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && xterm.IsTerminal(int(f.Fd()))
}

// InputFile returns standard input if it is a terminal, else nil.
func (t *Terminal) InputFile() *os.File {
	if f, ok := t.In.(*os.File); ok && isTTY(f) {
		return f
	}
	return nil
}

// OutputFile returns standard output if it is a terminal, else nil.
func (t *Terminal) OutputFile() *os.File {
	if f, ok := t.Out.(*os.File); ok && isTTY(f) {
		return f
	}
	return nil
}

// Size returns the size of the terminal that standard output is, if it is one.
func (t *Terminal) Size() (width, height int, ok bool) {
	f := t.OutputFile()
	if f == nil {
		return 0, 0, false
	}
	width, height, err := xterm.GetSize(int(f.Fd()))
	return width, height, err == nil
}

// Raw makes the terminal on standard input pass every key on untouched, until
// restore. Without a terminal there both do nothing.
func (t *Terminal) Raw() (restore func(), err error) {
	f := t.InputFile()
	if f == nil {
		return func() {}, nil
	}
	state, err := xterm.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { _ = xterm.Restore(int(f.Fd()), state) }), nil
}

// Interactive reports whether progress on standard error may redraw lines.
func (t *Terminal) Interactive() bool { return t.errTTY }

// Paint colours s for standard output; PaintErr for standard error.
func (t *Terminal) Paint(c Colour, s string) string { return paint(t.colour && t.outTTY, c, s) }

// PaintErr colours s for standard error.
func (t *Terminal) PaintErr(c Colour, s string) string { return paint(t.colour && t.errTTY, c, s) }

func paint(on bool, c Colour, s string) string {
	if !on || s == "" {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
}

// Printf writes to standard output.
func (t *Terminal) Printf(format string, args ...any) { fmt.Fprintf(t.Out, format, args...) }

// Notef writes one line for the person, not for a script, to standard error.
func (t *Terminal) Notef(format string, args ...any) { fmt.Fprintf(t.Err, format+"\n", args...) }

// Rows prints a table to standard output: the header, then the rows, each cell
// without line breaks. A nil header prints rows alone.
func (t *Terminal) Rows(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(t.Out, 0, 0, 3, ' ', 0)
	if header != nil {
		fmt.Fprintln(w, strings.Join(header, "\t"))
	}
	clean := strings.NewReplacer("\t", " ", "\n", " ")
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, clean.Replace(cell))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// Value prints v to standard output as JSON (two spaces of indentation) or YAML.
func (t *Terminal) Value(f Format, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if f == YAML {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return fmt.Errorf("encode the result: %w", err)
		}
		_, err = t.Out.Write(data)
		return err
	}
	_, err = t.Out.Write(append(data, '\n'))
	return err
}

// failure is an error as it is printed with -o json or -o yaml.
type failure struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
	} `json:"error"`
}

// Fail reports err: for a table as lines on standard error, else as an object
// on standard output, so that a program that reads it gets nothing else.
func (t *Terminal) Fail(f Format, err error) {
	if f == JSON || f == YAML {
		var v failure
		v.Error.Code, v.Error.Message, v.Error.Hint = fault.KindOf(err).String(), err.Error(), fault.HintOf(err)
		if t.Value(f, v) == nil {
			return
		}
	}
	fmt.Fprintf(t.Err, "%s %s\n", t.PaintErr(Red, "error:"), strings.TrimSpace(err.Error()))
	if hint := fault.HintOf(err); hint != "" {
		fmt.Fprintf(t.Err, "%s %s\n", t.PaintErr(Yellow, "hint:"), hint)
	}
}
