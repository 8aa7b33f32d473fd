package dockerapi

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const referenceFile = "../../docs/reference/docker-api.md"

var (
	routeRow  = regexp.MustCompile("(?m)^\\| `([A-Z]+ /\\S*)` \\|")
	pathValue = regexp.MustCompile(`\{\w+\}`)
)

// TestReferenceRoutes compares docs/reference/docker-api.md with the routes.
func TestReferenceRoutes(t *testing.T) {
	var documented []string
	for _, row := range routeRow.FindAllStringSubmatch(readReference(t), -1) {
		documented = append(documented, row[1])
	}
	served := servedRoutes(&Server{})
	for _, route := range documented {
		if !slices.Contains(served, route) {
			t.Errorf("%s lists %s, which is not served", referenceFile, route)
		}
	}
	for _, route := range served {
		if !slices.Contains(documented, route) {
			t.Errorf("%s does not list %s", referenceFile, route)
		}
	}
	for i, route := range documented {
		if slices.Contains(documented[:i], route) {
			t.Errorf("%s lists %s twice", referenceFile, route)
		}
	}
}

// servedRoutes are the routes as clients see them: that of all verbs of images
// is one for each verb.
func servedRoutes(s *Server) []string {
	var out []string
	for pattern := range s.routes() {
		switch method, path, _ := strings.Cut(pattern, " "); {
		case path != "/images/{path...}":
			out = append(out, pattern)
		case method == http.MethodDelete:
			out = append(out, "DELETE /images/{name}")
		}
	}
	for key := range s.imageVerbs() {
		method, verb, _ := strings.Cut(key, " ")
		out = append(out, method+" /images/{name}/"+verb)
	}
	return out
}

// TestReferenceRoutesMatch asks the multiplexer for each documented route, with
// a name that has slashes where one may.
func TestReferenceRoutesMatch(t *testing.T) {
	s := &Server{}
	mux := http.NewServeMux()
	for pattern := range s.routes() {
		mux.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) {})
	}
	for _, row := range routeRow.FindAllStringSubmatch(readReference(t), -1) {
		method, path, _ := strings.Cut(row[1], " ")
		value := "abc"
		if strings.Contains(path, "{name}") {
			value = "localhost:5000/a/b"
		}
		r := httptest.NewRequest(method, pathValue.ReplaceAllString(path, value), nil)
		if _, pattern := mux.Handler(r); pattern == "" {
			t.Errorf("no route for %s %s", method, r.URL.Path)
		}
	}
}

// TestReferenceSettings asks the document for every setting that create honours
// or takes as asking for nothing, and for every flag it refuses by name.
func TestReferenceSettings(t *testing.T) {
	text := readReference(t)
	for _, name := range append(slices.Clone(honoured), slices.Collect(maps.Keys(noOps))...) {
		if !regexp.MustCompile(`\b` + name + `\b`).MatchString(text) {
			t.Errorf("%s does not name the setting %s", referenceFile, name)
		}
	}
	for _, name := range slices.Collect(maps.Values(flags)) {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("%s does not name %s", referenceFile, name)
		}
	}
	for _, version := range []string{minAPIVersion, maxAPIVersion} {
		if !strings.Contains(text, version) {
			t.Errorf("%s does not name version %s", referenceFile, version)
		}
	}
}

func readReference(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
