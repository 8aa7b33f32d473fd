package proc

import (
	"sync"

	"github.com/ferryos/ferry/internal/engine/runner"
)

// watcher is one caller of Events: an unbounded queue, so that no caller holds
// up a container. Events are few.
type watcher struct {
	mu     sync.Mutex
	more   *sync.Cond
	queue  []runner.Event
	closed bool
}

func (w *watcher) push(ev runner.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, ev)
	w.more.Signal()
}

func (w *watcher) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.more.Signal()
}

// next returns the queued events, waiting for some; none after close.
func (w *watcher) next() []runner.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) == 0 && !w.closed {
		w.more.Wait()
	}
	queue := w.queue
	w.queue = nil
	return queue
}

// events sends the exits so far and then every event, until the caller hangs up.
func (s *server) events(conn *runner.Conn) {
	w := &watcher{}
	w.more = sync.NewCond(&w.mu)
	s.mu.Lock()
	select {
	case <-s.closed: // it has closed the watchers there were, and waits for this call
		s.mu.Unlock()
		return
	default:
	}
	for _, c := range s.containers {
		if c == nil {
			continue
		}
		select {
		case <-c.exited:
			w.push(runner.Event{Type: runner.EventExit, ID: c.id, Exit: c.exit})
		default:
		}
	}
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	go func() { // ends with the connection
		<-whenGone(conn)
		w.close()
	}()
	for {
		list := w.next()
		if len(list) == 0 {
			break
		}
		for _, ev := range list {
			if conn.WriteJSON(runner.FrameEvent, ev) != nil {
				w.close()
				break
			}
		}
	}
	s.mu.Lock()
	delete(s.watchers, w)
	s.mu.Unlock()
}

// announce tells every caller of Events. c.exited is closed under the same lock
// as an exit is announced, so that each caller hears of it exactly once.
func (s *server) announce(ev runner.Event, before func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before != nil {
		before()
	}
	for w := range s.watchers {
		w.push(ev)
	}
}
