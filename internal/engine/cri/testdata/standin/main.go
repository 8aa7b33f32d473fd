// Command standin is, by the name it is run as, one of the programs that the
// images of critest hold and busybox does not: a web server under the names
// nginx and httpd, ipcs -m, and nnp, which says who it is.
package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); name {
	case "ipcs":
		var list []byte
		if list, err = os.ReadFile("/proc/sysvipc/shm"); err == nil {
			_, err = os.Stdout.Write(list)
		}
	case "nnp":
		fmt.Println("Effective uid:", os.Geteuid())
	default:
		fmt.Println(name, "started")
		// As the real ones do: the first process is the "master process".
		if err = os.WriteFile("/var/run/"+name+".pid", []byte(strconv.Itoa(os.Getpid())), 0o644); err == nil {
			err = http.ListenAndServe(":"+os.Args[1], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintln(w, "Welcome to", name)
			}))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
