package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// root is the module's directory.
const root = "../.."

// TestModule runs every check over this module.
func TestModule(t *testing.T) {
	pkgs, err := load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < len(layers) {
		t.Errorf("%d packages found, the table of layers has %d", len(pkgs), len(layers))
	}
	report := func(name string, problems []string) {
		t.Run(name, func(t *testing.T) {
			for _, p := range problems {
				t.Error(p)
			}
		})
	}
	report("layers", checkLayers(pkgs, layers))
	report("owners", checkOwners(pkgs, owners))
	report("package docs", checkPackageDocs(pkgs))
	report("docs", checkDocs(pkgs))
	report("contexts", checkContexts(pkgs))
	report("ends", allowed(findEnds(pkgs), ends))
	report("budgets", allowed(findOverBudget(pkgs, importBudgets), overBudget))
	links, err := checkLinks(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	report("links", links)
}

// TestLinked looks into what the programs link. What is forbidden to one must be
// linked by another: a path that nothing links is misspelt or out of date.
func TestLinked(t *testing.T) {
	mod, err := os.ReadFile(root + "/go.mod") // a change of it runs a cached test again
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(mod, []byte("module "+modulePath+"\n")) {
		t.Fatalf("go.mod is not that of %s", modulePath)
	}
	all := map[string][]string{}
	for _, p := range programs {
		graph, err := linked(p)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, graph)
		for _, problem := range checkLinked(p, graph) {
			t.Error(problem)
		}
	}
	for _, p := range programs {
		for _, prefix := range words(p.forbidden) {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(linked string) bool { return below(linked, prefix) }) {
				t.Errorf("programs: no program links %s, which is forbidden to %s: is it misspelt?", prefix, p.pkg)
			}
		}
	}
}

// linked returns the packages that a program links, each with what it imports.
func linked(p program) (map[string][]string, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports", "-tags", strings.ReplaceAll(p.tags, " ", ","), "./"+p.pkg)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=1")
	var failure bytes.Buffer
	cmd.Stderr = &failure
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%v: %w\n%s", cmd.Args, err, &failure)
	}
	graph := map[string][]string{}
	for list := json.NewDecoder(bytes.NewReader(out)); ; {
		var one struct {
			ImportPath string
			Imports    []string
		}
		if err := list.Decode(&one); errors.Is(err, io.EOF) {
			return graph, nil
		} else if err != nil {
			return nil, err
		}
		graph[one.ImportPath] = one.Imports
	}
}
