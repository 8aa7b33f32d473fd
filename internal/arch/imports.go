package arch

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// checkLayers compares the module's imports with the table of layers, and the
// table with itself: it points down.
func checkLayers(pkgs []*pkg, layers []layer) []string {
	var out []string
	fail := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	rank := map[string]int{}
	for i, l := range layers {
		rank[l.pkg] = i
	}
	for i, l := range layers {
		for _, to := range words(l.imports) {
			r, known := rank[to]
			switch {
			case !known:
				fail("layers: the row of %s names %s, which has no row", l.pkg, to)
			case r <= i:
				fail("layers: the row of %s names %s, which stands above it: imports point down", l.pkg, to)
			}
		}
		if !slices.ContainsFunc(pkgs, func(p *pkg) bool { return p.name == l.pkg }) {
			fail("layers: %s has a row and does not exist", l.pkg)
		}
	}
	for _, p := range pkgs {
		i, known := rank[p.name]
		if !known {
			fail("%s has no row in the table of layers: place it", p.dir)
			continue
		}
		may := words(layers[i].imports)
		imports := ours(p.imports(false))
		for _, to := range imports {
			switch {
			case !slices.Contains(may, to):
				fail("%s imports %s, which its row in the table of layers does not name", p.dir, to)
			case forTests(to) && !forTests(p.name):
				fail("%s imports %s, which is for tests alone", p.dir, to)
			}
		}
		for _, to := range may {
			if !slices.Contains(imports, to) {
				fail("layers: the row of %s names %s, which it does not import any more", p.name, to)
			}
		}
		tested := ours(p.imports(true))
		for _, to := range tested {
			if r, known := rank[to]; known && r < i && !forTests(to) {
				fail("a test of %s imports %s, which stands above it: imports point down", p.dir, to)
			}
		}
		for _, to := range slices.Concat(imports, tested) {
			if side(p.name) != side(to) {
				fail("%s imports %s: runtimes and the platform do not know each other", p.dir, to)
			}
		}
	}
	return out
}

// ours returns those of the paths that are of this module, as tables name them.
func ours(paths []string) []string {
	var list []string
	for _, p := range paths {
		if name, ok := short(p); ok {
			list = append(list, name)
		}
	}
	return list
}

func forTests(name string) bool {
	return strings.HasPrefix(name, "test/") || strings.HasSuffix(name, "test")
}

// side is the runtime that a package belongs to, "" for the platform's.
func side(name string) string {
	if dirs := strings.SplitN(name, "/", 3); dirs[0] == "runtimes" && len(dirs) > 1 {
		return dirs[1]
	}
	return ""
}

// checkOwners reports imports of a heavy dependency by other packages than its
// owners, tests included, and owners that do not import it.
func checkOwners(pkgs []*pkg, owners []owner) []string {
	var out []string
	for _, p := range pkgs {
		for _, to := range slices.Concat(p.imports(false), p.imports(true)) {
			if o, dependency := ownerOf(to, owners); dependency != "" && !slices.Contains(words(o.importers), p.name) {
				out = append(out, fmt.Sprintf("%s imports %s: only %s may import %s", p.dir, to,
					strings.Join(words(o.importers), " and "), dependency))
			}
		}
	}
	for _, o := range owners {
		for _, name := range words(o.importers) {
			if !slices.ContainsFunc(pkgs, func(p *pkg) bool {
				return p.name == name && slices.ContainsFunc(slices.Concat(p.imports(false), p.imports(true)), func(to string) bool {
					found, _ := ownerOf(to, owners)
					return found == o
				})
			}) {
				out = append(out, fmt.Sprintf("owners: %s is named for %s, which it does not import any more", name, o.dependencies))
			}
		}
	}
	return out
}

// ownerOf returns the row, and of it the longest dependency, that a path belongs to.
func ownerOf(importPath string, owners []owner) (found owner, dependency string) {
	for _, o := range owners {
		for _, d := range words(o.dependencies) {
			if below(importPath, d) && len(d) > len(dependency) {
				found, dependency = o, d
			}
		}
	}
	return found, dependency
}

// below reports whether a path is prefix or in it.
func below(importPath, prefix string) bool {
	return importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
}

// checkLinked reports what a program links and must not, with the imports that
// lead there. graph holds the imports of every package that the program links.
func checkLinked(p program, graph map[string][]string) []string {
	var out []string
	from := modulePath + "/" + p.pkg
	for _, prefix := range words(p.forbidden) {
		for _, linked := range slices.Sorted(maps.Keys(graph)) {
			if below(linked, prefix) {
				out = append(out, fmt.Sprintf("%s must not link %s: %s\n\t%s", p.pkg, prefix, p.why,
					strings.Join(chain(graph, from, prefix), "\n\t→ ")))
				break
			}
		}
	}
	return out
}

// chain returns the shortest way of imports from a package to one below prefix.
func chain(graph map[string][]string, from, prefix string) []string {
	came := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if at := queue[0]; below(at, prefix) {
			var way []string
			for ; at != ""; at = came[at] {
				way = append(way, at)
			}
			slices.Reverse(way)
			return way
		}
		for _, to := range graph[queue[0]] {
			if _, seen := came[to]; !seen {
				came[to] = queue[0]
				queue = append(queue, to)
			}
		}
	}
	return nil
}
