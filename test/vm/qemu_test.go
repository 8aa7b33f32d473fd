package main

import (
	"io"
	"slices"
	"strings"
	"testing"
)

// TestFailures: only a suite that ended well and ran something has passed.
func TestFailures(t *testing.T) {
	const out = `##vm machine 6.1, cgroup cgroup2fs
##vm begin good
--- PASS: TestA (0.00s)
##vm end good 0 1
##vm begin none
testing: warning: no tests to run
PASS
##vm end none 0 1
##vm begin nosub
--- PASS: TestScripts (0.00s)
testing: warning: no tests to run
PASS
##vm end nosub 0 1
##vm begin skipped
--- SKIP: TestA (0.00s)
##vm end skipped 0 1
##vm begin bad
--- PASS: TestA (0.00s)
--- FAIL: TestB (0.00s)
##vm end bad 1 1
##vm begin cut
--- PASS: TestA (0.00s)
`
	var r result
	if err := r.read(strings.NewReader(out), io.Discard); err != nil {
		t.Fatal(err)
	}
	var want []job
	for _, name := range []string{"good", "none", "nosub", "skipped", "bad", "cut", "silent"} {
		want = append(want, job{suite: suite{name: name}})
	}
	got := r.failures("plain", want)
	if !slices.Equal(got, []string{"plain/none", "plain/nosub", "plain/skipped", "plain/bad", "plain/cut", "plain/silent"}) {
		t.Errorf("failures: %q", got)
	}
}
