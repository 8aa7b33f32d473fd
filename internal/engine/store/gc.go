package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// collectDelay gathers removals into one collection and keeps its work from
// the moments in which something is removed and started anew.
const collectDelay = 3 * time.Second

// lookEvery is how often the disk is looked at, and what nobody asks for any
// more: downloads that were never taken up again.
const lookEvery = 5 * time.Minute

// collector runs garbage collection in the background, after removals and now
// and then.
type collector struct {
	wake   chan struct{}
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (c *collector) start(ctx context.Context, s *Store) {
	c.wake = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(namespaced(context.WithoutCancel(ctx)))
	c.cancel = cancel
	c.done.Go(func() { c.run(ctx, s) })
}

func (c *collector) run(ctx context.Context, s *Store) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			err = errors.Join(s.GC(ctx), s.Reclaim(ctx, s.clock.now()), s.used.save(s.usedFile()))
		case <-c.wake:
			select {
			case <-time.After(collectDelay):
			case <-ctx.Done():
				return
			}
			err = s.GC(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.opt.Log.Error("collect garbage", "error", err)
		}
	}
}

// CollectSoon has a collection run before long, for who has ended leases.
func (s *Store) CollectSoon() { s.collect.soon() }

// soon has a collection run before long.
func (c *collector) soon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *collector) stop() {
	if c.cancel == nil { // never started
		return
	}
	c.cancel()
	c.done.Wait()
}

// GC removes what nothing keeps: blobs, snapshots and the directories of
// removed ones.
func (s *Store) GC(ctx context.Context) error {
	ctx = namespaced(ctx)
	if err := s.collectWritables(ctx); err != nil {
		return fmt.Errorf("garbage collection: %w", err)
	}
	if !s.compared.Swap(true) {
		if err := s.compareNext(ctx); err != nil { // for want of room, which the collection makes
			s.compared.Store(false)
			s.opt.Log.Warn("what is not recorded is left for the next collection", "error", err)
		}
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("garbage collection: %w", err)
	}
	// The collection above cleans up behind its own removals alone.
	if cleaner, ok := s.overlay.(snapshots.Cleaner); ok {
		if err := cleaner.Cleanup(ctx); err != nil && !errdefs.IsNotFound(err) { // there was never a snapshot
			return fmt.Errorf("garbage collection: %w", err)
		}
	}
	return nil
}

// compareNext has the next collection compare what is on the disk with what is
// recorded, and remove what is not: blobs and layers that an earlier process had
// made when it was killed, and not recorded yet. containerd compares only once
// something was removed.
func (s *Store) compareNext(ctx context.Context) error {
	name := "compare-" + rand.Text()
	if _, err := s.snapshotter.Prepare(ctx, name, ""); err != nil {
		return err
	}
	if err := s.snapshotter.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) { // by another collection
		return err
	}
	blobs, blob := s.db.ContentStore(), ocispec.Descriptor{Digest: digest.FromString(name), Size: int64(len(name))}
	if err := content.WriteBlob(ctx, blobs, name, strings.NewReader(name), blob); err != nil {
		return err
	}
	if err := blobs.Delete(ctx, blob.Digest); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// FsInfo is what images take of the disk.
type FsInfo struct {
	Path          string
	Bytes, Inodes int64
}

// FsInfo adds up the blobs and the unpacked layers; containers' own writes are
// their containers' (RootfsUsage).
func (s *Store) FsInfo(ctx context.Context) (FsInfo, error) {
	ctx = namespaced(ctx)
	info := FsInfo{Path: s.opt.Root}
	err := s.db.ContentStore().Walk(ctx, func(b content.Info) error {
		info.Bytes += b.Size
		info.Inodes++
		return nil
	})
	if err != nil {
		return info, fmt.Errorf("image store usage: %w", err)
	}
	err = s.snapshotter.Walk(ctx, func(ctx context.Context, sn snapshots.Info) error {
		if sn.Kind != snapshots.KindCommitted {
			return nil
		}
		usage, err := s.snapshotter.Usage(ctx, sn.Name)
		if err != nil {
			return err
		}
		info.Bytes += usage.Size
		info.Inodes += usage.Inodes
		return nil
	})
	if err != nil {
		return info, fmt.Errorf("image store usage: %w", err)
	}
	return info, nil
}
