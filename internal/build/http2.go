package build

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// serveHTTP2 serves HTTP/2 without TLS on conn until it ends or ctx is done.
func serveHTTP2(ctx context.Context, conn net.Conn, handler http.Handler, log *slog.Logger) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	l := &oneConn{Conn: conn, ended: make(chan struct{})}
	end := sync.OnceFunc(func() { close(l.ended) })
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{
		Handler: handler, Protocols: &protocols, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				end()
			}
		},
	}
	_ = server.Serve(l) // always ends with that there is no other connection
}

// oneConn is a listener that hands out one connection, and ends with it.
type oneConn struct {
	net.Conn
	taken bool
	ended chan struct{}
}

// Accept implements net.Listener; a server calls it from one goroutine.
func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.Conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.LocalAddr() }
