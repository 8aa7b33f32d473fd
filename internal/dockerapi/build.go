package dockerapi

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	"github.com/ferryos/ferry/internal/build"
	"github.com/ferryos/ferry/internal/fault"
)

var errNoBuilder = fault.New(fault.Unsupported, "this Ferry was started without a builder")

// grpc hands the connection to BuildKit's control API, upgraded to HTTP/2
// without TLS as buildx and BuildKit's own client ask for.
func (s *Server) grpc(w http.ResponseWriter, r *http.Request) error {
	if s.opt.Builder == nil {
		return errNoBuilder
	}
	if proto := r.Header.Get("Upgrade"); proto != "h2c" {
		return fault.New(fault.Invalid, "/grpc upgrades to h2c alone, not to %q", proto)
	}
	conn, in, err := takeOver(w)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		return err
	}
	s.opt.Builder.ServeGRPC(r.Context(), buffered{conn, in})
	return nil
}

// buffered is a connection whose first bytes the HTTP server has read already.
type buffered struct {
	net.Conn
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// build answers the build of clients that do not speak BuildKit's protocol.
func (s *Server) build(w http.ResponseWriter, r *http.Request) error {
	if s.opt.Builder == nil {
		return errNoBuilder
	}
	return s.opt.Builder.ServeBuild(w, r)
}

// buildUnchanged is Ferry's own: it answers a build of which nothing has changed
// since the daemon made it, and otherwise that it has to be made.
func (s *Server) buildUnchanged(w http.ResponseWriter, r *http.Request) error {
	if s.opt.Builder == nil {
		return errNoBuilder
	}
	got, err := s.opt.Builder.Unchanged(r.Context(), param(r, "key"), r.URL.Query()["t"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, got)
}

func (s *Server) buildCancel(w http.ResponseWriter, r *http.Request) error {
	if s.opt.Builder == nil {
		return errNoBuilder
	}
	if err := s.opt.Builder.CancelBuild(param(r, "id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) buildPrune(w http.ResponseWriter, r *http.Request) error {
	if s.opt.Builder == nil {
		return errNoBuilder
	}
	filters, err := parseFilters(r, build.CacheFilters...)
	if err != nil {
		return err
	}
	p := build.Prune{All: flag(r, "all"), Filters: filters}
	for name, to := range map[string]*int64{"keep-storage": &p.ReservedSpace, "reserved-space": &p.ReservedSpace,
		"max-used-space": &p.MaxUsedSpace, "min-free-space": &p.MinFreeSpace} {
		if text := param(r, name); text != "" {
			if *to, err = strconv.ParseInt(text, 10, 64); err != nil || *to < 0 {
				return fault.New(fault.Invalid, "prune: %s=%s is no number of bytes", name, text)
			}
		}
	}
	report, err := s.opt.Builder.PruneCache(r.Context(), p)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}

func (s *Server) session(w http.ResponseWriter, r *http.Request) error {
	if s.opt.Builder == nil {
		return errNoBuilder
	}
	return s.opt.Builder.ServeSession(w, r)
}
