package cri_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine/cri"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

// TestCritest runs the suite of the Kubernetes project's CRI tools against the
// socket, for scripts/conformance-cri.sh: CRITEST is the suite's program,
// CRITEST_ROOT where Debian's packages are unpacked. CRITEST_FOCUS is a regular
// expression of specs. docs/conformance.md has what it found.
func TestCritest(t *testing.T) {
	program := os.Getenv("CRITEST")
	if program == "" {
		t.Skip("`make conformance-cri` runs it")
	}
	runnertest.NeedRoot(t)
	registries := serveImages(t)
	before := sharedMemory(t)
	t.Cleanup(func() { // critest makes two on the host and leaves them
		for id, line := range sharedMemory(t) {
			if _, older := before[id]; !older && strings.Fields(line)[3] == "1048576" && strings.Fields(line)[6] == "0" {
				if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
					t.Errorf("remove shared memory %d: %v", id, err)
				}
			}
		}
	})
	m := enginetest.New(t, registries...)
	service := cri.New(cri.Options{Engine: m.Engine, Version: "0.0.0-test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	path := filepath.Join(m.Dir(), "cri.sock")
	socket := cri.NewSocket(service, path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	start(t, service)
	start(t, socket)
	critest := func(t *testing.T, args ...string) []spec {
		report := filepath.Join(t.TempDir(), "report.json")
		cmd := exec.CommandContext(t.Context(), program, append([]string{"--runtime-endpoint=unix://" + path, "--ginkgo.json-report=" + report,
			"--runtime-service-timeout=20s", "--ginkgo.no-color"}, args...)...)
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		runErr := cmd.Run()
		specs, err := readReport(t, report)
		if err != nil {
			t.Fatalf("%v (critest: %v)", err, runErr)
		}
		return specs
	}
	focus := os.Getenv("CRITEST_FOCUS")
	specs := critest(t, "--ginkgo.focus="+focus)
	if focus != "" {
		if !slices.ContainsFunc(specs, func(s spec) bool { return s.state == "passed" }) {
			t.Errorf("no spec that matches %q has passed", focus)
		}
		return
	}
	params := filepath.Join(t.TempDir(), "benchmarks.yaml")
	if err := os.WriteFile(params, []byte(benchmarks), 0o600); err != nil {
		t.Fatal(err)
	}
	compare(t, table(specs, critest(t, "--benchmark", "--benchmarking-params-file="+params)))
}

// benchmarks is how often critest repeats what its own benchmarks do. They
// judge nothing here but that it works; test/bench measures.
const benchmarks = `
containersNumber: 10
podsNumber: 10
imagesNumber: 2
imagePullingBenchmarkImage: registry.k8s.io/e2e-test-images/busybox:1.29-2
imageListingBenchmarkImages: [registry.k8s.io/e2e-test-images/busybox:1.29-2]
`

// sharedMemory is the host's segments: their lines in the kernel's table, by id.
func sharedMemory(t *testing.T) map[int]string {
	table, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); fields[0] != "key" {
			id, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			out[id] = line
		}
	}
	return out
}

// expected are the specs that the stand-in images cannot pass, and what they
// then say: any other failure of theirs is one.
var expected = map[string]string{
	// It asks for one digest's original bytes.
	"public image with digest should be pulled and removed": "test-image-digest@sha256:9700f9a2",
}

// spec is what one spec of the suite came to.
type spec struct{ area, name, state string }

// readReport logs a line for each spec and fails the test for what fails
// without being expected to.
func readReport(t *testing.T, path string) (specs []spec, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts    []string
			LeafNodeType, LeafNodeText string
			State                      string
			RunTime                    int64
			Failure                    struct{ Message string }
		}
	}
	if err := json.Unmarshal(data, &suites); err != nil {
		return nil, fmt.Errorf("critest's report: %w", err)
	}
	for _, s := range suites {
		for _, r := range s.SpecReports {
			if r.LeafNodeType != "It" {
				continue
			}
			name := strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), ": ")
			t.Logf("SPEC %s | %s | %d ms | %s", r.State, name, r.RunTime/1e6, strings.ReplaceAll(r.Failure.Message, "\n", " "))
			known := false
			for text, says := range expected {
				known = known || strings.HasPrefix(r.LeafNodeText, text) && strings.Contains(r.Failure.Message, says)
			}
			if r.State != "passed" && r.State != "skipped" && !known {
				t.Errorf("%s: %s", name, r.Failure.Message)
			}
			specs = append(specs, spec{strings.TrimPrefix(r.ContainerHierarchyTexts[0], "[k8s.io] "), name, r.State})
		}
	}
	return specs, nil
}

// table is the table of docs/conformance.md. A run leaves out the specs of the
// other, which count as skipped in it.
func table(runs ...[]spec) string {
	best := map[string]spec{}
	for _, s := range slices.Concat(runs...) {
		if was, seen := best[s.name]; !seen || was.state == "skipped" {
			best[s.name] = s
		}
	}
	type count struct{ passed, failed, skipped int }
	areas, all := map[string]*count{}, &count{}
	for _, s := range best {
		area := s.area
		if strings.Contains(s.name, ": benchmark about ") {
			area = "benchmarks, run for their answers alone"
		}
		if areas[area] == nil {
			areas[area] = &count{}
		}
		for _, c := range []*count{areas[area], all} {
			switch s.state {
			case "passed":
				c.passed++
			case "skipped":
				c.skipped++
			default:
				c.failed++
			}
		}
	}
	var out strings.Builder
	out.WriteString("| area | passed | failed | skipped |\n|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(areas)) {
		fmt.Fprintf(&out, "| %s | %d | %d | %d |\n", name, areas[name].passed, areas[name].failed, areas[name].skipped)
	}
	fmt.Fprintf(&out, "| **all** | **%d** | **%d** | **%d** |\n", all.passed, all.failed, all.skipped)
	return out.String()
}

const conformanceFile = "../../../docs/conformance.md"

// compare compares the table with the published one, or writes it if CRITEST_UPDATE is set.
func compare(t *testing.T, table string) {
	text, err := os.ReadFile(conformanceFile)
	if err != nil {
		t.Fatal(err)
	}
	old := regexp.MustCompile(`(?m)^\| area \| passed .*\n(\|.*\n)+`).FindString(string(text))
	switch {
	case old == "":
		t.Fatalf("%s has no table of areas", conformanceFile)
	case os.Getenv("CRITEST_UPDATE") != "" && !t.Failed():
		if err := os.WriteFile(conformanceFile, []byte(strings.Replace(string(text), old, table, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	case old != table:
		t.Errorf("docs/conformance.md has another result; `make conformance-cri UPDATE=1` writes this one:\n%s", table)
	}
}
