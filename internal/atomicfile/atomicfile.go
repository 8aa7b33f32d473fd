// Package atomicfile writes files that are there as a whole or not at all. Any
// package may import it; it imports nothing of Ferry.
package atomicfile

import (
	"io/fs"
	"os"
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
