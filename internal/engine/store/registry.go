package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	hostsdir "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/ferryos/ferry/internal/fault"
)

// dockerHub is where images without a registry in their name come from, as
// names have it; dockerHubHost is the registry that answers for it.
const (
	dockerHub     = "docker.io"
	dockerHubHost = "registry-1.docker.io"
)

// Auth is a registry credential; the zero value is none.
type Auth struct {
	Username, Password string
	// IdentityToken is exchanged for an access token, as `docker login` with a
	// token service leaves it.
	IdentityToken string
	// RegistryToken is sent to the registry as it is.
	RegistryToken string
}

// secret is the credential in containerd's form: a token has no user name.
func (a Auth) secret() (user, secret string) {
	if a.IdentityToken != "" {
		return "", a.IdentityToken
	}
	return a.Username, a.Password
}

// Registry says how a registry, or a mirror of one, is reached.
type Registry struct {
	Host       string   // host or host:port, as names and mirrors' URLs have it
	Mirrors    []string // base URLs, asked in this order before the host itself
	PlainHTTP  bool     // no TLS
	SkipVerify bool     // any certificate will do
	CA         string   // PEM file of authorities that are trusted besides the system's
	ClientCert string   // PEM files of the certificate that the client shows
	ClientKey  string
}

// clients are the HTTP clients by host, so that connections are used again.
type clients struct {
	mu sync.Mutex // held for reads of certificates, no other lock is taken
	m  map[string]*http.Client
}

// client returns the client for a host.
func (s *Store) client(host string) (*http.Client, error) {
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	if c := s.clients.m[host]; c != nil {
		return c, nil
	}
	conf, err := s.registry(host).tls()
	if err != nil {
		return nil, fault.New(fault.Invalid, "registry %s: %w", host, err).Hint("see the setting registries in docs/reference/config.md")
	}
	transport := docker.DefaultHTTPTransport(conf)
	transport.MaxIdleConnsPerHost = parallel
	c := &http.Client{Transport: guard{next: transport, idle: s.idle()}}
	if s.clients.m == nil {
		s.clients.m = map[string]*http.Client{}
	}
	s.clients.m[host] = c
	return c, nil
}

// closeIdle ends the connections that are kept for the next request.
func (c *clients) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, client := range c.m {
		client.CloseIdleConnections()
	}
}

func (s *Store) idle() time.Duration { return cmp.Or(s.opt.IdleTimeout, idleTimeout) }

// registry returns what is configured for a host.
func (s *Store) registry(host string) Registry {
	i := slices.IndexFunc(s.opt.Registries, func(r Registry) bool { return r.Host == host })
	if i < 0 {
		return Registry{Host: host}
	}
	return s.opt.Registries[i]
}

func (r Registry) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: r.SkipVerify} // #nosec G402: asked for by the configuration
	if r.CA != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(r.CA)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s holds no certificate", r.CA)
		}
		conf.RootCAs = pool
	}
	if r.ClientCert != "" {
		pair, err := tls.LoadX509KeyPair(r.ClientCert, r.ClientKey)
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// plain reports whether a host is spoken to without TLS: one on loopback is, as
// with Docker, unless a certificate is configured for it.
func (s *Store) plain(host string) bool {
	r := s.registry(host)
	if r.PlainHTTP || s.opt.PlainHTTP != nil && s.opt.PlainHTTP(host) {
		return true
	}
	local, err := docker.MatchLocalhost(host)
	return err == nil && local && r.CA == "" && r.ClientCert == "" && !r.SkipVerify
}

const mayPull = docker.HostCapabilityPull | docker.HostCapabilityResolve

// Hosts returns the hosts that answer for the registry of a name, mirrors
// first; auth is for the registry itself and is never shown to a mirror.
func (s *Store) Hosts(ctx context.Context, auth Auth) docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		conf := s.registry(host)
		if s.opt.HostsDir != "" && len(conf.Mirrors) == 0 {
			hosts, err := s.fromHostsDir(ctx, host, auth)
			if err != nil || len(hosts) > 0 {
				return hosts, err
			}
		}
		var out []docker.RegistryHost
		for _, mirror := range conf.Mirrors {
			u, err := url.Parse(mirror)
			if err != nil {
				return nil, fault.New(fault.Invalid, "mirror %q of %s: %w", mirror, host, err)
			}
			h, err := s.host(u.Host, Auth{}, mayPull)
			if err != nil {
				return nil, err
			}
			h.Scheme, h.Path = u.Scheme, strings.TrimRight(u.Path, "/")+"/v2"
			out = append(out, h)
		}
		h, err := s.host(host, auth, mayPull|docker.HostCapabilityPush|docker.HostCapabilityReferrers)
		if err != nil {
			return nil, err
		}
		return append(out, h), nil
	}
}

// host is a registry host with a client and an authorizer.
func (s *Store) host(host string, auth Auth, capabilities docker.HostCapabilities) (docker.RegistryHost, error) {
	client, err := s.client(host)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	h := docker.RegistryHost{Client: client, Host: host, Scheme: "https", Path: "/v2", Capabilities: capabilities}
	if s.plain(host) {
		h.Scheme = "http"
	}
	h.Authorizer = s.authorizer(host, auth, client)
	if host == dockerHub {
		h.Host = dockerHubHost
	}
	return h, nil
}

func (s *Store) authorizer(host string, auth Auth, client *http.Client) docker.Authorizer {
	if auth.RegistryToken != "" {
		return bearer(auth.RegistryToken)
	}
	if auth == (Auth{}) && s.opt.Credential != nil {
		auth.Username, auth.Password = s.opt.Credential(host)
	}
	return docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(string) (string, string, error) {
		user, secret := auth.secret()
		return user, secret, nil
	}))
}

// bearer is an Authorizer that shows a token and asks for no other.
type bearer string

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	req.Header.Set("Authorization", "Bearer "+string(b))
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("the registry refuses the token: %w", docker.ErrInvalidAuthorization)
}

// fromHostsDir reads a registry's hosts.toml, or Docker's certificates, from a
// directory laid out as containerd's certs.d. It returns none where there are none.
func (s *Store) fromHostsDir(ctx context.Context, host string, auth Auth) ([]docker.RegistryHost, error) {
	find := hostsdir.HostDirFromRoot(s.opt.HostsDir)
	if _, err := find(host); err != nil {
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		return nil, err
	}
	opt := hostsdir.HostOptions{HostDir: find,
		UpdateClient: func(c *http.Client) error {
			if _, wrapped := c.Transport.(guard); !wrapped {
				c.Transport = guard{next: c.Transport, idle: s.idle()}
			}
			return nil
		},
		Credentials: func(asking string) (string, string, error) {
			if asking == host || asking == dockerHubHost && host == dockerHub {
				if auth != (Auth{}) {
					user, secret := auth.secret()
					return user, secret, nil
				}
			}
			if s.opt.Credential == nil {
				return "", "", nil
			}
			user, password := s.opt.Credential(asking)
			return user, password, nil
		}}
	if s.plain(host) {
		opt.DefaultScheme = "http"
	}
	hosts, err := hostsdir.ConfigureHosts(ctx, opt)(host)
	if err != nil {
		return nil, fault.New(fault.Invalid, "hosts of registry %s in %s: %w", host, s.opt.HostsDir, err)
	}
	return hosts, nil
}

// resolver speaks the OCI distribution protocol with the registries.
func (s *Store) resolver(ctx context.Context, auth Auth) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: s.Hosts(ctx, auth)})
}

// Login checks a credential with a registry, given as `docker login` has it: a
// host, or an URL of it; "" is Docker Hub.
func (s *Store) Login(ctx context.Context, server string, auth Auth) error {
	host := loginHost(server)
	if _, err := reference.ParseNormalizedNamed(host + "/x"); err != nil {
		return fault.New(fault.Invalid, "log in to %s: %w", server, err)
	}
	hosts, err := s.Hosts(ctx, auth)(host)
	if err != nil {
		return err
	}
	h := hosts[len(hosts)-1] // the registry itself
	target := url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/"}
	for range 2 { // the first answer tells how to ask
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
		if err != nil {
			return err
		}
		if err := h.Authorizer.Authorize(ctx, req); err != nil {
			return loginError(target.String(), err)
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return loginError(target.String(), err)
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusOK:
			return nil
		case resp.StatusCode != http.StatusUnauthorized:
			return fault.New(fault.Unavailable, "login attempt to %s failed with status: %s", target.String(), resp.Status)
		}
		if err := h.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return loginError(target.String(), err)
		}
	}
	return fault.New(fault.Denied, "login attempt to %s failed with status: 401 Unauthorized", target.String()).
		Hint("the registry does not accept this user name and password")
}

// loginHost is the registry host that `docker login SERVER` means.
func loginHost(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	server, _, _ = strings.Cut(server, "/")
	switch server {
	case "", "index.docker.io", dockerHubHost:
		return dockerHub
	}
	return server
}

func loginError(target string, err error) error {
	if _, ok := errors.AsType[net.Error](err); ok {
		return fault.New(fault.Unavailable, "Get %q: %w", target, err).Hint("the registry cannot be reached")
	}
	return fault.New(fault.Denied, "Get %q: unauthorized: %w", target, err).Hint("the registry does not accept this user name and password")
}
