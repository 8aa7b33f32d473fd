package dockerapi_test

import (
	"flag"
	"os"
	"runtime"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

var churn = flag.Int("churn", 100, "how many containers TestChurn starts and removes")

// TestChurn: containers that come and go leave nothing in the daemon's memory,
// no goroutine and no open file. What a whole daemon takes of the machine is
// looked at in test/chaos; here a kilobyte for each would be seen.
func TestChurn(t *testing.T) {
	a := newAPI(t)
	one := func() {
		s := sleeper("churn")
		s.config.Labels = map[string]string{"a": "b"}
		s.config.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}}
		id := a.up(s)
		if _, err := a.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	signalled := a.up(sleeper("signalled"))
	for range 4096 { // events, which are kept, as many as there are kept
		if _, err := a.ContainerKill(t.Context(), signalled, client.ContainerKillOptions{Signal: "CONT"}); err != nil {
			t.Fatal(err)
		}
	}
	const warm = 20
	for range warm {
		one()
	}
	before := held(t)
	for i := range *churn {
		one()
		if (i+1)%500 == 0 {
			t.Logf("after %d: %+v", i+1, held(t))
		}
	}
	after := held(t)
	t.Logf("before: %+v, after %d more: %+v", before, *churn, after)
	const spare = 64 << 10 // of the test and its client
	if grown := after.heap - before.heap; grown > 1024**churn+spare {
		t.Errorf("%d bytes more for each container", grown / *churn)
	}
	eventually(t, "the goroutines have ended and the files are closed", func() bool {
		now := held(t)
		return now.goroutines <= before.goroutines+5 && now.files <= before.files+5
	})
}

type holding struct{ heap, objects, goroutines, files int }

// held is what this process, the daemon of the test, holds.
func held(t *testing.T) holding {
	t.Helper()
	for range 2 { // the second finds what finalizers have let go
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return holding{int(m.HeapAlloc), int(m.HeapObjects), runtime.NumGoroutine(), len(files)}
}
