package push

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// Reference is host[:port]/repository:tag.
type Reference struct {
	Host, Repository, Tag string
}

var (
	repositoryForm = regexp.MustCompile(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
	tagForm        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

// ParseReference reads a reference; the registry's host must be named, and
// without a tag it is latest.
func ParseReference(s string) (Reference, error) {
	host, rest, ok := strings.Cut(s, "/")
	repo, tag, tagged := strings.Cut(rest, ":")
	if !tagged {
		tag = "latest"
	}
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" || !repositoryForm.MatchString(repo) || !tagForm.MatchString(tag) {
		return Reference{}, hint.Errorf("Write it as HOST:PORT/REPOSITORY:TAG, for example localhost:5000/models/digits:v1.", "reference %.200q is not one of a registry", s)
	}
	return Reference{Host: host, Repository: repo, Tag: tag}, nil
}

// Client speaks to registries. Its credentials are read once.
type Client struct {
	http  *http.Client
	auths map[string]credential
	token string
}

type credential struct {
	Auth     string `json:"auth"` // base64 of user:password
	Username string `json:"username"`
	Password string `json:"password"`
}

// NewClient returns a client with the credentials of a dockerconfigjson file,
// or of the .dockerconfigjson in a folder where such a Secret is mounted; an
// empty path means none.
func NewClient(path string) (*Client, error) {
	c := &Client{http: &http.Client{Timeout: 5 * time.Minute}}
	if path == "" {
		return c, nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, ".dockerconfigjson")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, hint.Errorf("Mount a Secret of type kubernetes.io/dockerconfigjson there.", "registry credential: %w", err)
	}
	var f struct {
		Auths map[string]credential `json:"auths"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		// The decoder's message could quote the secret.
		return nil, hint.Errorf("Make the Secret with 'kubectl create secret docker-registry'.", "registry credential %s is not a dockerconfigjson", path)
	}
	c.auths = f.Auths
	return c, nil
}

// scheme is http for registries that a cluster keeps to itself: on loopback or
// private addresses and Service names; https for all others.
func scheme(host string) string {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	ip := net.ParseIP(name)
	if name == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsPrivate()) ||
		strings.HasSuffix(name, ".svc") || strings.HasSuffix(name, ".cluster.local") {
		return "http"
	}
	return "https"
}

func (c *Client) blob(ctx context.Context, ref Reference, b []byte) error {
	base := scheme(ref.Host) + "://" + ref.Host + "/v2/" + ref.Repository
	dgst := digest.FromBytes(b)
	res, err := c.do(ctx, ref, http.MethodHead, base+"/blobs/"+dgst.String(), "", nil)
	if err != nil {
		return err
	}
	if res.StatusCode == http.StatusOK {
		return nil
	}
	res, err = c.do(ctx, ref, http.MethodPost, base+"/blobs/uploads/", "", nil)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusAccepted {
		return refused(ref, "start upload", res)
	}
	at, err := res.location()
	if err != nil {
		return fmt.Errorf("push %s: registry names no place for the upload: %w", ref.Host, err)
	}
	q := at.Query()
	q.Set("digest", dgst.String())
	at.RawQuery = q.Encode()
	res, err = c.do(ctx, ref, http.MethodPut, at.String(), "application/octet-stream", b)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusCreated {
		return refused(ref, "upload", res)
	}
	return nil
}

func (c *Client) manifest(ctx context.Context, ref Reference, a *Artifact) error {
	at := scheme(ref.Host) + "://" + ref.Host + "/v2/" + ref.Repository + "/manifests/" + ref.Tag
	res, err := c.do(ctx, ref, http.MethodPut, at, ocispec.MediaTypeImageManifest, a.Manifest)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusCreated {
		return refused(ref, "write manifest", res)
	}
	if got := res.Header.Get("Docker-Content-Digest"); got != "" && got != a.Digest.String() {
		return fmt.Errorf("push %s: registry stored %s, want %s", ref.Host, got, a.Digest)
	}
	return nil
}

// response is an answer whose body has been read.
type response struct {
	*http.Response
	body []byte
}

// location returns where the registry wants the upload. Another host is
// refused, for the credential would go there.
func (r *response) location() (*url.URL, error) {
	at, err := r.Location()
	if err != nil {
		return nil, err
	}
	if at.Host != r.Request.URL.Host {
		return nil, fmt.Errorf("it is on another host, %s", at.Host)
	}
	return at, nil
}

// do sends a request, and once more with a credential when it is asked for.
func (c *Client) do(ctx context.Context, ref Reference, method, at, contentType string, body []byte) (*response, error) {
	for attempt := 0; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("push %s: %w", ref.Host, err)
		}
		if contentType != "" {
			req.Header.Set("Content-Type", contentType)
		}
		if cred := c.credential(ref.Host); c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		} else if cred != "" {
			req.Header.Set("Authorization", "Basic "+cred)
		}
		res, err := c.http.Do(req)
		if err != nil {
			return nil, hint.Errorf("Check that the registry runs and that its address can be reached from here.", "push %s: %w", ref.Host, err)
		}
		b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		if err = errors.Join(err, res.Body.Close()); err != nil {
			return nil, fmt.Errorf("push %s: %w", ref.Host, err)
		}
		challenge, bearer := strings.CutPrefix(res.Header.Get("WWW-Authenticate"), "Bearer ")
		if res.StatusCode != http.StatusUnauthorized || !bearer || attempt > 0 {
			return &response{Response: res, body: b}, nil
		}
		if err := c.fetchToken(ctx, ref, challenge); err != nil {
			return nil, err
		}
	}
}

func (c *Client) credential(host string) string {
	for _, key := range []string{host, "http://" + host, "https://" + host} {
		if a, ok := c.auths[key]; ok {
			if a.Auth == "" {
				return base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
			}
			return a.Auth
		}
	}
	return ""
}

var challengePart = regexp.MustCompile(`(\w+)="([^"]*)"`)

// fetchToken asks the service that a Bearer challenge names for a token.
func (c *Client) fetchToken(ctx context.Context, ref Reference, challenge string) error {
	part := map[string]string{}
	for _, m := range challengePart.FindAllStringSubmatch(challenge, -1) {
		part[m[1]] = m[2]
	}
	realm, err := url.Parse(part["realm"])
	if err != nil || realm.Host == "" {
		return fmt.Errorf("push %s: registry wants a token from nowhere: %q", ref.Host, challenge)
	}
	if realm.Scheme != "https" && scheme(realm.Host) != "http" {
		return fmt.Errorf("push %s: registry wants the credential sent in the clear to %s", ref.Host, realm.Host)
	}
	q := realm.Query()
	q.Set("service", part["service"])
	q.Set("scope", "repository:"+ref.Repository+":pull,push")
	realm.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return fmt.Errorf("push %s: %w", ref.Host, err)
	}
	if cred := c.credential(ref.Host); cred != "" {
		req.Header.Set("Authorization", "Basic "+cred)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("push %s: token: %w", ref.Host, err)
	}
	defer res.Body.Close()
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&t); err != nil || res.StatusCode != http.StatusOK {
		return hint.Errorf("Check the credential in the mounted Secret.", "push %s: no token from %s: %s", ref.Host, realm.Host, res.Status)
	}
	if c.token = t.Token; c.token == "" {
		c.token = t.AccessToken
	}
	return nil
}

func refused(ref Reference, what string, res *response) error {
	next := "See the registry's log."
	if res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden {
		next = "Give a credential for " + ref.Host + " that may push: --registry-config PATH of a mounted Secret of type kubernetes.io/dockerconfigjson."
	}
	return hint.Errorf(next, "push %s/%s: %s: registry answers %s %.200s", ref.Host, ref.Repository, what, res.Status, bytes.TrimSpace(res.body))
}
