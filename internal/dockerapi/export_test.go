package dockerapi

import "github.com/moby/locker"

// Filling locks directories that are filled.
func (s *Server) Filling() *locker.Locker { return s.filling }
