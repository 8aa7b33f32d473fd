// Command ferry is the command line of the platform.
package main

import (
	"context"
	"os"

	"github.com/ferryos/ferry/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
