// Package registry is the built-in OCI registry: CNCF Distribution as a
// library, on loopback and on the bridge, where pods reach it.
//
// Anybody who reaches it may pull; pushing asks for the one credential that is
// made at the first start, and another is refused. It is an ordinary registry: nothing of Ferry goes
// around it. Only the composition root imports it.
package registry

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the one driver that is linked in

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/lifecycle"
)

// username is that of the generated credential.
const username = "ferry"

// Options are what a Registry is made from.
type Options struct {
	Root    string     // blobs and the credential
	Gateway netip.Addr // the bridge's address
	Port    int        // on loopback and on Gateway
	Log     *slog.Logger
}

// Registry is the registry, a lifecycle.Component.
type Registry struct {
	opt      Options
	password string
	http     *http.Server
	served   sync.WaitGroup
}

// New returns a Registry that listens once started.
func New(opt Options) *Registry { return &Registry{opt: opt} }

// Name implements lifecycle.Component.
func (r *Registry) Name() string { return "registry" }

// Start listens.
func (r *Registry) Start(ctx context.Context) error {
	if err := os.MkdirAll(r.opt.Root, 0o700); err != nil {
		return fault.New(fault.Unavailable, "registry: %w", err).Hint("make room, or set dataDir in the configuration")
	}
	if err := r.loadPassword(); err != nil {
		return fmt.Errorf("registry's credential: %w", err)
	}
	run := context.WithoutCancel(ctx)
	config, err := r.configuration()
	if err != nil {
		return err
	}
	r.http = &http.Server{Handler: r.guard(handlers.NewApp(run, config)), ReadHeaderTimeout: 30 * time.Second,
		ConnState: lifecycle.CountConns(&r.served), ErrorLog: slog.NewLogLogger(r.opt.Log.Handler(), slog.LevelDebug)}
	var listeners []net.Listener
	for _, host := range []string{"127.0.0.1", r.opt.Gateway.String()} {
		addr := net.JoinHostPort(host, strconv.Itoa(r.opt.Port))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			for _, have := range listeners {
				have.Close()
			}
			return fault.New(fault.Unavailable, "registry: listen on %s: %w", addr, err).
				Hint("end what uses the port (`ss -ltnp`), or set registry.port in the configuration")
		}
		listeners = append(listeners, l)
	}
	for _, l := range listeners {
		r.served.Go(func() {
			if err := r.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				r.opt.Log.Error("registry stopped serving", "error", err)
			}
		})
	}
	return nil
}

// Stop ends all requests, pushes under way too.
func (r *Registry) Stop(ctx context.Context) error {
	return lifecycle.StopHTTP(ctx, r.http, &r.served)
}

func (r *Registry) configuration() (*configuration.Configuration, error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, err
	}
	c := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  configuration.Parameters{"rootdirectory": filepath.Join(r.opt.Root, "blobs")},
		"delete":      configuration.Parameters{"enabled": true},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": true, "age": "24h", "interval": "24h", "dryrun": false}},
	}}
	c.HTTP.Secret = hex.EncodeToString(secret) // of uploads under way, which a restart ends
	// Locations of uploads are relative: the same registry has several addresses.
	c.HTTP.RelativeURLs = true
	c.Log.Level = "error"
	c.Catalog.MaxEntries = 1000
	return c, nil
}

// guard asks for the credential where something would change. A wrong one is
// refused anywhere: who logs in wants to know.
func (r *Registry) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		reads := req.Method == http.MethodGet || req.Method == http.MethodHead
		if reads && req.Header.Get("Authorization") == "" || r.authorized(req) {
			next.ServeHTTP(w, req)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="Ferry registry"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		// The error format of the OCI distribution specification.
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{
			"code": "UNAUTHORIZED", "message": "pushing needs the registry's credential, pulling none"}}})
	})
}

func (r *Registry) authorized(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	return ok && user == username && subtle.ConstantTimeCompare([]byte(password), []byte(r.password)) == 1
}

// loadPassword reads the password, or makes one at the first start.
func (r *Registry) loadPassword() error {
	path := filepath.Join(r.opt.Root, "password")
	data, err := os.ReadFile(path)
	if err == nil && len(data) > 0 {
		r.password = string(data)
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	r.password = base64.RawURLEncoding.EncodeToString(random)
	return atomicfile.Write(path, []byte(r.password), 0o600)
}

// Hosts are the registry's names: as the node, and as pods reach it.
func (r *Registry) Hosts() []string {
	port := strconv.Itoa(r.opt.Port)
	return []string{net.JoinHostPort("localhost", port), net.JoinHostPort("127.0.0.1", port), net.JoinHostPort(r.opt.Gateway.String(), port)}
}

// Credential returns what to push with; valid once started.
func (r *Registry) Credential() (user, password string) { return username, r.password }

// DockerConfig is the credential as Docker's config.json, the content of a
// Secret of type kubernetes.io/dockerconfigjson, for Hosts and further ones.
func (r *Registry) DockerConfig(further ...string) ([]byte, error) {
	auths := map[string]map[string]string{}
	for _, host := range append(r.Hosts(), further...) {
		auths[host] = map[string]string{"username": username, "password": r.password,
			"auth": base64.StdEncoding.EncodeToString([]byte(username + ":" + r.password))}
	}
	return json.Marshal(map[string]any{"auths": auths})
}
