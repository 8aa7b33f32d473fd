package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/common"

	"github.com/ferryos/ferry/internal/fault"
)

// handlerFunc answers a request or returns the error to answer with.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// errNotModified says that the container is already in the state asked for.
var errNotModified = errors.New("not modified")

// routes lists every route; {path...} is an image's name, which may contain
// slashes, and with GET and POST a verb of imageVerbs after it.
func (s *Server) routes() map[string]handlerFunc {
	return map[string]handlerFunc{
		"GET /_ping":     s.ping, // HEAD too
		"GET /version":   s.version,
		"GET /info":      s.info,
		"GET /system/df": s.systemDF,
		"GET /events":    s.eventStream,
		"POST /grpc":     s.grpc,
		"POST /session":  s.session,

		"POST /build":           s.build,
		"POST /build/prune":     s.buildPrune,
		"POST /build/cancel":    s.buildCancel,
		"POST /build/unchanged": s.buildUnchanged,

		"GET /containers/json":          s.containerList,
		"POST /containers/create":       s.containerCreate,
		"POST /containers/prune":        s.containerPrune,
		"GET /containers/{id}/json":     s.containerInspect,
		"GET /containers/{id}/logs":     s.containerLogs,
		"GET /containers/{id}/top":      s.containerTop,
		"POST /containers/{id}/start":   s.containerStart,
		"POST /containers/{id}/stop":    s.containerStop,
		"POST /containers/{id}/restart": s.containerRestart,
		"POST /containers/{id}/kill":    s.containerKill,
		"POST /containers/{id}/pause":   s.containerPause,
		"POST /containers/{id}/unpause": s.containerUnpause,
		"POST /containers/{id}/wait":    s.containerWait,
		"POST /containers/{id}/attach":  s.containerAttach,
		"POST /containers/{id}/resize":  s.containerResize,
		"POST /containers/{id}/exec":    s.execCreate,
		"POST /containers/{id}/rename":  s.containerRename,
		"POST /containers/{id}/update":  s.containerUpdate,
		"GET /containers/{id}/stats":    s.containerStats,
		"DELETE /containers/{id}":       s.containerRemove,

		"GET /containers/{id}/archive": s.containerArchive, // HEAD too
		"PUT /containers/{id}/archive": s.containerExtract,
		"GET /containers/{id}/export":  s.containerExport,
		"GET /containers/{id}/changes": s.containerChanges,
		"POST /commit":                 s.commit,

		"POST /exec/{id}/start":  s.execStart,
		"POST /exec/{id}/resize": s.execResize,
		"GET /exec/{id}/json":    s.execInspect,

		"GET /volumes":             s.volumeList,
		"GET /volumes/{volume}":    s.volumeInspect,
		"POST /volumes/create":     s.volumeCreate,
		"POST /volumes/prune":      s.volumePrune,
		"DELETE /volumes/{volume}": s.volumeRemove,

		"GET /networks":                  s.networkList,
		"GET /networks/{id}":             s.networkInspect,
		"POST /networks/create":          s.networkCreate,
		"POST /networks/prune":           s.networkPrune,
		"POST /networks/{id}/connect":    s.networkConnect,
		"POST /networks/{id}/disconnect": s.networkDisconnect,
		"DELETE /networks/{id}":          s.networkRemove,

		"GET /images/json":         s.imageList,
		"GET /images/search":       s.imageSearch,
		"GET /images/get":          s.imageSave,
		"POST /images/load":        s.imageLoad,
		"POST /images/prune":       s.imagePrune,
		"POST /images/create":      s.imageCreate,
		"GET /images/{path...}":    s.imageVerb,
		"POST /images/{path...}":   s.imageVerb,
		"DELETE /images/{path...}": s.imageRemove,

		"POST /auth":                  s.login,
		"GET /distribution/{path...}": s.distribution,
	}
}

// swarmParts are what the paths of Docker's Swarm begin with.
var swarmParts = []string{"swarm", "nodes", "services", "tasks", "secrets", "configs"}

// notServed answers what is no route. "not supported" is what the docker command
// looks for when it inspects objects of every kind.
func notServed(_ http.ResponseWriter, r *http.Request) error {
	part, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case slices.Contains(swarmParts, part):
		return fault.New(fault.Unsupported, "Swarm is not supported: %s %s", r.Method, r.URL.Path).Hint("it is a Kubernetes node: use `kubectl --context ferry`")
	case part == "plugins":
		return fault.New(fault.Unsupported, "plugins are not supported: %s %s", r.Method, r.URL.Path).Hint("volumes have the driver local, networks the driver bridge")
	case strings.Contains(r.URL.Path, "/checkpoints"):
		return fault.New(fault.Unsupported, "checkpoints are not supported: %s %s", r.Method, r.URL.Path)
	}
	return fault.New(fault.NotFound, "Ferry does not serve %s %s", r.Method, r.URL.Path).
		Hint("docs/reference/docker-api.md lists the routes of the Docker API that are served")
}

// handler serves the routes with and without the version prefix.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range s.routes() {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, h) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, notServed) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.work.Add(1)
		defer s.work.Done()
		w.Header().Set("Server", "Ferry/"+s.opt.Version+" (linux)")
		w.Header().Set("Api-Version", maxAPIVersion)
		w.Header().Set("Ostype", "linux")
		if err := stripVersion(r); err != nil {
			s.serve(w, r, func(http.ResponseWriter, *http.Request) error { return err })
			return
		}
		mux.ServeHTTP(w, r)
	})
}

var versionPrefix = regexp.MustCompile(`^/v(\d+)\.(\d+)(/.*)$`)

// stripVersion takes /v1.NN off the path, or says that NN is not served.
func stripVersion(r *http.Request) error {
	m := versionPrefix.FindStringSubmatch(r.URL.Path)
	if m == nil {
		return nil
	}
	asked := m[1] + "." + m[2]
	switch {
	case versionLess(asked, minAPIVersion):
		return fault.New(fault.Invalid, "client version %s is too old. Minimum supported API version is %s", asked, minAPIVersion)
	case versionLess(maxAPIVersion, asked):
		return fault.New(fault.Invalid, "client version %s is too new. Maximum supported API version is %s", asked, maxAPIVersion)
	}
	r.URL.Path, r.URL.RawPath = m[3], ""
	r.SetPathValue(versionValue, asked)
	return nil
}

// versionValue is the path value that holds the API version asked for.
const versionValue = "version"

// versionBefore reports whether the client speaks a version before v.
func versionBefore(r *http.Request, v string) bool {
	asked := r.PathValue(versionValue)
	return asked != "" && versionLess(asked, v)
}

// versionLess compares two versions MAJOR.MINOR of digits.
func versionLess(a, b string) bool {
	aMajor, aMinor, _ := strings.Cut(a, ".")
	bMajor, bMinor, _ := strings.Cut(b, ".")
	if aMajor != bMajor {
		return atoi(aMajor) < atoi(bMajor)
	}
	return atoi(aMinor) < atoi(bMinor)
}

// atoi reads digits; a number too long for an int is larger than any version.
func atoi(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 1 << 30
	}
	return n
}

// answer notes whether the header was sent, after which an error can no longer be.
type answer struct {
	http.ResponseWriter
	sent bool
}

func (a *answer) WriteHeader(status int) { a.sent = true; a.ResponseWriter.WriteHeader(status) }

func (a *answer) Write(p []byte) (int, error) { a.sent = true; return a.ResponseWriter.Write(p) }

// Unwrap lets http.ResponseController flush and hijack.
func (a *answer) Unwrap() http.ResponseWriter { a.sent = true; return a.ResponseWriter }

func (s *Server) serve(w http.ResponseWriter, r *http.Request, h handlerFunc) {
	a := &answer{ResponseWriter: w}
	err := h(a, r)
	switch {
	case err == nil:
	case errors.Is(err, errNotModified):
		w.WriteHeader(http.StatusNotModified)
	case a.sent && (r.Context().Err() != nil || hungUp(err)): // the client is gone, or the server stops
	case a.sent:
		s.opt.Log.Warn("request failed after its answer began", "method", r.Method, "path", r.URL.Path, "error", err)
	default:
		if r.Context().Err() != nil { // without an answer the client would take it for done
			err = fault.New(fault.Unavailable, "the server stops: %w", err)
		}
		s.opt.Log.Debug("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(fault.HTTPStatus(err))
		_ = json.NewEncoder(w).Encode(common.ErrorResponse{Message: message(err)})
	}
}

// hungUp reports an error that says only that the client has left.
func hungUp(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

// message is an error as clients show it. The hint follows on a line of its
// own; the ferry command takes it off again, docker prints it as it is.
func message(err error) string {
	if hint := fault.HintOf(err); hint != "" {
		return err.Error() + "\nhint: " + hint
	}
	return err.Error()
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// readJSON decodes the request's body into v; an empty body leaves v as it is.
func readJSON(r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, 16<<20))
	err := dec.Decode(v)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fault.New(fault.Invalid, "request body: %w", err)
	case dec.More():
		return fault.New(fault.Invalid, "request body: something follows the JSON value")
	}
	return nil
}

// flag reads a boolean query parameter as Docker does: anything but "", 0, no, false and none is true.
func flag(r *http.Request, name string) bool {
	switch strings.ToLower(strings.TrimSpace(param(r, name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// param returns a query parameter. Unlike r.FormValue it never reads the body.
func param(r *http.Request, name string) string { return r.URL.Query().Get(name) }
