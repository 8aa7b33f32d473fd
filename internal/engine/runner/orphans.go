package runner

import (
	"path/filepath"
	"time"

	"github.com/ferryos/ferry/internal/cgroups"
)

// orphanTime is how long killed orphans get to be gone.
const orphanTime = 5 * time.Second

// KillOrphans kills what runs in a container's cgroup, and in those that it has
// made below, after its runner is gone, and removes them. path is the cgroup's
// absolute path. Idempotent.
func KillOrphans(path string) error {
	if path == "" || filepath.Clean(path) == "/" {
		return nil
	}
	return cgroups.Kill(path, orphanTime)
}
