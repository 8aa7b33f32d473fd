// Package atomicfile writes files whole or not at all.
//
// Any package of the mlp runtime may import it.
package atomicfile

import (
	"os"
	"path/filepath"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// Write makes path hold data, mode 0644: it writes a file beside it, syncs and
// renames, so that a reader sees the old content or the new. The folder must
// exist. On error nothing is left behind.
func Write(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return hint.Errorf("Check that the folder exists, is writable and has space left.", "write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // already failing; the first error says why
			_ = os.Remove(f.Name())
			err = hint.Errorf("Check that the folder is writable and has space left.", "write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
