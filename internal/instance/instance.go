// Package instance tells whether a ferryd runs: by a lock on a file in the run
// directory, which the daemon has as long as it lives, however it ends.
//
// The daemon takes the lock, the ferry command looks at it. Nothing else imports it.
package instance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// LockName is the lock file's name in the run directory.
const LockName = "ferryd.lock"

// Looking at the lock takes it for a moment, so a daemon tries again before it
// believes that another one has it.
const (
	lockTries = 10
	lockPause = 10 * time.Millisecond
)

// Lock makes this process the only one of runDir until the file is closed. The
// error is unix.EWOULDBLOCK if another process is.
func Lock(runDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(runDir, LockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for range lockTries {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(lockPause)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Running reports whether a process has the lock.
func Running(runDir string) (bool, error) {
	f, err := os.Open(filepath.Join(runDir, LockName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}
