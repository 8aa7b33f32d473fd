// Command ferry-runner is the parent of one pod's containers. ferryd starts it;
// see internal/engine/runner/proc.
package main

import (
	"os"

	"github.com/ferryos/ferry/internal/engine/runner/proc"
)

func main() { os.Exit(proc.Main(os.Args[1:], os.Stderr)) }
