package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// checkPackageDocs reports packages without the one comment that says what they are.
func checkPackageDocs(pkgs []*pkg) []string {
	var out []string
	for _, p := range pkgs {
		var docs []string
		want := ""
		for _, f := range p.files {
			if !f.test {
				want = "Package " + f.Name.Name + " "
			}
			if f.Name.Name == "main" {
				want = "Command " + path.Base(p.dir) + " "
			}
			if f.Doc != nil {
				docs = append(docs, f.Doc.Text())
			}
		}
		switch {
		case want == "": // tests alone
		case len(docs) != 1:
			out = append(out, fmt.Sprintf("%s has %d package comments, want one", p.dir, len(docs)))
		case !strings.HasPrefix(docs[0], want):
			out = append(out, fmt.Sprintf("%s: the package comment does not begin with %q", p.dir, want))
		}
	}
	return out
}

// checkDocs reports exported identifiers without a comment, or whose comment
// does not begin with the name. Those of package main are not exported to
// anybody; a method of the standard library's interfaces is explained there.
func checkDocs(pkgs []*pkg) []string {
	var out []string
	source(pkgs, func(p *pkg, f *file) {
		if f.Name.Name == "main" || strings.HasPrefix(p.name, "cmd/") {
			return
		}
		fail := func(id *ast.Ident, problem string) {
			if id.IsExported() {
				out = append(out, fmt.Sprintf("%s: %s is exported and %s", f.at(id), id.Name, problem))
			}
		}
		named := func(id *ast.Ident, doc string) {
			if doc == "" {
				fail(id, "has no comment")
			} else if !strings.HasPrefix(doc, id.Name) {
				fail(id, "its comment does not begin with its name")
			}
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if receiver := receiverOf(d); receiver == "" || ast.IsExported(receiver) && !explained[d.Name.Name] {
					named(d.Name, d.Doc.Text())
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						doc := s.Doc.Text()
						if len(d.Specs) == 1 {
							doc += d.Doc.Text()
						}
						named(s.Name, doc)
					case *ast.ValueSpec:
						if d.Doc.Text()+s.Doc.Text()+s.Comment.Text() == "" {
							for _, name := range s.Names {
								fail(name, "has no comment")
							}
						}
					}
				}
			}
		}
	})
	return out
}

// explained are methods that say the same wherever they are.
var explained = map[string]bool{"Error": true, "Unwrap": true, "String": true, "Read": true, "Write": true, "Close": true}

// receiverOf returns the name of a method's type, "" for a function.
func receiverOf(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return ""
	}
	t := d.Recv.List[0].Type
	for {
		switch at := t.(type) {
		case *ast.StarExpr:
			t = at.X
		case *ast.IndexExpr:
			t = at.X
		case *ast.IndexListExpr:
			t = at.X
		case *ast.Ident:
			return at.Name
		default:
			return "?"
		}
	}
}

// checkContexts reports contexts that nobody can cancel: made outside main and
// tests, or kept in a struct.
func checkContexts(pkgs []*pkg) []string {
	var out []string
	source(pkgs, func(p *pkg, f *file) {
		ast.Inspect(f.File, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				called := f.qualified(n.Fun)
				if (called == "context.Background" || called == "context.TODO") && f.Name.Name != "main" && !forTests(p.name) {
					out = append(out, fmt.Sprintf("%s: %s outside main and tests: take a context from the caller", f.at(n), called))
				}
			case *ast.StructType:
				for _, field := range n.Fields.List {
					if f.qualified(field.Type) == "context.Context" {
						out = append(out, f.at(field)+": a context in a struct: pass it as the first argument")
					}
				}
			}
			return true
		})
	})
	return out
}

// findEnds returns what ends the process outside main: a library returns errors.
func findEnds(pkgs []*pkg) []finding {
	var out []finding
	source(pkgs, func(p *pkg, f *file) {
		if f.Name.Name == "main" {
			return
		}
		for _, d := range f.Decls {
			name := "init"
			if fn, ok := d.(*ast.FuncDecl); ok {
				name = fn.Name.Name
			}
			ast.Inspect(d, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				called := f.qualified(call.Fun)
				if called == "panic" || called == "os.Exit" || fatal.MatchString(called) {
					out = append(out, finding{f.at(call), p.name + "." + name + ": " + called, "ends the process: return an error"})
				}
				return true
			})
		}
	})
	return out
}

// fatal matches the loggers' functions that end the process.
var fatal = regexp.MustCompile(`^(log|github.com/sirupsen/logrus|k8s.io/klog/v2)\.(Fatal|Panic|Exit)`)

// qualified returns an identifier with the path of the package it comes from:
// "context.Background", "panic".
func (f *file) qualified(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		id, ok := e.X.(*ast.Ident)
		if !ok {
			return ""
		}
		for _, spec := range f.Imports {
			if imported, _ := strconv.Unquote(spec.Path.Value); localName(spec, imported) == id.Name {
				return imported + "." + e.Sel.Name
			}
		}
	}
	return ""
}

func localName(spec *ast.ImportSpec, imported string) string {
	if spec.Name != nil {
		return spec.Name.Name
	}
	if base := path.Base(imported); len(base) < 2 || base[0] != 'v' || base[1] < '0' || base[1] > '9' {
		return base
	}
	return path.Base(path.Dir(imported))
}

// findOverBudget returns what is larger than it may be.
func findOverBudget(pkgs []*pkg, importBudgets map[string]int) []finding {
	var out []finding
	for _, p := range pkgs {
		lines, files, program := 0, 0, strings.HasPrefix(p.dir, "cmd/")
		for _, f := range p.files {
			if f.generated {
				continue
			}
			if !f.test {
				files++
				lines += f.lines
			}
			if f.lines > maxFileLines {
				out = append(out, finding{f.path, f.path, fmt.Sprintf("has %d lines, the budget is %d", f.lines, maxFileLines)})
			}
			out = append(out, largeDecls(p, f)...)
		}
		if files > maxPackageFiles {
			out = append(out, finding{p.dir, p.name, fmt.Sprintf("has %d files, the budget is %d", files, maxPackageFiles)})
		}
		if program && lines > maxMainLines {
			out = append(out, finding{p.dir, p.name, fmt.Sprintf("has %d lines, the budget of a program is %d", lines, maxMainLines)})
		}
		budget := maxImports
		if b, ok := importBudgets[p.name]; ok {
			budget = b
		}
		if n := len(ours(p.imports(false))); n > budget {
			out = append(out, finding{p.dir, p.name, fmt.Sprintf("imports %d packages of the module, the budget is %d", n, budget)})
		}
	}
	return out
}

// largeDecls returns the functions and interfaces of a file over their budgets.
func largeDecls(p *pkg, f *file) []finding {
	var out []finding
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if n := f.span(d); n > maxFuncLines {
				out = append(out, finding{f.at(d), p.name + "." + d.Name.Name, fmt.Sprintf("has %d lines, the budget is %d", n, maxFuncLines)})
			}
		case *ast.GenDecl:
			if d.Tok != token.TYPE {
				continue
			}
			for _, spec := range d.Specs {
				t := spec.(*ast.TypeSpec)
				if i, ok := t.Type.(*ast.InterfaceType); ok && methods(i) > maxMethods {
					out = append(out, finding{f.at(t), p.name + "." + t.Name.Name,
						fmt.Sprintf("has %d methods, the budget is %d", methods(i), maxMethods)})
				}
			}
		}
	}
	return out
}

// methods counts an interface's methods; an embedded interface is one.
func methods(i *ast.InterfaceType) int {
	n := 0
	for _, field := range i.Methods.List {
		n += max(1, len(field.Names))
	}
	return n
}
