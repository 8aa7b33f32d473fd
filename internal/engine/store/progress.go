package store

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Event is a step of a pull or push, of one blob.
type Event struct {
	ID             digest.Digest
	Status         Status
	Current, Total int64 // bytes, where the step has some
}

// Status is what is done with a blob, in Docker's words, which clients look for.
type Status string

// What can be done with a blob.
const (
	StatusQueued      Status = "Pulling fs layer"
	StatusDownloading Status = "Downloading"
	StatusDownloaded  Status = "Download complete"
	StatusExtracting  Status = "Extracting"
	StatusComplete    Status = "Pull complete"
	StatusExists      Status = "Already exists"
	StatusPreparing   Status = "Preparing"
	StatusPushing     Status = "Pushing"
	StatusPushed      Status = "Pushed"
	StatusInRegistry  Status = "Layer already exists"
)

// reportEvery is how often a client hears how far a blob is.
const reportEvery = 100 * time.Millisecond

// reporter hands the events of one transfer on, one at a time and not more
// often than people can read. Who transfers never waits for a slow client but
// where a step begins or ends.
type reporter struct {
	to func(Event)

	mu   sync.Mutex // innermost; to is called under it
	last map[digest.Digest]time.Time
	step map[digest.Digest]Status
}

// newReporter returns a reporter to a function, which may be nil.
func newReporter(to func(Event)) *reporter {
	return &reporter{to: to, last: map[digest.Digest]time.Time{}, step: map[digest.Digest]Status{}}
}

func (r *reporter) report(ev Event) {
	if r.to == nil {
		return
	}
	if ev.Current > 0 && ev.Current < ev.Total {
		if !r.mu.TryLock() {
			return
		}
	} else {
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	now := time.Now()
	if r.step[ev.ID] == ev.Status && now.Sub(r.last[ev.ID]) < reportEvery {
		return
	}
	r.step[ev.ID], r.last[ev.ID] = ev.Status, now
	r.to(ev)
}
