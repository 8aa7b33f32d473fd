package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns both sides of a pseudo terminal: the person's and the program's.
func openTerminal(t *testing.T, cols, rows uint16) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo terminals: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd()) // makes it blocking, which is well
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		t.Fatal(err)
	}
	return person, program
}

// session is ferry at a terminal.
type session struct {
	t      *testing.T
	person *os.File
	shown  lockedBuffer
	code   chan int
}

func atTerminal(t *testing.T, env map[string]string, args ...string) (*session, *os.File) {
	t.Helper()
	person, program := openTerminal(t, 100, 30)
	s := &session{t: t, person: person, code: make(chan int, 1)}
	go io.Copy(&s.shown, person) // ends when the terminal is closed
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	go func() {
		defer cancel()
		s.code <- Main(ctx, args, program, program, program, func(name string) string { return env[name] })
	}()
	return s, program
}

func (s *session) expect(text string) {
	s.t.Helper()
	for end := time.Now().Add(limit); !strings.Contains(s.shown.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("no %q in %q", text, s.shown.String())
		}
	}
}

func (s *session) ends(code int) {
	s.t.Helper()
	select {
	case got := <-s.code:
		if got != code {
			s.t.Errorf("code %d, want %d, after %q", got, code, s.shown.String())
		}
	case <-time.After(limit):
		s.t.Fatalf("it goes on: %q", s.shown.String())
	}
}

// TestTerminal is ferry run -it and ferry exec -it: keys go through untouched,
// the size is the terminal's, which afterwards is as before.
func TestTerminal(t *testing.T) {
	m := running(t)
	ferry(t, "run", "-d", "--name", "web", image, "sleep", "1000").wants(t, 0, ".*\n", "")
	for _, args := range [][]string{{"run", "--rm", "-it", image}, {"exec", "-it", "web"}} {
		t.Run(args[0], func(t *testing.T) {
			s, program := atTerminal(t, nil, append(args, "sh", "-c", `stty size; trap 'echo interrupted' INT; read x; echo "<$x>"; read x; exit 5`)...)
			before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cooked := before.Lflag | unix.ICANON | unix.ECHO | unix.ISIG
			s.expect("30 100")
			io.WriteString(s.person, "typed\n")
			s.expect("<typed>")
			// Ctrl-C is the program's. One that comes while the shell is about to read is
			// told of only once that has read something: a person would press it again.
			for end := time.Now().Add(limit); !strings.Contains(s.shown.String(), "interrupted") && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				io.WriteString(s.person, "\x03")
			}
			s.expect("interrupted")
			io.WriteString(s.person, "\n")
			s.ends(5)
			after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
			if err != nil || after.Lflag&cooked != cooked&after.Lflag || after.Lflag&unix.ICANON == 0 || after.Lflag&unix.ECHO == 0 {
				t.Errorf("the terminal is left raw: %x, %v", after.Lflag, err)
			}
		})
	}
	ferry(t, "rm", "-f", "web").wants(t, 0, "web\n", "")
	none(t, m)
}

// TestColour: a terminal gets colours, unless the person wants none.
func TestColour(t *testing.T) {
	notRunning(t)
	for _, tt := range []struct {
		env    map[string]string
		colour bool
	}{{nil, true}, {map[string]string{"NO_COLOR": "1"}, false}, {map[string]string{"TERM": "dumb"}, false}} {
		s, _ := atTerminal(t, tt.env, "ps")
		s.ends(6)
		s.expect("ferry up")
		if got := bytes.Contains([]byte(s.shown.String()), []byte("\x1b[31merror:\x1b[0m")); got != tt.colour {
			t.Errorf("%v: %q", tt.env, s.shown.String())
		}
	}
}

// TestArchiveOnTerminal: nobody wants to see one.
func TestArchiveOnTerminal(t *testing.T) {
	notRunning(t)
	s, _ := atTerminal(t, nil, "save", "app")
	s.ends(2)
	s.expect("an archive does not belong on a terminal")
	s, _ = atTerminal(t, nil, "load")
	s.ends(2)
	s.expect("standard input is a terminal")
}
