package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// pkg is a package of the module, as written: with files that a build for this
// machine leaves out.
type pkg struct {
	dir   string // relative to the module's root
	name  string // as in the tables
	files []*file
}

// file is a parsed Go file.
type file struct {
	path            string // relative to the module's root
	test, generated bool
	lines           int
	fset            *token.FileSet
	*ast.File
}

// load parses the module's packages.
func load(root fs.FS) ([]*pkg, error) {
	var list []*pkg
	err := walk(root, func(name string) error {
		if path.Ext(name) != ".go" {
			return nil
		}
		f, err := parse(root, name)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		i := slices.IndexFunc(list, func(p *pkg) bool { return p.dir == dir })
		if i < 0 {
			i = len(list)
			list = append(list, &pkg{dir: dir, name: strings.TrimPrefix(dir, "internal/")})
		}
		list[i].files = append(list[i].files, f)
		return nil
	})
	return list, err
}

func parse(root fs.FS, name string) (*file, error) {
	source, err := fs.ReadFile(root, name)
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &file{path: name, test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(tree),
		lines: fset.File(tree.FileStart).LineCount(), fset: fset, File: tree}, nil
}

// walk calls f for every file of the module: not for what builds make, for what
// tests read, or for a module inside it.
func walk(root fs.FS, f func(name string) error) error {
	return fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if !d.IsDir() {
			return f(name)
		}
		base := d.Name()
		if base == "bin" || base == "testdata" || base[0] == '.' && base != ".ci" {
			return fs.SkipDir
		}
		if _, err := fs.Stat(root, name+"/go.mod"); err == nil {
			return fs.SkipDir
		}
		return nil
	})
}

// imports returns the paths that the package imports, its tests left out or alone.
func (p *pkg) imports(tests bool) []string {
	var list []string
	for _, f := range p.files {
		if f.test != tests {
			continue
		}
		for _, spec := range f.Imports {
			if imported, err := strconv.Unquote(spec.Path.Value); err == nil {
				list = append(list, imported)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// short returns a package of this module as the tables name it.
func short(importPath string) (name string, ours bool) {
	if importPath == modulePath {
		return ".", true
	}
	rest, ours := strings.CutPrefix(importPath, modulePath+"/")
	return strings.TrimPrefix(rest, "internal/"), ours
}

// at returns the place of a node, as file:line.
func (f *file) at(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.fset.Position(n.Pos()).Line)
}

// span returns how many lines a node has.
func (f *file) span(n ast.Node) int {
	return f.fset.Position(n.End()).Line - f.fset.Position(n.Pos()).Line + 1
}

// source calls f for the files that people write and that are not tests.
func source(pkgs []*pkg, f func(p *pkg, f *file)) {
	for _, p := range pkgs {
		for _, file := range p.files {
			if !file.test && !file.generated {
				f(p, file)
			}
		}
	}
}

// allowed takes exceptions out of what a check reports, as "place\tproblem".
// What is left is the list of problems, with each exception that nothing needed.
func allowed(found []finding, exceptions []exception) []string {
	var out []string
	used := map[string]bool{}
	for _, f := range found {
		if slices.ContainsFunc(exceptions, func(e exception) bool { return e.place == f.place }) {
			used[f.place] = true
			continue
		}
		out = append(out, f.at+": "+f.place+" "+f.problem)
	}
	for _, e := range exceptions {
		if !used[e.place] {
			out = append(out, "tables.go: the exception "+e.place+" is not needed any more; take it out")
		}
		if e.why == "" {
			out = append(out, "tables.go: the exception "+e.place+" gives no reason")
		}
	}
	return out
}

// finding is a problem that an exception can allow.
type finding struct{ at, place, problem string }
