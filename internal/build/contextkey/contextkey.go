// Package contextkey tells by a short key whether a build's context has changed
// since the last build. It reads no file but the Dockerfile and what says what to
// leave out: like make and git it goes by what the file system says of a file.
package contextkey

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Header is the metadata of a call to BuildKit's Solve that names the key of what
// its client gives to the build, so that the daemon can remember what it came to.
const Header = "ferry-build-key"

// How old every change must be: one that comes right after could bear the same
// time. Linux takes the time of a change from its timer, which ticks every 10 ms
// or more often; some file systems (FAT, ext3, HFS+) keep it in steps of up to
// two seconds, all of which are of whole ticks.
const (
	tick         = 10 * time.Millisecond
	margin       = 5 * tick
	coarseMargin = 2 * time.Second
)

// maxFiles bounds the time that a walk takes, for builds that it does not help.
const maxFiles = 100_000

// maxDockerfile is the size in bytes above which BuildKit refuses a Dockerfile.
const maxDockerfile = 16 << 20

// ErrNoKey says that no key can tell this context from what it may become.
var ErrNoKey = errors.New("the build context has no key")

// Of returns the key of a context, a directory, with the path of its Dockerfile
// and whatever else says what is built. Two builds of the same key are of the
// same files: of each, its name, owner, permissions, size, inode, and the times
// of its last change in nanoseconds, of which no program can set the one called
// ctime. It is the hexadecimal SHA-256 of all that.
//
// Of returns ErrNoKey if something changed just now (see margin), if there are more
// than 100,000 files, or if the Dockerfile or a list of what to leave out is a link
// or too large, and any other error if a file cannot be
// looked at. What .dockerignore leaves out does not count.
func Of(dir, dockerfile string, settings []byte) (string, error) {
	return of(dir, dockerfile, settings, time.Now())
}

func of(dir, dockerfile string, settings []byte, now time.Time) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	k := key{sum: sha256.New(), now: now}
	k.text(string(settings), dir)
	ignored, err := k.files(dir, dockerfile)
	if err != nil {
		return "", err
	}
	if err := k.walk(dir, ignored); err != nil {
		return "", err
	}
	return hex.EncodeToString(k.sum.Sum(nil)), nil
}

// key gathers what a key is made of.
type key struct {
	sum   hash.Hash
	now   time.Time
	count int
}

// text adds strings so that no two sequences of them are the same.
func (k *key) text(list ...string) {
	for _, s := range list {
		k.numbers(int64(len(s)))
		_, _ = io.WriteString(k.sum, s) // a hash takes everything
	}
}

func (k *key) numbers(list ...int64) {
	buf := make([]byte, 0, 128)
	for _, n := range list {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(n))
	}
	_, _ = k.sum.Write(buf)
}

// files adds the contents of the Dockerfile and of the lists of what to leave
// out, and returns the patterns of the one that holds: a list beside the
// Dockerfile goes before the context's.
func (k *key) files(dir, dockerfile string) (ignored []string, err error) {
	if _, err := k.read(dockerfile, "Dockerfile"); err != nil {
		return nil, err
	}
	for _, file := range []string{dockerfile + ".dockerignore", filepath.Join(dir, ".dockerignore")} {
		data, err := k.read(file, filepath.Base(file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if ignored, err = ignorefile.ReadAll(bytes.NewReader(data)); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return ignored, nil
	}
	return nil, nil
}

// read reads a small file that lies where it is named, and adds it, whether or not
// the context has it.
func (k *key) read(file, name string) ([]byte, error) {
	st, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxDockerfile {
		return nil, ErrNoKey
	}
	if err := k.file(file, name); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	k.text(string(data))
	return data, err
}

// walk adds all files below dir but those that the patterns leave out. A
// directory that is left out but holds something that is not counts itself.
func (k *key) walk(dir string, ignored []string) error {
	match, err := patternmatcher.New(ignored)
	if err != nil {
		return err
	}
	parents := map[string]patternmatcher.MatchInfo{}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		out, info, err := match.MatchesUsingParentResults(name, parents[filepath.Dir(name)])
		if err != nil {
			return err
		}
		switch {
		case name == ".": // counts whatever a pattern says
		case out && !d.IsDir():
			return nil
		case out && !match.Exclusions():
			return filepath.SkipDir
		case d.IsDir():
			parents[name] = info
		}
		return k.file(path, name)
	})
}

// file adds what the file system says of a file.
func (k *key) file(path, name string) error {
	if k.count++; k.count > maxFiles {
		return ErrNoKey
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ErrNoKey
	}
	if k.recent(time.Unix(sys.Ctim.Unix())) || k.recent(st.ModTime()) {
		return ErrNoKey
	}
	k.text(name)
	k.numbers(int64(sys.Mode), int64(sys.Uid), int64(sys.Gid), sys.Size, int64(sys.Rdev), int64(sys.Dev), int64(sys.Ino),
		sys.Mtim.Nano(), sys.Ctim.Nano())
	return nil
}

// recent reports whether the next change could bear the time t too.
func (k *key) recent(t time.Time) bool {
	age := margin
	if t.Nanosecond()%int(tick) == 0 {
		age = coarseMargin
	}
	return k.now.Sub(t) < age
}
