package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/atomicfile"
)

// fileName is a container's record in its directory.
const fileName = "supervise.json"

// record is what outlives the daemon of a container's supervision. There is no
// file while it is empty, so that most containers have none.
type record struct {
	Restarts int           `json:"restarts,omitempty"`
	Pause    time.Duration `json:"pause,omitempty"` // before the present run
	// Stopped is set while the last thing said by hand was to stop it.
	Stopped bool              `json:"stopped,omitempty"`
	Health  *container.Health `json:"health,omitempty"`
}

func (r record) empty() bool { return r.Restarts == 0 && r.Pause == 0 && !r.Stopped && r.Health == nil }

func load(dir string) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return record{}, fmt.Errorf("read what is known of a container's life: %w", err)
	}
	return r, nil
}

// save replaces the file, or takes it away. It does not wait for the disk, as
// the engine's records do not.
func (r record) save(dir string) error {
	path := filepath.Join(dir, fileName)
	if r.empty() {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}
