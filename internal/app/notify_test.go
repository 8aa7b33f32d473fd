package app

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestInitNotifier(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := initNotifier()("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}

	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	tell := initNotifier()
	if left, there := os.LookupEnv("NOTIFY_SOCKET"); there {
		t.Errorf("others still see NOTIFY_SOCKET=%s", left)
	}
	if err := tell("READY=1"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := l.Read(got)
	if err != nil || string(got[:n]) != "READY=1" {
		t.Errorf("systemd was told %q, %v", got[:n], err)
	}
}
