package app

import (
	"fmt"
	"net"
	"os"
)

// initNotifier returns what tells the init system how this process does, where
// systemd started it as a unit of the type notify: see sd_notify(3). It takes
// the socket's address out of the environment, for the API server and whatever
// else sees it there would speak for the whole process.
func initNotifier() func(state string) error {
	const name = "NOTIFY_SOCKET"
	address := os.Getenv(name)
	if address == "" {
		return func(string) error { return nil }
	}
	unsetErr := os.Unsetenv(name)
	return func(state string) error {
		if unsetErr != nil {
			return unsetErr
		}
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer conn.Close()
		_, err = conn.Write([]byte(state))
		return err
	}
}
