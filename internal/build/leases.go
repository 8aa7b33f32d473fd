package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/moby/buildkit/cache/metadata"

	"github.com/ferryos/ferry/internal/engine/store"
)

// variantsSuffix ends the name of a second lease that a cache record may have,
// on its layer in other compressions.
const variantsSuffix = "-variants"

// endOrphans ends the leases of cache records that there are none of. BuildKit
// makes a lease and what it keeps before the record that they are named after,
// and looks only for what is recorded when it starts again: what a kill between
// the two left would stay for ever. No build may be under way.
func endOrphans(ctx context.Context, s *store.Store, records *metadata.Store, log *slog.Logger) error {
	ctx = named(ctx)
	list, err := s.Leases().List(ctx)
	if err != nil {
		return fmt.Errorf("leases of the build cache: %w", err)
	}
	var errs []error
	ended := 0
	for _, l := range list {
		if _, others := l.Labels[store.LabelLease]; others {
			continue
		}
		if _, recorded := records.Get(strings.TrimSuffix(l.ID, variantsSuffix)); recorded {
			continue
		}
		if err := s.Leases().Delete(ctx, l); err != nil {
			errs = append(errs, fmt.Errorf("end the lease %s, whose cache record is gone: %w", l.ID, err))
			continue
		}
		ended++
	}
	if ended > 0 {
		log.Info("what killed builds were making goes", "leases", ended)
		s.CollectSoon()
	}
	return errors.Join(errs...)
}
