package dockerapi

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/engine"
)

// TestStopDoesNotWaitForAClient stops the server while a client has sent half a
// request and neither sends more nor goes away.
func TestStopDoesNotWaitForAClient(t *testing.T) {
	s := New(Options{Engine: engine.New(engine.Options{}), Socket: filepath.Join(t.TempDir(), "docker.sock"), Root: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", s.opt.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The server asks for the body when the handler reads it.
	fmt.Fprint(conn, "POST /v1.44/containers/create HTTP/1.1\r\nHost: ferry\r\nContent-Type: application/json\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}
