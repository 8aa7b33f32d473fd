package lifecycle

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// requestGrace is how long requests get to end by themselves.
const requestGrace = 300 * time.Millisecond

// CountConns is a server's ConnState hook that has work wait for the requests.
// Connections that a handler has taken over are the handler's to wait for. The
// calls of Serve must be in work too.
func CountConns(work *sync.WaitGroup) func(net.Conn, http.ConnState) {
	return func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			work.Add(1)
		case http.StateClosed, http.StateHijacked:
			work.Done()
		}
	}
}

// StopHTTP stops a server and returns when work has ended or ctx is done. It
// does not leave it to the clients when that is: after a moment it cuts off
// those that follow a log or let an upload stall, for the time to stop is one
// for all components.
func StopHTTP(ctx context.Context, s *http.Server, work *sync.WaitGroup) error {
	grace, cancel := context.WithTimeout(ctx, requestGrace)
	defer cancel()
	var err error
	if s.Shutdown(grace) != nil {
		err = s.Close()
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}
