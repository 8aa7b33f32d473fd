package dockerapi

import (
	"encoding/json"

	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/engine"
)

// settings are what Docker's clients gave at create and read back by inspect.
// They travel in the engine's record of the container.
type settings struct {
	Config     container.Config
	HostConfig container.HostConfig
	Volumes    map[string]volumeUse `json:",omitempty"` // by where they are mounted
}

// settingsOf returns what c was created with; the zero settings if its record
// is not one of ours.
func settingsOf(c engine.Container) settings {
	var s settings
	if json.Unmarshal(c.Spec.Extra, &s) != nil {
		return settings{}
	}
	return s
}
