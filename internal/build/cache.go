package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/moby/api/types/build"
	"golang.org/x/sync/errgroup"

	"github.com/ferryos/ferry/internal/fault"
)

// Prune says what of the build cache is to go; all that nothing uses if it says nothing.
type Prune struct {
	All           bool // the frontends' own and what images share too
	ReservedSpace int64
	MaxUsedSpace  int64
	MinFreeSpace  int64
	Filters       map[string][]string
}

// CacheUsage lists the build cache, as Docker's GET /system/df tells of it.
func (b *Builder) CacheUsage(ctx context.Context) ([]build.CacheRecord, error) {
	if empty, err := b.neverUsed(); empty || err != nil {
		return nil, err
	}
	c, _, err := b.client(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	list, err := c.DiskUsage(ctx)
	if err != nil {
		return nil, fmt.Errorf("usage of the build cache: %w", err)
	}
	out := make([]build.CacheRecord, len(list))
	for i, u := range list {
		out[i] = build.CacheRecord{ID: u.ID, Parents: u.Parents, Type: string(u.RecordType), Description: u.Description, InUse: u.InUse, Shared: u.Shared,
			Size: u.Size, CreatedAt: u.CreatedAt, LastUsedAt: u.LastUsedAt, UsageCount: u.UsageCount}
	}
	return out, nil
}

// PruneCache removes what p says of the build cache, and tells what was removed.
func (b *Builder) PruneCache(ctx context.Context, p Prune) (build.CachePruneReport, error) {
	report := build.CachePruneReport{CachesDeleted: []string{}}
	filter, age, err := cacheFilters(p.Filters, time.Now())
	if err != nil {
		return report, err
	}
	if empty, err := b.neverUsed(); empty || err != nil {
		return report, err
	}
	c, _, err := b.client(ctx)
	if err != nil {
		return report, err
	}
	defer c.Close()
	opts := []client.PruneOption{client.WithFilter(filter), client.WithKeepOpt(age, p.ReservedSpace, p.MaxUsedSpace, p.MinFreeSpace)}
	if p.All {
		opts = append(opts, client.PruneAll)
	}
	removed := make(chan client.UsageInfo)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(removed)
		return c.Prune(gctx, removed, opts...)
	})
	for u := range removed {
		report.CachesDeleted = append(report.CachesDeleted, u.ID)
		report.SpaceReclaimed += uint64(u.Size)
	}
	if err := g.Wait(); err != nil {
		return report, fmt.Errorf("prune the build cache: %w", err)
	}
	return report, nil
}

// neverUsed reports that no build has left a cache: BuildKit need not start to say so.
func (b *Builder) neverUsed() (bool, error) {
	_, err := os.Stat(filepath.Join(b.opt.Root, cacheFile))
	if os.IsNotExist(err) {
		return true, nil
	}
	return false, err
}

// CacheFilters are the filters of Docker's that Prune takes.
var CacheFilters = []string{"until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private", "mutable", "immutable"}

// cacheFilters turns Docker's filters of the build cache into BuildKit's, and
// into how long ago what goes was last used.
func cacheFilters(filters map[string][]string, now time.Time) (filter []string, age time.Duration, err error) {
	var all []string
	for key, values := range filters {
		for _, v := range values {
			switch key {
			case "until", "unused-for":
				d, err := time.ParseDuration(v)
				if t, timeErr := time.Parse(time.RFC3339Nano, v); timeErr == nil {
					d, err = now.Sub(t), nil
				}
				if err != nil || d < 0 {
					return nil, 0, fault.New(fault.Invalid, "filter %s=%s: neither a duration nor a time that has been", key, v).Hint("use a duration such as 24h, or RFC 3339")
				}
				age = max(age, d)
			case "inuse", "shared", "private", "mutable", "immutable": // there or not
				all = append(all, key)
			case "id", "description":
				all = append(all, key+"~="+v)
			case "type":
				all = append(all, "type=="+v)
			case "parent", "parents":
				all = append(all, "parents=="+v)
			default:
				return nil, 0, fault.New(fault.Invalid, "filter %q is not supported for the build cache", key).
					Hint("use until, unused-for, id, parent, type, description, inuse, shared, private, mutable or immutable")
			}
		}
	}
	if len(all) > 0 { // BuildKit takes any of its list, Docker means all of it
		filter = []string{strings.Join(all, ",")}
	}
	return filter, age, nil
}
