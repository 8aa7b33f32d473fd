package dockerapi

import (
	"context"

	"github.com/moby/locker"
	"github.com/moby/moby/api/types/container"

	"github.com/ferryos/ferry/internal/engine"
)

// Filling locks directories that are filled.
func (s *Server) Filling() *locker.Locker { return s.filling }

// AwaitFrom waits for the next exit of a container that was seen as c, without
// having heard of what happened since.
func (s *Server) AwaitFrom(ctx context.Context, c engine.Container) (int, error) {
	missed := make(chan engine.Event)
	close(missed)
	return s.awaitCondition(ctx, missed, c, container.WaitConditionNextExit)
}
