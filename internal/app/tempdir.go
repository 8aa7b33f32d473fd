package app

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/engine/store"
)

// useTempDir has this process and its libraries make their temporary files and
// mounts in a directory that nobody else can look into: BuildKit mounts the
// roots of build steps there. What a killed daemon left in it is removed.
func useTempDir(cfg config.Config) error {
	dir := tempDir(cfg)
	if err := errors.Join(os.MkdirAll(dir, 0o700), clearTempDir(cfg)); err != nil {
		return err
	}
	return os.Setenv("TMPDIR", dir)
}

func tempDir(cfg config.Config) string { return filepath.Join(cfg.DataDir, "tmp") }

// clearTempDir unmounts and removes what is in the directory.
func clearTempDir(cfg config.Config) error {
	dir := tempDir(cfg)
	entries, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range entries {
		errs = append(errs, store.UnmountAll(path))
	}
	if _, err := os.Stat(dir); err == nil {
		errs = append(errs, removeContent(dir, ""))
	}
	return errors.Join(errs...)
}
