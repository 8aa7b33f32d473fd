// Command ferry-runner is the parent of one pod's containers. ferryd starts it;
// see internal/engine/runner/proc.
package main

import (
	"os"
	"runtime"

	"github.com/ferryos/ferry/internal/engine/runner/proc"
)

// The main thread, which cannot end alone, is not one to enter a container with.
func init() { runtime.LockOSThread() }

func main() { os.Exit(proc.Main(os.Args[1:], os.Stderr)) }
