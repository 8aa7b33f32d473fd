// Package eventlog keeps the last events of the Docker API, for who asks for
// the past, and lets any number of readers follow it.
//
// Only internal/dockerapi imports it. It knows neither where events come from
// nor HTTP. On disk there are as many as are remembered, or twice that: who asks
// what happened is to hear also of what was before the daemon's last start.
package eventlog

import (
	"context"
	"sync"

	"github.com/moby/moby/api/types/events"
)

// kept is how many events are remembered. Docker remembers 256, which a few
// health checks push out within minutes.
const kept = 4096

// Log is a ring of events. The zero Log is empty and ready, and keeps nothing on disk.
//
// Nobody is handed events: readers come and get them, each with a place of its
// own, so that publishing never waits and costs the same for any number of readers.
type Log struct {
	mu      sync.Mutex
	ring    []events.Message
	next    Place
	changed chan struct{} // closed at the next event; nil while nobody waits
	file    *file         // nil if nothing is kept on disk
}

// Place is a point between two events; the events after it are still to be read.
type Place uint64

// Publish adds an event.
func (l *Log) Publish(m events.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(m)
	if l.file != nil {
		l.file.keep(m)
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// add puts an event into the ring; l.mu is held.
func (l *Log) add(m events.Message) {
	if len(l.ring) < kept {
		l.ring = append(l.ring, m)
	} else {
		l.ring[l.next%kept] = m
	}
	l.next++
}

// Now is the place after the last event so far.
func (l *Log) Now() Place {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// After returns the events after from, 0 being all that are remembered, and the
// place to go on from. A reader that is more than all of them behind misses some.
func (l *Log) After(from Place) ([]events.Message, Place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.after(from), l.next
}

// after is After with mu held.
func (l *Log) after(from Place) []events.Message {
	oldest := l.next - Place(len(l.ring))
	var out []events.Message
	for at := max(from, oldest); at < l.next; at++ {
		out = append(out, l.ring[at%kept])
	}
	return out
}

// Next is After, but waits for an event if there is none yet.
func (l *Log) Next(ctx context.Context, from Place) ([]events.Message, Place, error) {
	for {
		l.mu.Lock()
		found, next := l.after(from), l.next
		if len(found) == 0 && l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if len(found) > 0 {
			return found, next, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, next, ctx.Err()
		}
	}
}

// Await returns once an event after from is what match looks for.
func (l *Log) Await(ctx context.Context, from Place, match func(events.Message) bool) error {
	for {
		found, next, err := l.Next(ctx, from)
		if err != nil {
			return err
		}
		for _, m := range found {
			if match(m) {
				return nil
			}
		}
		from = next
	}
}
