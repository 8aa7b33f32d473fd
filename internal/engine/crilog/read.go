package crilog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"
)

// Entry is one entry of a log.
type Entry struct {
	Time    time.Time
	Stream  string // "stdout" or "stderr"
	Partial bool   // the line goes on in the stream's next entry
	Content []byte // without newline; valid until the next entry
}

// Parse reads one line, with or without its newline.
func Parse(line []byte) (Entry, error) {
	fields := bytes.SplitN(bytes.TrimSuffix(line, []byte{'\n'}), []byte{' '}, 4)
	if len(fields) < 3 {
		return Entry{}, fmt.Errorf("log entry %q: too few fields", line)
	}
	at, err := time.Parse(time.RFC3339Nano, string(fields[0]))
	if err != nil {
		return Entry{}, fmt.Errorf("log entry: %w", err)
	}
	e := Entry{Time: at, Stream: string(fields[1])}
	if e.Stream != "stdout" && e.Stream != "stderr" {
		return Entry{}, fmt.Errorf("log entry: stream %q", e.Stream)
	}
	// Tags are separated by colons; the first says whether the line is whole.
	tag, _, _ := bytes.Cut(fields[2], []byte{':'})
	e.Partial = string(tag) == "P"
	if len(fields) == 4 {
		e.Content = fields[3]
	}
	return e, nil
}

// Options say which entries of a log are read.
type Options struct {
	Tail         int // the last so many lines; negative: all
	Since, Until time.Time
	// Rotated reads what was rotated away before, path.2 and path.1, too.
	Rotated bool
	// Follow goes on at the end of the log until Ended is closed and all is read.
	Follow bool
	Ended  <-chan struct{} // nil: never
}

// poll is how often a followed log is looked at: the interval after which
// people take a line for delayed is several times as long.
const poll = 50 * time.Millisecond

// Read calls f with the log's entries in order. A log that does not exist yet is
// empty. A line that is no entry is skipped.
func Read(ctx context.Context, path string, opt Options, f func(Entry) error) error {
	r := &reader{path: path, opt: opt, f: f}
	defer r.close()
	if err := r.open(); err != nil {
		return err
	}
	missing, err := r.seekTail()
	if err != nil {
		return err
	}
	if opt.Rotated && missing != 0 {
		if done, err := r.past(missing); err != nil || done {
			return err
		}
	}
	return r.run(ctx)
}

// past hands on the last lines of the rotated files, all if lines is negative;
// done is true past Until. All are open before the first is read, so that a
// rotation meanwhile changes nothing.
func (r *reader) past(lines int) (done bool, err error) {
	var older []*reader
	defer func() {
		for _, o := range older {
			o.close()
		}
	}()
	newer := r
	for n := 1; lines != 0; n++ {
		o := &reader{path: r.path + "." + strconv.Itoa(n), opt: r.opt, f: r.f}
		o.opt.Tail = lines
		if err := o.open(); err != nil {
			return false, err
		}
		if o.file == nil {
			break
		}
		older = append(older, o)
		if o.sameFile(newer) { // rotated between the two opens
			o.buf = nil
			continue
		}
		if lines, err = o.seekTail(); err != nil {
			return false, err
		}
		newer = o
	}
	for _, o := range slices.Backward(older) {
		if done, err := o.drain(); err != nil || done {
			return done, err
		}
	}
	return false, nil
}

func (r *reader) sameFile(other *reader) bool {
	if r.file == nil || other.file == nil {
		return false
	}
	a, err := r.file.Stat()
	if err != nil {
		return false
	}
	b, err := other.file.Stat()
	return err == nil && os.SameFile(a, b)
}

type reader struct {
	path string
	opt  Options
	f    func(Entry) error
	file *os.File // nil: not there yet
	buf  *bufio.Reader
	rest []byte // of a line whose end is not written yet
	at   int64
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

func (r *reader) open() error {
	f, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	r.file, r.buf, r.rest, r.at = f, bufio.NewReader(f), nil, 0
	return nil
}

// run reads to the end and, if asked, on.
func (r *reader) run(ctx context.Context) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	ended := false
	for {
		done, err := r.drain()
		if err != nil || done || ended || !r.opt.Follow {
			return err
		}
		select {
		case <-tick.C:
			if err := r.follow(); err != nil {
				return err
			}
		case <-r.opt.Ended:
			// Once more, for what was written between.
			ended = true
			if err := r.follow(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drain hands on every whole line there is; done is true past Until. Who does
// not follow gets what comes later and is of before, too: a clock may have been
// put back between.
func (r *reader) drain() (done bool, err error) {
	if r.buf == nil {
		return false, nil
	}
	for {
		line, err := r.buf.ReadBytes('\n')
		r.at += int64(len(line))
		r.rest = append(r.rest, line...)
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read log: %w", err)
		}
		e, parseErr := Parse(r.rest)
		r.rest = r.rest[:0]
		switch {
		case parseErr != nil, e.Time.Before(r.opt.Since):
			continue
		case !r.opt.Until.IsZero() && e.Time.After(r.opt.Until):
			if r.opt.Follow {
				return true, nil
			}
			continue
		}
		if err := r.f(e); err != nil {
			return false, err
		}
	}
}

// follow changes to the new file after a rotation, once the old is read.
func (r *reader) follow() error {
	if r.file == nil {
		return r.open()
	}
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // between the rename and the new file
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	have, err := r.file.Stat()
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if os.SameFile(now, have) && now.Size() >= r.at {
		return nil
	}
	if _, err := r.drain(); err != nil {
		return err
	}
	r.file.Close()
	return r.open()
}

// tailBlock is how much is read at a time from the end.
const tailBlock = 64 << 10

// seekTail sets the reader to the last opt.Tail lines, and returns how many of
// them it has not.
func (r *reader) seekTail() (missing int, err error) {
	if r.file == nil || r.opt.Tail < 0 {
		return r.opt.Tail, nil
	}
	st, err := r.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("read log: %w", err)
	}
	at, newlines := st.Size(), 0
	buf := make([]byte, tailBlock)
	// The newline that ends the last line is not one before it.
	for at > 0 {
		n := min(at, tailBlock)
		at -= n
		if _, err := r.file.ReadAt(buf[:n], at); err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read log: %w", err)
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if newlines++; newlines > r.opt.Tail {
				return 0, r.seek(at + i + 1)
			}
		}
	}
	if r.opt.Tail == 0 {
		return 0, r.seek(st.Size())
	}
	return r.opt.Tail - newlines, r.seek(0)
}

func (r *reader) seek(to int64) error {
	if _, err := r.file.Seek(to, io.SeekStart); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	r.buf.Reset(r.file)
	r.at = to
	return nil
}
