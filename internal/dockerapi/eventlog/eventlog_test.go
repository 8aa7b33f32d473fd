package eventlog

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/events"
)

func message(n int) events.Message {
	return events.Message{Actor: events.Actor{ID: strconv.Itoa(n)}, TimeNano: int64(n)}
}

func TestAfter(t *testing.T) {
	var l Log
	if got, next := l.After(0); len(got) != 0 || next != 0 {
		t.Errorf("an empty log has %v, %d", got, next)
	}
	for n := range 3 {
		l.Publish(message(n))
	}
	got, next := l.After(1)
	if len(got) != 2 || got[0].TimeNano != 1 || got[1].TimeNano != 2 || next != 3 || l.Now() != 3 {
		t.Errorf("%v, %d", got, next)
	}
}

// TestForgets: the oldest go first, and who is far behind goes on with what is left.
func TestForgets(t *testing.T) {
	var l Log
	for n := range kept + 10 {
		l.Publish(message(n))
	}
	got, next := l.After(0)
	if len(got) != kept || got[0].TimeNano != 10 || got[kept-1].TimeNano != kept+9 || next != kept+10 {
		t.Errorf("%d events from %d, next %d", len(got), got[0].TimeNano, next)
	}
}

func TestNextWaits(t *testing.T) {
	var l Log
	const readers, each = 8, 1000
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			var at Place
			for seen := 0; seen < each; {
				found, next, err := l.Next(t.Context(), at)
				if err != nil {
					t.Error(err)
					return
				}
				for _, m := range found {
					if m.TimeNano != int64(seen) {
						t.Errorf("%d where %d belongs", m.TimeNano, seen)
						return
					}
					seen++
				}
				at = next
			}
		})
	}
	for n := range each {
		l.Publish(message(n))
	}
	wg.Wait()
}

func TestAwait(t *testing.T) {
	var l Log
	l.Publish(message(7)) // before the place: does not count
	from := l.Now()
	found := make(chan error)
	go func() {
		found <- l.Await(t.Context(), from, func(m events.Message) bool { return m.TimeNano == 7 })
	}()
	l.Publish(message(1))
	l.Publish(message(7))
	if err := <-found; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Await(ctx, l.Now(), func(events.Message) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of its context: %v", err)
	}
}
