package lifecycle

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestStopHTTP has a request that ends by itself, and one whose client neither
// sends the rest of it nor goes away.
func TestStopHTTP(t *testing.T) {
	for _, stalls := range []bool{false, true} {
		t.Run(fmt.Sprint("stalls=", stalls), func(t *testing.T) {
			begun := make(chan struct{})
			var ended atomic.Bool
			var work sync.WaitGroup
			s := &http.Server{ConnState: CountConns(&work), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				if stalls {
					if _, err := io.Copy(w, r.Body); err == nil {
						t.Error("the stalled request has come to its end")
					}
					time.Sleep(10 * time.Millisecond) // what a handler does then
				}
				ended.Store(true)
			})}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			work.Go(func() { s.Serve(l) })
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, "POST / HTTP/1.1\r\nHost: ferry\r\nContent-Length: 1000\r\n\r\n")
			<-begun
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := StopHTTP(ctx, s, &work); err != nil {
				t.Errorf("stop: %v", err)
			}
			if !ended.Load() {
				t.Error("stopped while a handler was at work")
			}
		})
	}
}

func TestStopHTTPHasALimit(t *testing.T) {
	var work sync.WaitGroup
	free := make(chan struct{})
	work.Go(func() { <-free })
	defer work.Wait()
	defer close(free)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := StopHTTP(ctx, &http.Server{}, &work); err == nil {
		t.Error("no error, though work goes on")
	}
}
