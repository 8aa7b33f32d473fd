package config

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var updateReference = flag.Bool("update", false, "rewrite docs/reference/config.md")

const (
	referenceFile = "../../docs/reference/config.md"
	twoFerrysFile = "../../docs/how-to/two-ferrys.md"
)

// TestReference fails when docs/reference/config.md is not what the comments
// of the struct's fields and the defaults say.
func TestReference(t *testing.T) {
	want := reference(t)
	if *updateReference {
		if err := os.WriteFile(referenceFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(have), string(want)); d != "" {
		t.Errorf("%s differs from config.go (-file +code); rewrite it with: go test ./internal/config -run TestReference -update\n%s", referenceFile, d)
	}
}

// secondFerry is the documents' example: a Ferry beside one with the defaults.
const secondFerry = `dataDir: /var/lib/ferry-b
runDir: /run/ferry-b
nodeName: ferry-b
cgroupParent: /ferry-b
network:
  bridge: ferry1
  podCIDR: 10.95.0.0/16
  serviceCIDR: 10.96.0.0/16
  kubeProxy: false
api:
  port: 6543
  kubeletPort: 10350
  context: ferry-b
registry:
  port: 5100
`

// TestSecondFerry checks that the example can be used beside the defaults: all
// that two Ferrys must not share differs, and the how-to shows the same.
func TestSecondFerry(t *testing.T) {
	b, err := Parse([]byte(secondFerry))
	if err != nil {
		t.Fatal(err)
	}
	a, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	// The subnets of userCIDR are chosen past those that the other has in use.
	shared := func(path string) bool {
		return slices.Contains([]string{"libexecDir", "cdiDirs", "logLevel", "network.clusterDomain", "network.userCIDR"}, path) ||
			strings.HasPrefix(path, "images.") || strings.HasPrefix(path, "engine.") || strings.HasPrefix(path, "registries[].")
	}
	theirs, ours := flat(t, a), flat(t, b)
	for _, f := range fields(t) {
		if same := theirs[f.path] == ours[f.path]; same != shared(f.path) {
			t.Errorf("%s is %q and %q", f.path, theirs[f.path], ours[f.path])
		}
	}
	for _, cfg := range [][2]Config{{a, b}, {b, a}} {
		if err := disjoint(cfg[0].Network, cfg[1].Network); err != nil {
			t.Error(err)
		}
	}
	howTo, err := os.ReadFile(twoFerrysFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(howTo, []byte(indented(secondFerry))) {
		t.Errorf("%s does not show the example that is checked here:\n%s", twoFerrysFile, secondFerry)
	}
}

// disjoint checks that the ranges of two networks do not overlap either way.
func disjoint(a, b Network) error {
	for _, other := range []string{b.PodCIDR, b.ServiceCIDR} {
		n := a
		n.ServiceCIDR = other
		if err := n.validateRanges(); err != nil {
			return err
		}
	}
	return nil
}

// field is a setting: its path in the file, its Go type and its comment.
type field struct{ path, kind, doc string }

// fields reads the settings from config.go, in its order.
func fields(t *testing.T) []field {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	structs := map[string]*ast.StructType{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if s, ok := spec.Type.(*ast.StructType); ok {
				structs[spec.Name.Name] = s
			}
		}
		return true
	})
	var out []field
	var collect func(prefix, name string)
	collect = func(prefix, name string) {
		for _, f := range structs[name].Fields.List {
			tag, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
			kind := f.Type
			if star, ok := kind.(*ast.StarExpr); ok {
				kind = star.X
			}
			path, list := prefix+tag, ""
			if array, ok := kind.(*ast.ArrayType); ok {
				kind, list = array.Elt, "list of "
			}
			k := kind.(*ast.Ident).Name
			if structs[k] != nil && list != "" {
				path += "[]"
			}
			if structs[k] != nil {
				collect(path+".", k)
			} else {
				doc := strings.Join(strings.Fields(f.Doc.Text()), " ")
				if doc == "" {
					t.Errorf("%s has no comment", path)
				}
				out = append(out, field{path, list + k, doc})
			}
		}
	}
	collect("", "Config")
	return out
}

// flat is a configuration by paths.
func flat(t *testing.T, c Config) map[string]string {
	t.Helper()
	data, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var walk func(prefix string, tree map[string]any)
	walk = func(prefix string, tree map[string]any) {
		for k, v := range tree {
			if sub, ok := v.(map[string]any); ok {
				walk(prefix+k+".", sub)
				continue
			}
			out[prefix+k] = fmt.Sprint(v)
		}
	}
	walk("", tree)
	return out
}

const referenceHead = `# The configuration

Written from ` + "`internal/config/config.go` by `go test ./internal/config -run TestReference -update`" + `; a test fails when it differs.
Do not edit it.

The file is YAML, ` + "`" + DefaultPath + "`" + ` unless ` + "`FERRY_CONFIG`" + ` names another. The default one need not exist, a named one must.
Every setting may be left out; paths are absolute. A setting that is not known, or a value that cannot be used, fails the command with
exit code 2. ` + "`ferry` and `ferryd`" + ` read the file when they start: run ` + "`ferry down`" + `, change it, and run ` + "`ferry up`" + `.

| setting | type | default | meaning |
|---|---|---|---|
`

const referenceTail = `
## A second Ferry

Beside a Ferry with the defaults, another needs other directories, ports, cgroup, bridge, ranges, node name and context. One of the two
owns the machine's kube-proxy tables. [How to run two Ferrys](../how-to/two-ferrys.md) tells the rest.

`

func reference(t *testing.T) []byte {
	var b bytes.Buffer
	b.WriteString(referenceHead)
	defaults := flat(t, Default())
	for _, f := range fields(t) {
		value := "empty"
		switch v := defaults[f.path]; {
		case v != "":
			value = "`" + v + "`"
		case strings.HasPrefix(f.path, "registries[].") && f.kind == "bool":
			value = "`false`"
		}
		kind := map[string]string{"string": "text", "int": "number", "bool": "true or false", "list of string": "list of text"}[f.kind]
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.path, kind, value, withoutName(f))
	}
	b.WriteString(referenceTail + indented(secondFerry))
	return b.Bytes()
}

// withoutName drops the Go name that a comment begins with.
func withoutName(f field) string {
	name := f.path[strings.LastIndex(f.path, ".")+1:]
	text := f.doc
	if first, rest, ok := strings.Cut(f.doc, " "); ok && strings.EqualFold(first, name) {
		text = strings.TrimPrefix(rest, "is ")
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// indented is text as a code block.
func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + line)
	}
	return b.String()
}
