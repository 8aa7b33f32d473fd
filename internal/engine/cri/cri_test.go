package cri_test

import (
	"context"
	"os"
	"testing"

	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/lifecycle"
)

func TestMain(m *testing.M) {
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}

// start starts a component until the end of the test.
func start(t *testing.T, c lifecycle.Component) {
	t.Helper()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stop %s: %v", c.Name(), err)
		}
	})
}
