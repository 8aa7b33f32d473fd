package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/atomicfile"
)

// Keep says for how long images are kept. The zero value keeps all.
type Keep struct {
	HighPercent  int           // of the disk in use above which images are removed; 0 and 100: never
	LowPercent   int           // where that ends
	MinAge       time.Duration // since an image was last used, before which it is left alone
	MaxAge       time.Duration // after which it goes even with room; 0: never
	RemoveTagged bool          // also those that have a name
}

// bundledHost is the registry in the names of images that come with Ferry.
const bundledHost = "ferry.local/"

// clock tells the time of day as it goes on from when it was set, whatever is
// done to the machine's clock: one that jumps a year ahead must not make
// everything here a year old.
type clock struct {
	wall, set time.Time // the same moment; how long ago set is does not jump
}

func newClock() clock {
	now := time.Now()
	return clock{wall: now.Round(0), set: now}
}

func (c clock) now() time.Time { return c.wall.Add(time.Since(c.set)) }

// usage is when images were last used, by their targets.
type usage struct {
	// mu is held, read, from the look for an image until something made of it keeps
	// its layers, and, written, while one is found unused and loses its names:
	// whatever comes first, the other sees it. The store's other locks are taken
	// under it.
	mu      sync.RWMutex
	notes   sync.Mutex // of last and changed; innermost
	last    map[string]time.Time
	changed bool
}

func (u *usage) note(target string, now time.Time) {
	u.notes.Lock()
	defer u.notes.Unlock()
	if u.last == nil {
		u.last = map[string]time.Time{}
	}
	u.last[target], u.changed = now, true
}

func (u *usage) forget(target string) {
	u.notes.Lock()
	defer u.notes.Unlock()
	if _, noted := u.last[target]; noted {
		delete(u.last, target)
		u.changed = true
	}
}

func (u *usage) of(target string) time.Time {
	u.notes.Lock()
	defer u.notes.Unlock()
	return u.last[target]
}

func (s *Store) usedFile() string { return filepath.Join(s.opt.Root, "used.json") }

// load reads what an earlier process saved. Without it images seem to have been
// used when they were pulled.
func (u *usage) load(file string, log *slog.Logger) {
	u.notes.Lock()
	defer u.notes.Unlock()
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(data, &u.last)
	}
	if err != nil {
		u.last = nil
		log.Warn("when images were last used is not known", "error", err)
	}
}

// save writes what load reads, if there is something new.
func (u *usage) save(file string) error {
	u.notes.Lock()
	defer u.notes.Unlock()
	if !u.changed {
		return nil
	}
	data, err := json.Marshal(u.last)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return err
	}
	u.changed = false
	return nil
}

// Reclaim removes images by Keep: those that nothing used for MaxAge, and while
// the disk is too full the others, first what was not used for longest. What a
// container was made of stays, and what has a name unless Keep says otherwise.
func (s *Store) Reclaim(ctx context.Context, now time.Time) error {
	keep := s.opt.Keep
	full, err := s.percent()
	if err != nil {
		return fmt.Errorf("reclaim images: %w", err)
	}
	pressed := keep.HighPercent > 0 && keep.HighPercent < 100 && full >= keep.HighPercent
	if !pressed && keep.MaxAge == 0 {
		return nil
	}
	list, err := s.unused(ctx, now)
	if err != nil {
		return fmt.Errorf("reclaim images: %w", err)
	}
	for _, c := range list {
		old := keep.MaxAge > 0 && now.Sub(c.last) > keep.MaxAge
		if !old && !pressed {
			break // those that follow were used later
		}
		if !s.used.mu.TryLock() {
			return nil // something is being made; there will be another time
		}
		gone, err := s.reclaim(ctx, c)
		s.used.mu.Unlock()
		if err != nil {
			return fmt.Errorf("reclaim image %s: %w", c.image.ID, err)
		}
		if !gone {
			continue
		}
		s.opt.Log.Info("removed an image that nothing uses", "image", c.image.ID, "names", c.image.Names, "lastUsed", c.last, "diskPercent", full)
		if err := s.GC(ctx); err != nil {
			return err
		}
		if full, err = s.percent(); err != nil {
			return err
		}
		pressed = pressed && full > keep.LowPercent
	}
	if pressed {
		s.opt.Log.Warn("the disk is full and no image is left to remove", "diskPercent", full, "lowPercent", keep.LowPercent)
	}
	return nil
}

// candidate is an image that may go.
type candidate struct {
	image Image
	named time.Time // or pulled, by the machine's clock
	last  time.Time // used, pulled or named
}

// unused are the images that may be removed, what was not used for longest first.
func (s *Store) unused(ctx context.Context, now time.Time) ([]candidate, error) {
	ctx = namespaced(ctx)
	images, err := s.Images(ctx)
	if err != nil {
		return nil, err
	}
	records, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	named := map[string]time.Time{}
	for _, r := range records {
		if t := r.Target.Digest.String(); named[t].Before(r.UpdatedAt) {
			named[t] = r.UpdatedAt
		}
	}
	inUse := s.inUse(ctx)
	var list []candidate
	for _, img := range images {
		c := candidate{image: img, named: named[img.Target], last: s.lastUse(img.Target, named[img.Target], now)}
		if s.mayGo(c, inUse, now) {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b candidate) int { return a.last.Compare(b.last) })
	return list, nil
}

// lastUse is when an image was used, pulled or named. Of a time that is still to
// come, from before the clock was put back, nothing is known but that it was: it
// counts as now, and from now on.
func (s *Store) lastUse(target string, named, now time.Time) time.Time {
	used := s.used.of(target)
	if used.After(now) || used.IsZero() && named.After(now) {
		s.used.note(target, now)
		return now
	}
	if named.After(used) && !named.After(now) {
		return named
	}
	return used
}

func (s *Store) inUse(ctx context.Context) []string {
	if s.opt.InUse == nil {
		return nil
	}
	return s.opt.InUse(ctx)
}

func isUsed(img Image, inUse []string) bool {
	return slices.Contains(inUse, img.ID) || slices.Contains(inUse, img.Digest) || slices.Contains(inUse, img.Target)
}

// mayGo decides about one image:
//
//	of a container  bundled  named  younger than MinAge   may go
//	yes             .        .      .                     no
//	.               yes      .      .                     no
//	.               .        yes    .                     with RemoveTagged
//	.               .        .      yes                   no
//	no              no       no     no                    yes
func (s *Store) mayGo(c candidate, inUse []string, now time.Time) bool {
	switch {
	case isUsed(c.image, inUse):
		return false
	case slices.ContainsFunc(c.image.Names, func(n string) bool { return strings.HasPrefix(n, bundledHost) }):
		return false
	case len(c.image.Names) > 0 && !s.opt.Keep.RemoveTagged:
		return false
	}
	return now.Sub(c.last) >= max(s.opt.Keep.MinAge, inTheMaking)
}

// inTheMaking is how long a container may take from the use of its image until
// InUse tells of it.
const inTheMaking = time.Minute

// reclaim takes an image's names away unless it was used meanwhile. The caller
// holds used.mu.
func (s *Store) reclaim(ctx context.Context, c candidate) (gone bool, err error) {
	ctx = namespaced(ctx)
	inUse := s.inUse(ctx)
	if s.used.of(c.image.Target).After(c.last) || isUsed(c.image, inUse) {
		return false, nil
	}
	records, err := s.images.List(ctx, "target.digest=="+c.image.Target)
	if err != nil {
		return false, err
	}
	for _, r := range records {
		if r.UpdatedAt.After(c.named) {
			return false, nil // named or pulled again meanwhile
		}
	}
	for _, r := range records {
		if err := s.images.Delete(ctx, r.Name); err != nil && !errdefs.IsNotFound(err) {
			return false, err
		}
	}
	s.used.forget(c.image.Target)
	return true, nil
}

// percent is how full the disk is for others than root, as df tells it.
func (s *Store) percent() (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opt.Root, &st); err != nil {
		return 0, err
	}
	used := st.Blocks - st.Bfree
	if used+st.Bavail == 0 {
		return 0, nil
	}
	return int(100 * used / (used + st.Bavail)), nil
}
