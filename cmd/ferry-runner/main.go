// Command ferry-runner is the parent of one pod's containers. ferryd starts it;
// see internal/engine/runner/proc.
package main

import (
	"os"

	"github.com/ferryos/ferry/internal/engine/runner/proc"
)

// libcontainer's first step in a container must run on the main thread, which
// only init functions are sure of.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		proc.Init()
	}
}

func main() { os.Exit(proc.Main(os.Args[1:], os.Stderr)) }
