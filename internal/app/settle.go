package app

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A start is over in two seconds; what follows idles for days.
const (
	settleTime = 5 * time.Second // from ready until the start's work has ebbed away
	idleGC     = 50              // percent
)

// settle gives back what only the start needed: its garbage, and the pages of
// the program that nothing uses any more (the initialisation of a thousand
// packages), some 70 MB of each. Pages that are used after all are mapped again
// from the page cache at the next touch.
func settle(log *slog.Logger) {
	debug.SetGCPercent(idleGC)
	debug.FreeOSMemory()
	if err := dropProgramPages(); err != nil {
		log.Warn("the program's pages stay mapped", "error", err)
	}
}

// dropProgramPages unmaps the pages of the program's code and constants, which
// are clean copies of the file. Its variables stay.
func dropProgramPages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			return fmt.Errorf("/proc/self/maps: %w", err)
		}
		if !strings.HasSuffix(lines.Text(), exe) || strings.Contains(mode, "w") {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}
