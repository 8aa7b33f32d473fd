// Package oom tells of the processes of a cgroup that were killed for memory.
//
// Only engine/runner/proc imports it, which knows the cgroup and has the
// kernel's notifications of it. Not all of those are news: under cgroup v1 there
// is one when the cgroup is removed, under v2 one for every time that the limit
// is reached once there was a kill.
package oom

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Counter counts the kills in a cgroup.
type Counter struct {
	file  *os.File
	total atomic.Int64 // at the end; the file goes with the cgroup
}

// Open returns the Counter of the first file that is there: memory.oom_control
// of a cgroup v1 or memory.events of one of v2. Without one it counts nothing.
func Open(paths ...string) *Counter {
	for _, path := range paths {
		if f, err := os.Open(path); err == nil {
			return &Counter{file: f}
		}
	}
	return &Counter{}
}

// Counts reports whether there is something to count in.
func (c *Counter) Counts() bool { return c.file != nil }

// Kills returns how many processes were killed, and lets go of the file.
func (c *Counter) Kills() int {
	if c.file == nil {
		return 0
	}
	defer c.file.Close()
	kills, _, err := c.count()
	if err != nil {
		return 0
	}
	c.total.Store(int64(kills))
	return kills
}

// Follow calls f for every notification that tells of a kill or, where nobody is
// killed, of processes that wait for memory. It returns when they end.
func (c *Counter) Follow(notifications <-chan struct{}, f func()) {
	seen := 0
	for range notifications {
		now, news := c.happened(seen)
		if seen = now; news {
			f()
		}
	}
}

// countTime is how long a kill may take to be counted after v1 has notified of it.
const countTime = 2 * time.Second

// happened waits for what a notification may tell of, and returns the kills so
// far and whether there is news.
func (c *Counter) happened(seen int) (kills int, news bool) {
	for deadline := time.Now().Add(countTime); ; time.Sleep(2 * time.Millisecond) {
		kills, waiting, err := c.count()
		if err != nil { // the cgroup is gone
			kills, waiting = int(c.total.Load()), false
		}
		if news = kills > seen || waiting; news || err != nil || !time.Now().Before(deadline) {
			return kills, news
		}
	}
}

// count returns how many processes were killed so far, and whether they wait for
// memory now and are not killed, which v1 alone has.
func (c *Counter) count() (kills int, waiting bool, err error) {
	said := map[string]int{}
	lines := bufio.NewScanner(io.NewSectionReader(c.file, 0, 1<<16))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if said[name], err = strconv.Atoi(value); err != nil {
			return 0, false, err
		}
	}
	return said["oom_kill"], said["oom_kill_disable"] != 0 && said["under_oom"] != 0, lines.Err()
}
