package runner

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// PoolOptions say which runners to keep ready.
type PoolOptions struct {
	Binary string // path of ferry-runner
	// Dir is where the runners' directories are. Those that wait are in it as
	// spare-NAME: whoever finds one there after the daemon's end may end it.
	Dir  string
	Size int // how many wait; 0 starts each on demand
	Log  *slog.Logger
}

// Pool keeps runners that wait for their pod: to start one takes longer than
// all else that making a pod needs.
type Pool struct {
	opt    PoolOptions
	spares chan *Client
	stop   context.CancelFunc
	fills  sync.WaitGroup
}

// NewPool returns a Pool that starts each runner on demand before Start.
func NewPool(opt PoolOptions) *Pool { return &Pool{opt: opt, spares: make(chan *Client, opt.Size)} }

// Start begins to fill the pool, in the background.
func (p *Pool) Start(ctx context.Context) {
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	if p.opt.Size > 0 {
		p.fills.Go(func() { p.fill(ctx) })
	}
}

// Stop ends the runners that wait. Those that were taken live on.
func (p *Pool) Stop(ctx context.Context) {
	if p.stop == nil {
		return
	}
	p.stop()
	p.fills.Wait()
	for {
		select {
		case c := <-p.spares:
			p.end(ctx, c)
		default:
			return
		}
	}
}

// Launch returns a runner for a directory that does not exist yet, in Dir: one
// that waits, or else a new one. See LaunchOptions.
func (p *Pool) Launch(ctx context.Context, dir string) (*Client, error) {
	for {
		select {
		case c := <-p.spares:
			select {
			case <-c.ended:
				p.end(context.WithoutCancel(ctx), c)
				continue // somebody killed it
			default:
			}
			// The socket and the log move with the directory, which is the runner's working directory.
			if err := os.Rename(c.dir, dir); err != nil {
				p.end(context.WithoutCancel(ctx), c)
				return nil, fmt.Errorf("launch runner: %w", err)
			}
			c.dir = dir
			return c, nil
		default:
			return Launch(ctx, LaunchOptions{Binary: p.opt.Binary, Dir: dir, Log: p.opt.Log})
		}
	}
}

// quietTime is how long the pool waits with a replacement while it has others:
// the pod that has just got a runner is being started then, and needs the processors.
const quietTime = 25 * time.Millisecond

// refillPause is how long the pool waits after a runner could not be started.
const refillPause = time.Second

// fill keeps the pool full until ctx ends.
func (p *Pool) fill(ctx context.Context) {
	for {
		dir := filepath.Join(p.opt.Dir, "spare-"+rand.Text()[:8])
		c, err := Launch(ctx, LaunchOptions{Binary: p.opt.Binary, Dir: dir, Log: p.opt.Log})
		if err != nil {
			if ctx.Err() == nil {
				p.opt.Log.Warn("start a runner in advance", "error", err)
			}
			p.removeDir(dir)
			select {
			case <-time.After(refillPause):
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case p.spares <- c:
		case <-ctx.Done():
			p.end(context.WithoutCancel(ctx), c)
			return
		}
		if len(p.spares) == 0 {
			continue
		}
		select {
		case <-time.After(quietTime):
		case <-ctx.Done():
			return
		}
	}
}

// end ends a runner that waits.
func (p *Pool) end(ctx context.Context, c *Client) {
	if err := c.Shutdown(ctx); err != nil {
		select {
		case <-c.ended:
		default:
			p.opt.Log.Warn("end a runner that waits", "dir", c.dir, "error", err)
			return // it lives, and is found by its directory
		}
	}
	p.removeDir(c.dir)
}

func (p *Pool) removeDir(dir string) {
	if err := os.RemoveAll(dir); err != nil {
		p.opt.Log.Warn("remove the directory of a runner that waits", "dir", dir, "error", err)
	}
}
