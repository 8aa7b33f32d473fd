package arch

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

// module makes a module of the files and loads it. A word with a package of
// this module is written ferry/x.
func module(t *testing.T, files map[string]string) (fstest.MapFS, []*pkg) {
	t.Helper()
	root := fstest.MapFS{}
	for name, content := range files {
		root[name] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(content, `"ferry/`, `"`+modulePath+"/"))}
	}
	pkgs, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	return root, pkgs
}

// expect compares problems with parts of those expected, in any order.
func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	for _, part := range want {
		found := false
		for i, problem := range got {
			if strings.Contains(problem, part) {
				got, found = append(got[:i:i], got[i+1:]...), true
				break
			}
		}
		if !found {
			t.Errorf("not reported: %s", part)
		}
	}
	for _, problem := range got {
		t.Errorf("reported: %s", problem)
	}
}

func TestLayers(t *testing.T) {
	_, pkgs := module(t, map[string]string{
		"cmd/a/main.go":               `package main; import _ "ferry/internal/top"`,
		"internal/top/top.go":         `package top; import (_ "fmt"; _ "ferry/internal/base"; _ "ferry/internal/base/basetest")`,
		"internal/base/base.go":       `package base; import _ "ferry/internal/top"`,
		"internal/base/base_test.go":  `package base; import (_ "ferry/internal/base/basetest"; _ "ferry/cmd/a")`,
		"internal/base/basetest/b.go": `package basetest`,
		"internal/new/new.go":         `package new`,
		"internal/new/testdata/x.go":  `not Go`,
		"runtimes/r/r.go":             `package r; import _ "ferry/internal/base"`,
		"runtimes/s/s.go":             `package s; import _ "ferry/runtimes/r"`,
		"tools/go.mod":                `module tools`,
		"tools/tool.go":               `package tool`,
	})
	expect(t, checkLayers(pkgs, []layer{
		{"cmd/a", "top base"},
		{"top", "base gone"},
		{"base", ""},
		{"base/basetest", ""},
		{"runtimes/s", "runtimes/r"},
		{"runtimes/r", "base"},
		{"missing", ""},
	}),
		"row of cmd/a names base, which it does not import",
		"row of top names gone, which has no row",
		"row of top names gone, which it does not import",
		"internal/top imports base/basetest, which its row",
		"internal/base imports top, which its row",
		"a test of internal/base imports cmd/a, which stands above it",
		"internal/new has no row",
		"row of runtimes/r names base, which stands above it",
		"runtimes/r imports base: runtimes and the platform",
		"runtimes/s imports runtimes/r: runtimes and the platform",
		"missing has a row and does not exist",
	)
	_, pkgs = module(t, map[string]string{
		"internal/top/top.go":         `package top; import _ "ferry/internal/base/basetest"`,
		"internal/base/basetest/b.go": `package basetest`,
	})
	expect(t, checkLayers(pkgs, []layer{{"top", "base/basetest"}, {"base/basetest", ""}}), "for tests alone")
}

func TestOwners(t *testing.T) {
	_, pkgs := module(t, map[string]string{
		"internal/kube/kube.go":    `package kube; import _ "k8s.io/api/core/v1"`,
		"internal/cri/cri.go":      `package cri; import (_ "k8s.io/cri-api/v1"; _ "k8s.io/api/core/v1"; _ "k8s.iox/y")`,
		"internal/cli/cli_test.go": `package cli; import _ "k8s.io/cri-api/v1"`,
	})
	expect(t, checkOwners(pkgs, []owner{
		{"k8s.io", "kube"},
		{"k8s.io/cri-api", "kube cri"},
	}),
		"internal/cri imports k8s.io/api/core/v1: only kube may import k8s.io",
		"internal/cli imports k8s.io/cri-api/v1: only kube and cri may import k8s.io/cri-api",
		"kube is named for k8s.io/cri-api",
	)
}

func TestLinkedReportsTheWay(t *testing.T) {
	p := program{"cmd/a", "", "k8s.io/api example.com/x", "it is small"}
	got := checkLinked(p, map[string][]string{
		modulePath + "/cmd/a": {"fmt", "b"},
		"fmt":                 nil,
		"b":                   {"c", "d"},
		"c":                   {"d"},
		"d":                   {"k8s.io/api/core/v1"},
		"k8s.io/api/core/v1":  {"b"},
		"example.com/xy":      nil,
	})
	expect(t, got, "cmd/a must not link k8s.io/api: it is small\n\t"+modulePath+"/cmd/a\n\t→ b\n\t→ d\n\t→ k8s.io/api/core/v1")
}

func TestPackageDocs(t *testing.T) {
	_, pkgs := module(t, map[string]string{
		"cmd/a/main.go":        "// Command a is a.\npackage main",
		"cmd/b/main.go":        "// Package main is b.\npackage main",
		"internal/c/c.go":      "// Package c is c.\npackage c",
		"internal/c/more.go":   "// More of c.\npackage c",
		"internal/d/d.go":      "package d",
		"internal/e/e.go":      "// Package e is e.\npackage e",
		"internal/e/e_test.go": "// Copyright.\n\npackage e_test",
	})
	expect(t, checkPackageDocs(pkgs), "cmd/b: the package comment", "internal/c has 2", "internal/d has 0")
}

func TestDocs(t *testing.T) {
	_, pkgs := module(t, map[string]string{
		"internal/a/a.go": `package a

func F() {}

// It is documented.
func G() {}

func (t *T) M() {}
func (t T) Error() string { return "" }
func (hidden) M() {}

// T is documented.
type T struct{}

type U[X any] struct{}

func (u *U[X]) N() {}

type hidden struct{}

// The constants.
const (
	A = 1
	B = 2
)

const C = 3

var hiddenToo, D int

var E int // E is documented
`,
		"cmd/b/main.go":        "package main; func F() {}",
		"internal/a/a_test.go": "package a; func TestF() {}",
		"internal/a/pb.go":     "// Code generated by x. DO NOT EDIT.\npackage a; func P() {}",
	})
	expect(t, checkDocs(pkgs), "a.go:3: F is exported and has no", "a.go:6: G is exported and its comment", "a.go:8: M ", "a.go:15: U ",
		"a.go:17: N ", "a.go:27: C ", "a.go:29: D ")
}

func TestContexts(t *testing.T) {
	_, pkgs := module(t, map[string]string{
		"internal/a/a.go": `package a
import stdctx "context"
var a = stdctx.Background()
func f() { stdctx.TODO() }
type t struct { stdctx.Context }
type u struct { a, b int; ctx stdctx.Context }
func g(ctx stdctx.Context) {}
`,
		"internal/a/a_test.go":       `package a; import "context"; var b = context.Background()`,
		"internal/a/atest/a.go":      `package atest; import "context"; var b = context.Background()`,
		"internal/b/context/file.go": `package context; func Background() {}; func f() { Background() }`,
		"cmd/b/main.go":              `package main; import "context"; var b = context.Background()`,
	})
	expect(t, checkContexts(pkgs), "a.go:3: context.Background", "a.go:4: context.TODO", "a.go:5: a context in a struct", "a.go:6: a context in a struct")
}

func TestEnds(t *testing.T) {
	_, pkgs := module(t, map[string]string{
		"internal/a/a.go": `package a
import ("os"; "log"; "k8s.io/klog/v2")
var x = func() int { panic("x") }
func f() { os.Exit(1) }
func g() { log.Fatalf("x"); log.Print("x") }
func h() { klog.Exit("x"); klog.Info("x") }
func i() { os.Exit(1) }
`,
		"internal/a/a_test.go": `package a; func g() { panic("x") }`,
		"cmd/b/main.go":        `package main; import "os"; func main() { os.Exit(1) }`,
	})
	expect(t, allowed(findEnds(pkgs), []exception{{"a.i: os.Exit", "for the test"}, {"a.j: os.Exit", "it was there once"}, {"a.h: panic", ""}}),
		"a.go:3: a.init: panic", "a.go:4: a.f: os.Exit", "a.go:5: a.g: log.Fatalf", "a.go:6: a.h: k8s.io/klog/v2.Exit",
		"exception a.j: os.Exit is not needed", "exception a.h: panic is not needed", "exception a.h: panic gives no reason")
}

func TestBudgets(t *testing.T) {
	long := strings.Repeat("\n", maxFuncLines-2)
	files := map[string]string{
		"internal/a/a.go":      "package a\nfunc f() {" + long + "\n}\nfunc g() {" + long + "\n\n}\nfunc h() {" + long + "\n\n}\n",
		"internal/a/b.go":      "package a\n" + strings.Repeat("\n", maxFileLines),
		"internal/a/gen.go":    "// Code generated by x. DO NOT EDIT.\npackage a\n" + strings.Repeat("\n", maxFileLines),
		"internal/a/c.go":      "package a\ntype small interface { A(); B(); C(); D(); E(); F(); small2 }\ntype large interface { A(); B(); C(); D(); E(); F(); G(); small }",
		"cmd/b/main.go":        "package main\n" + strings.Repeat("\n", maxMainLines),
		"internal/c/c_test.go": "package c",
	}
	imports := ""
	for i := range maxImports + 1 {
		imports += fmt.Sprintf("import _ \"ferry/p%d\"\n", i)
	}
	files["internal/d/d.go"], files["internal/app/app.go"] = "package d\n"+imports, "package app\n"+imports
	for i := range maxPackageFiles {
		files[fmt.Sprintf("internal/c/c%d.go", i)] = "package c"
		files[fmt.Sprintf("internal/e/e%d.go", i)] = "package e"
	}
	files["internal/e/one-more.go"] = "package e"
	_, pkgs := module(t, files)
	expect(t, allowed(findOverBudget(pkgs, map[string]int{"app": maxImports + 1}), []exception{{"a.h", "for the test"}}),
		"a.g has 101 lines", "internal/a/b.go has 601 lines", "a.large has 8 methods", "cmd/b has 41 lines", "d imports 21 packages", "e has 26 files")
}

func TestLinks(t *testing.T) {
	doc := "do" + "cs/" // this file is searched for mentions too
	root, _ := module(t, map[string]string{
		"README.md": "# Ferry: the `OS`\n[a](" + doc + "a.md) [b](" + doc + "b.md) [c](#ferry-the-os) [d](#nothing) [e](https://example.com/x)\n" +
			"```\n[in code](nowhere)\n# not a heading\n```\n[f](#not-a-heading) <img src=\"none.png\">\n",
		doc + "a.md":      "# One\n## One\n### [Two](b) & three\n[up](../README.md#one) [twice](#one-1) [linked](#two--three)\n",
		"internal/a/a.go": "package a\n// See " + doc + "a.md, " + doc + "none.md.\nconst x = `other/" + doc + "none.md " + doc + "nor/this`\n",
		"Makefile":        "# " + doc + "missing",
		"bin/x.md":        "[a](nowhere)",
		".git/x.md":       "[a](nowhere)",
	})
	got, err := checkLinks(root)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, got,
		"README.md:2: "+doc+"b.md does not exist", "README.md:2: the link "+doc+"b.md leads nowhere", "README.md:2: the link #nothing",
		"README.md:7: the link #not-a-heading", "README.md:7: the link none.png",
		"a.md:4: the link ../README.md#one leads nowhere: README.md has no such heading",
		"a.md:3: the link b leads nowhere",
		"a.go:2: "+doc+"none.md does", "a.go:3: "+doc+"nor/this does", "Makefile:1: "+doc+"missing does")
}
