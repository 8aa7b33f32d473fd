package eventlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/events"
)

// The names of the files, a line of JSON an event: the newer one is written to
// until it is full, and then takes the place of the older one.
const (
	newerFile = "events.log"
	olderFile = "events.log.1"
)

// maxFile is when a file is full, unless it has as many events as are
// remembered before. Labels may be long.
const maxFile = 8 << 20

// file keeps events on disk. It does not wait for the disk: what a power cut
// takes is news that is old by then.
type file struct {
	dir  string
	log  *slog.Logger
	f    *os.File // nil after a failure; opened again at the next event
	size int64
	n    int  // events in it
	torn bool // its last line may not be whole
}

// Open returns a log that goes on with what is kept in dir, which is made if
// missing. Close lets go of it.
func Open(dir string, log *slog.Logger) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l := &Log{file: &file{dir: dir, log: log}}
	for _, name := range []string{olderFile, newerFile} {
		n, err := l.read(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("event log: %w", err)
		}
		l.file.n = n
	}
	if err := l.file.open(); err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	l.file.torn = l.file.size > 0 // the daemon may have been killed while it wrote
	return l, nil
}

// read takes up the events of a file, and returns how many there are. A line
// that is none is passed over.
func (l *Log) read(path string) (n int, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		var m events.Message
		if json.Unmarshal(line, &m) == nil && m.TimeNano != 0 {
			l.add(m)
			n++
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Close lets go of the file. Events are told still, but not kept.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.close()
	l.file = nil
	return err
}

func (k *file) open() error {
	f, err := os.OpenFile(filepath.Join(k.dir, newerFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	k.f, k.size = f, st.Size()
	return nil
}

func (k *file) close() error {
	if k.f == nil {
		return nil
	}
	err := k.f.Close()
	k.f = nil
	return err
}

// keep writes an event. A failure is told once, until it goes well again.
func (k *file) keep(m events.Message) {
	failed := k.f == nil
	err := k.append(m)
	if err == nil {
		return
	}
	k.torn = true
	err = errors.Join(err, k.close())
	if !failed {
		k.log.Warn("events are not kept", "error", err)
	}
}

func (k *file) append(m events.Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if k.f != nil && (k.n >= kept || k.size >= maxFile) {
		if err := errors.Join(k.close(), os.Rename(filepath.Join(k.dir, newerFile), filepath.Join(k.dir, olderFile))); err != nil {
			return err
		}
		k.n, k.torn = 0, false
	}
	if k.f == nil {
		if err := k.open(); err != nil {
			return err
		}
	}
	if k.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := k.f.Write(append(line, '\n'))
	k.size += int64(n)
	if err == nil {
		k.n, k.torn = k.n+1, false
	}
	return err
}
