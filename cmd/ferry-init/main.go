// Command ferry-init is /sbin/docker-init in containers made with --init.
package main

import (
	"os"

	"github.com/ferryos/ferry/internal/initproc"
)

func main() { os.Exit(initproc.Main(os.Args, os.Stderr)) }
