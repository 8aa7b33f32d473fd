package engine

import (
	"context"
	"sync"
)

// maxQueue is how many events wait for a subscriber that does not read.
const maxQueue = 4096

// broadcaster hands every event to every subscriber, in order, without ever
// waiting for one: each has a queue of its own, and is dropped when that is full.
type broadcaster struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct {
	wake    chan struct{}
	dropped chan struct{}

	mu    sync.Mutex
	queue []Event
}

func (b *broadcaster) publish(ev Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		if !s.push(ev) {
			delete(b.subs, s)
			close(s.dropped)
			continue
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// push queues ev unless the queue is full.
func (s *subscriber) push(ev Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) >= maxQueue {
		return false
	}
	s.queue = append(s.queue, ev)
	return true
}

// subscribe returns the events from now on; the channel is closed once ctx
// ends or the subscriber is dropped.
func (b *broadcaster) subscribe(ctx context.Context) <-chan Event {
	s := &subscriber{wake: make(chan struct{}, 1), dropped: make(chan struct{})}
	b.mu.Lock()
	if b.subs == nil {
		b.subs = make(map[*subscriber]struct{})
	}
	b.subs[s] = struct{}{}
	b.mu.Unlock()
	out := make(chan Event)
	go func() {
		defer close(out)
		defer func() {
			b.mu.Lock()
			delete(b.subs, s)
			b.mu.Unlock()
		}()
		for {
			for _, ev := range s.take() {
				select {
				case out <- ev:
				case <-s.dropped:
					return
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-s.wake:
			case <-s.dropped:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (s *subscriber) take() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queue
	s.queue = nil
	return q
}
