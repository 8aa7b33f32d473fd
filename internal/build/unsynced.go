package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
)

// transactor is one of BuildKit's databases.
type transactor interface {
	Update(func(*bolt.Tx) error) error
}

// syncDelay is how long after a build the databases are brought to the disk.
const syncDelay = 2 * time.Second

// unsynced has BuildKit's databases written without waiting for the disk while
// it works: a rebuild of which nothing changes commits some dozens of times to
// what is a cache. A file beside them says so meanwhile. Should the machine go
// down then, they may be damaged, and the next start begins with an empty
// cache; the end of the process alone does no harm.
type unsynced struct {
	marker    string // a file that holds the boot's ID
	boot      []byte
	paths     []string
	databases []transactor // those that wait for the disk otherwise
	log       *slog.Logger

	mu    sync.Mutex
	calls int         // that write much, under way
	on    bool        // the marker is there
	idle  *time.Timer // nil or settles
}

const (
	bootIDFile   = "/proc/sys/kernel/random/boot_id"
	unsyncedFile = "unsynced"
)

// newUnsynced returns an unsynced for databases by their paths, which are not
// open yet. If the machine went down while they were not on the disk, it removes
// them. Its marker is in dir.
func newUnsynced(dir string, log *slog.Logger, paths ...string) (*unsynced, error) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return nil, err
	}
	u := &unsynced{marker: filepath.Join(dir, unsyncedFile), boot: boot, paths: paths, log: log}
	last, err := os.ReadFile(u.marker)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return u, nil
	case err != nil:
		return nil, err
	case bytes.Equal(last, boot):
		u.on = true // only the process ended
		return u, nil
	}
	log.Warn("the machine went down during a build: the build cache begins anew", "dir", dir)
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return u, os.Remove(u.marker)
}

// begin notes a call that may write, until end.
func (u *unsynced) begin() (end func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.idle != nil {
		u.idle.Stop()
	}
	if !u.on {
		if err := writeDurably(u.marker, u.boot); err != nil {
			return nil, fmt.Errorf("begin a build: %w", err)
		}
		u.on = true
	}
	if u.calls == 0 {
		if err := u.wait(false); err != nil {
			return nil, fmt.Errorf("begin a build: %w", err)
		}
	}
	u.calls++
	return u.end, nil
}

func (u *unsynced) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.calls--; u.calls == 0 {
		u.idle = time.AfterFunc(syncDelay, func() {
			if err := u.settle(); err != nil {
				u.log.Error("bring the build cache to the disk", "error", err)
			}
		})
	}
}

// settle brings the databases to the disk unless a call is under way, and has
// whatever writes to them from then on wait for it.
func (u *unsynced) settle() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.on || u.calls > 0 {
		return nil
	}
	if err := u.wait(true); err != nil {
		return err
	}
	for _, path := range u.paths {
		if err := syncFile(path); err != nil {
			return err
		}
	}
	u.on = false
	return os.Remove(u.marker)
}

// wait says whether commits wait for the disk. The commit with which that
// begins waits for all that was not waited for before in its database.
func (u *unsynced) wait(yes bool) error {
	for _, db := range u.databases {
		// Commits read the field under the lock that a transaction holds.
		if err := db.Update(func(tx *bolt.Tx) error { tx.DB().NoSync = !yes; return nil }); err != nil {
			return err
		}
	}
	return nil
}

// stop settles; no call is under way.
func (u *unsynced) stop() error {
	u.mu.Lock()
	if u.idle != nil {
		u.idle.Stop()
	}
	u.mu.Unlock()
	return u.settle()
}

// writes reports whether a call of BuildKit's control API writes much. Others
// may last for as long as a client likes.
func writes(method string) bool {
	return strings.HasSuffix(method, "/Solve") || strings.HasSuffix(method, "/Prune")
}

// unary and stream note the calls that write much.
func (u *unsynced) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !writes(info.FullMethod) {
		return next(ctx, req)
	}
	end, err := u.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	return next(ctx, req)
}

func (u *unsynced) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if !writes(info.FullMethod) {
		return next(srv, s)
	}
	end, err := u.begin()
	if err != nil {
		return err
	}
	defer end()
	return next(srv, s)
}

// writeDurably writes a file that is on the disk when it returns.
func writeDurably(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return syncFile(filepath.Dir(path))
}

// syncFile brings a file, or the names in a directory, to the disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
