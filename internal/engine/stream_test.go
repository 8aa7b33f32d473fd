package engine_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// pausedWriter takes nothing until goOn is closed.
type pausedWriter struct {
	paused, goOn chan struct{}
	once         sync.Once
}

func newPausedWriter() *pausedWriter {
	return &pausedWriter{paused: make(chan struct{}), goOn: make(chan struct{})}
}

func (w *pausedWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.paused) })
	<-w.goOn
	return len(p), nil
}

// TestPausedClients: clients that do not read what they are attached to keep
// nothing from being stopped and removed.
func TestPausedClients(t *testing.T) {
	m := enginetest.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pod, c := m.Run(engine.ContainerSpec{Name: "c", Command: []string{"yes"}})
	var clients sync.WaitGroup
	attached, executed := newPausedWriter(), newPausedWriter()
	clients.Go(func() { m.Attach(t.Context(), c.ID, engine.Streams{Stdout: attached}) })
	clients.Go(func() {
		m.Exec(t.Context(), c.ID, engine.ExecSpec{Args: []string{"yes"}}, engine.Streams{Stdout: executed})
	})
	<-attached.paused
	<-executed.paused
	time.Sleep(300 * time.Millisecond) // until the sockets are full; a shorter time proves less
	if err := m.StopContainer(ctx, c.ID, 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if got, err := m.Wait(ctx, c.ID); err != nil || got.State != engine.StateExited {
		t.Errorf("%+v, %v", got, err)
	}
	if err := m.RemovePod(ctx, pod.ID); err != nil {
		t.Error(err)
	}
	close(attached.goOn)
	close(executed.goOn)
	clients.Wait()
}
