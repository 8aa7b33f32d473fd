// Command ferryd is the platform: one process that runs all of Ferry's parts.
// People start it with `ferry up`.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/ferryos/ferry/internal/app"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(app.Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
}
