// Package atomicfile writes files that are there as a whole or not at all. Any
// package may import it; it imports nothing of Ferry.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Unfinished ends the name of a file that is being written. One that is found
// after a process was killed may be removed.
const Unfinished = ".new"

// Write makes path hold data, by rename: a reader sees the old content or the
// new. It does not wait for the disk, so a power cut may take what was just
// written. One caller at a time may write a path.
func Write(path string, data []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path+Unfinished, data, mode); err != nil {
		return err
	}
	return os.Rename(path+Unfinished, path)
}

// WriteShared is Write for a path that several may write, processes too, all of
// them the same data.
func WriteShared(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "*"+Unfinished)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
