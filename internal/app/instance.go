package app

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/instance"
)

// lockInstance makes this process the only ferryd of its configuration until
// unlock, and writes its process id where `ferry` looks. The lock ends with the
// process however it ends.
func lockInstance(cfg config.Config) (unlock func(), err error) {
	for _, dir := range []string{cfg.DataDir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fault.New(fault.Unavailable, "make %s: %w", dir, err).
				Hint("make room there, or set dataDir and runDir in the configuration")
		}
	}
	f, err := instance.Lock(cfg.RunDir)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fault.New(fault.Conflict, "ferryd runs already in %s", cfg.RunDir).
			Hint("see `ferry status`; a second Ferry needs a configuration of its own (FERRY_CONFIG)")
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := os.WriteFile(cfg.PIDFile(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		f.Close()
		return nil, fault.New(fault.Unavailable, "write the process id: %w", err).Hint("make room in %s", cfg.RunDir)
	}
	return func() {
		_ = os.Remove(cfg.PIDFile()) // one that stays is overwritten, and the lock decides
		f.Close()
	}, nil
}

// minRoom is what a start needs at least: etcd and the image store set aside
// files ahead of use, and etcd's library ends the process where it cannot.
const minRoom = 256 << 20

// checkRoom refuses to begin what a full disk would end half-way.
func checkRoom(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("room in %s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < minRoom {
		return fault.New(fault.Unavailable, "only %d MB are free in %s, and %d MB are needed", free>>20, dir, uint64(minRoom)>>20).
			Hint("make room, or set dataDir in the configuration to a place with more")
	}
	return nil
}
