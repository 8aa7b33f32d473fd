// Command mlp is Ferry's built-in model runtime: it makes data, trains a
// feed-forward network, publishes it to a registry and serves it.
//
// It ships as the image ferry.local/mlp and imports nothing of the platform.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/ferryos/ferry/runtimes/mlp/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
