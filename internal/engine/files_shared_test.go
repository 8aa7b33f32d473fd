package engine_test

import (
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// TestRemoveSharers removes many containers that share a tmpfs at once: each looks
// at the others while they are forgotten.
func TestRemoveSharers(t *testing.T) {
	m := enginetest.New(t)
	var pods []string
	for range 12 {
		pod, _ := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"true"},
			Mounts: []engine.Mount{{Kind: engine.MountTmpfs, Source: "shared", Destination: "/t"}}})
		pods = append(pods, pod.ID)
	}
	removed := make(chan error, len(pods))
	for _, id := range pods {
		go func() { removed <- m.RemovePod(t.Context(), id) }()
	}
	for range pods {
		select {
		case err := <-removed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the removals wait for each other")
		}
	}
}
