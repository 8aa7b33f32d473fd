package engine

import (
	"context"
	"strconv"
	"testing"
)

// TestEventsOfSlowReaders: one that does not read is dropped and told so by the
// end of its channel; the others get every event in order.
func TestEventsOfSlowReaders(t *testing.T) {
	var b broadcaster
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	idle, reading := b.subscribe(ctx), b.subscribe(ctx)
	const events = 3 * maxQueue
	for i := range events {
		b.publish(Event{Pod: Pod{ID: strconv.Itoa(i)}})
		if ev, ok := <-reading; !ok || ev.Pod.ID != strconv.Itoa(i) {
			t.Fatalf("event %d is %+v, %v", i, ev, ok)
		}
	}
	n := 0
	for range idle { // for ever, were it not closed
		if n++; n == events {
			t.Fatal("all events were kept for a reader that did not read")
		}
	}
	b.mu.Lock()
	left := len(b.subs)
	b.mu.Unlock()
	if left != 1 {
		t.Errorf("%d subscribers are left, want the one that reads", left)
	}
	cancel()
	for range reading {
	}
}
