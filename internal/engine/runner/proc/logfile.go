package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/ferryos/ferry/internal/engine/crilog"
	"github.com/ferryos/ferry/internal/logfile"
)

// maxLine is the longest line written as one entry; longer ones are cut into
// partial entries, as every CRI runtime does.
const maxLine = 16 << 10

// logFile is a container's log in CRI format, rotated by size.
type logFile struct {
	path     string
	maxBytes int64 // 0: never rotated here
	maxFiles int   // the current one included

	mu     sync.Mutex
	file   *os.File
	size   int64
	failed bool // the last write failed and was reported
}

func openLog(path string, maxBytes int64, maxFiles int) (*logFile, error) {
	l := &logFile{path: path, maxBytes: maxBytes, maxFiles: max(maxFiles, 1)}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("container log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("container log: %w", err)
	}
	l.file, l.size = f, st.Size()
	return nil
}

// write appends whole entries. A log that cannot be written (a full disk) costs
// entries, not the container.
func (l *logFile) write(entries []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.maxBytes > 0 && l.size+int64(len(entries)) > l.maxBytes {
		fit := l.fit(entries)
		l.append(entries[:fit])
		if entries = entries[fit:]; len(entries) == 0 {
			return
		}
		if err := l.rotate(); err != nil {
			fmt.Fprintln(os.Stderr, "rotate log:", err)
			break
		}
	}
	l.append(entries)
}

// fit is how much of the entries still fits, whole ones; of an empty log it is
// one at least.
func (l *logFile) fit(entries []byte) int {
	room := min(max(l.maxBytes-l.size, 0), int64(len(entries)))
	fit := bytes.LastIndexByte(entries[:room], '\n') + 1
	if fit == 0 && l.size == 0 {
		fit = bytes.IndexByte(entries, '\n') + 1
	}
	return fit
}

// append writes entries to the file as it is; l.mu is held.
func (l *logFile) append(entries []byte) {
	if l.file == nil || len(entries) == 0 {
		return
	}
	n, err := l.file.Write(entries)
	l.size += int64(n)
	if err != nil && !l.failed {
		fmt.Fprintln(os.Stderr, "write log:", err)
	}
	l.failed = err != nil
}

// rotate moves path to path.1, path.1 to path.2 and so on, and drops the last.
func (l *logFile) rotate() error {
	l.file.Close()
	l.file = nil
	if err := logfile.Shift(l.path, l.maxFiles); err != nil {
		return errors.Join(err, l.open())
	}
	if l.maxFiles == 1 {
		if err := os.Truncate(l.path, 0); err != nil {
			return errors.Join(err, l.open())
		}
	}
	return l.open()
}

// reopen opens the path anew, after its owner moved the file away.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.file
	if err := l.open(); err != nil {
		return err
	}
	if old != nil {
		old.Close()
	}
	return nil
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

// batchSize is how much is written to a log at a time, give or take an entry:
// one short line takes many times its length there.
const batchSize = 128 << 10

// lineWriter turns one stream's bytes into log entries. All that come with one
// read have the same time.
type lineWriter struct {
	log           *logFile
	stream        string
	pending       []byte // the beginning of a line whose end has not come
	entries       []byte // not written yet; reused, as what follows
	full, partial []byte // what an entry begins with now
}

// begin takes the time of the entries that follow.
func (w *lineWriter) begin() {
	now := time.Now()
	w.full = crilog.AppendHead(w.full[:0], now, w.stream, false)
	w.partial = crilog.AppendHead(w.partial[:0], now, w.stream, true)
}

func (w *lineWriter) write(b []byte) {
	w.begin()
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		rest := b
		if end >= 0 {
			rest = b[:end]
		}
		if room := maxLine - len(w.pending); len(rest) > room {
			w.entry(w.partial, rest[:room])
			b = b[room:]
			continue
		}
		if end < 0 {
			w.pending = append(w.pending, rest...)
			break
		}
		w.entry(w.full, rest)
		b = b[end+1:]
	}
	w.send()
}

// entry makes what is pending and b one entry.
func (w *lineWriter) entry(head, b []byte) {
	w.entries = append(w.entries, head...)
	w.entries = append(w.entries, w.pending...)
	w.entries = append(w.entries, b...)
	w.entries = append(w.entries, '\n')
	w.pending = w.pending[:0]
	if len(w.entries) >= batchSize {
		w.send()
	}
}

// send hands the entries to the log.
func (w *lineWriter) send() {
	if len(w.entries) > 0 {
		w.log.write(w.entries)
		w.entries = w.entries[:0]
	}
}

// flush writes a last line that has no end, as a partial one.
func (w *lineWriter) flush() {
	if len(w.pending) == 0 {
		return
	}
	w.begin()
	w.entry(w.partial, nil)
	w.send()
}
