// Package logfile keeps log files from growing for ever. Any package may import
// it; it knows nothing of what is logged and imports nothing of Ferry.
package logfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// What the daemon's log may take: Files of MaxBytes each.
const (
	MaxBytes = 10 << 20
	Files    = 3 // the current one included
)

// Shift moves path to path.1, path.1 to path.2 and so on, and drops what would
// be more than files, a new path included.
func Shift(path string, files int) error {
	for i := files - 1; i > 0; i-- {
		from := path
		if i > 1 {
			from += "." + strconv.Itoa(i-1)
		}
		if err := os.Rename(from, path+"."+strconv.Itoa(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Bounded returns a writer to stderr that rotates the file at path if that is
// where stderr leads, as in a daemon that `ferry up` has started; otherwise it
// returns stderr.
//
// Rotating leads the descriptors of stderr, and of standard output if it goes
// there too, to the new file: what is written without this writer, a panic for
// one, is in the same file as all else, and counts.
func Bounded(stderr io.Writer, path string) io.Writer {
	f, ok := stderr.(*os.File)
	if !ok {
		return stderr
	}
	open, err := f.Stat()
	if err != nil {
		return stderr
	}
	there, err := os.Stat(path)
	if err != nil || !there.Mode().IsRegular() || !os.SameFile(open, there) {
		return stderr
	}
	w := &rotating{path: path, maxBytes: MaxBytes, files: Files, out: f}
	if info, err := os.Stdout.Stat(); err == nil && os.SameFile(info, open) {
		w.also = os.Stdout
	}
	return w
}

type rotating struct {
	path     string
	maxBytes int64
	files    int

	mu   sync.Mutex // one line at a time; a leaf
	out  *os.File
	also *os.File // led to the same file; may be nil
}

// Write implements io.Writer. A log that cannot be rotated goes on growing: to
// lose what it tells would be worse.
func (w *rotating) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if st, err := w.out.Stat(); err == nil && st.Size() > 0 && st.Size()+int64(len(p)) > w.maxBytes {
		if err := w.rotate(); err != nil {
			w.maxBytes *= 2 // not again at each line
			fmt.Fprintln(w.out, "rotate log:", err)
		}
	}
	return w.out.Write(p)
}

func (w *rotating) rotate() error {
	// The new file first, so that on a full disk nothing is moved.
	next, err := os.OpenFile(w.path+".new", os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer next.Close()
	if err := errors.Join(Shift(w.path, w.files), os.Rename(next.Name(), w.path)); err != nil {
		return err
	}
	err = unix.Dup3(int(next.Fd()), int(w.out.Fd()), 0)
	if w.also != nil {
		err = errors.Join(err, unix.Dup3(int(next.Fd()), int(w.also.Fd()), 0))
	}
	return err
}
