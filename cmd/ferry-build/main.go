// Command ferry-build is ferry with what `ferry build` needs linked in, which
// ferry starts for that command.
package main

import (
	"context"
	"os"

	"github.com/ferryos/ferry/internal/build/buildclient"
	"github.com/ferryos/ferry/internal/cli"
)

func main() {
	cli.Build = func(ctx context.Context, opt cli.BuildOptions) (string, error) {
		res, err := buildclient.Build(ctx, buildclient.Options(opt))
		return res.ImageID, err
	}
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
