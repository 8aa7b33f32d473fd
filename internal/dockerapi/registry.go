package dockerapi

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// imagePull pulls an image or, where no tag is given, all that the registry has
// of the name.
func (s *Server) imagePull(w http.ResponseWriter, r *http.Request) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(param(r, "fromImage"), ":") // as old clients ask for all tags
	switch tag := param(r, "tag"); {
	case strings.HasPrefix(tag, "sha256:"):
		name += "@" + tag
	case tag != "":
		name += ":" + tag
	}
	auth, err := s.authFor(r, name)
	if err != nil {
		return err
	}
	names := []string{name}
	if repo := repository(name); repo != nil {
		if _, err := platforms.Parse(platform); platform != "" && err != nil { // before the registry is asked
			return fault.New(fault.Invalid, "platform %s: %w", platform, err)
		}
		if names, err = s.remoteNames(r.Context(), repo, auth); err != nil {
			return err
		}
	}
	out, began := newMessages(w), false
	for _, name := range names {
		if err := s.pull(r.Context(), out, name, store.TransferOptions{Auth: auth, Platform: platform}, &began); err != nil {
			return out.fail(err, began)
		}
	}
	return nil
}

// pull pulls one image and tells how it goes on; began is set once it has.
func (s *Server) pull(ctx context.Context, out messages, name string, opt store.TransferOptions, began *bool) error {
	images := s.opt.Engine.Images()
	before, _ := images.Image(ctx, name) // none is one that differs
	begin := sync.OnceFunc(func() {
		*began = true
		if ref, err := reference.ParseDockerRef(name); err == nil {
			out.send(jsonstream.Message{Status: "Pulling from " + reference.Path(ref), ID: tagOf(ref)})
		}
	})
	opt.Progress = func(ev store.Event) {
		begin()
		out.progress(ev)
	}
	img, err := images.Pull(ctx, name, opt)
	if err != nil {
		return err
	}
	begin() // if everything was there
	s.publish(events.ImageEventType, events.ActionPull, withTag(name), map[string]string{"name": withoutTag(name)})
	out.send(jsonstream.Message{Status: "Digest: " + img.Target})
	status := "Status: Downloaded newer image for "
	if before.Target == img.Target && before.Digest == img.Digest {
		status = "Status: Image is up to date for "
	}
	out.send(jsonstream.Message{Status: status + name})
	return nil
}

// repository is what a name without tag and digest names: all tags of it. It is
// nil for any other.
func repository(name string) reference.Named {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil || !reference.IsNameOnly(ref) {
		return nil
	}
	return ref
}

// maxTags bounds what is read of one answer of a registry, bytes.
const maxTags = 4 << 20

// remoteNames are the names with each of the tags that a registry has of a repository.
func (s *Server) remoteNames(ctx context.Context, repo reference.Named, auth store.Auth) ([]string, error) {
	hosts, err := s.opt.Engine.Images().Hosts(ctx, auth)(reference.Domain(repo))
	if err != nil {
		return nil, err
	}
	h := hosts[len(hosts)-1] // the registry itself, which knows them all
	next := &url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join(h.Path, reference.Path(repo), "tags/list")}
	var names []string
	for next != nil {
		resp, err := get(ctx, h.Client, h.Authorizer, next)
		if err != nil {
			return nil, fault.New(fault.Unavailable, "tags of %s: %w", repo.Name(), err).Hint("the registry cannot be reached, or asks for a credential")
		}
		var list struct{ Tags []string }
		if resp.StatusCode == http.StatusOK {
			err = json.NewDecoder(io.LimitReader(resp.Body, maxTags)).Decode(&list)
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusNotFound:
			return nil, fault.New(fault.NotFound, "%s: the registry has no such repository", repo.Name()).Hint("check the name")
		case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
			return nil, fault.New(fault.Denied, "tags of %s: %s", repo.Name(), resp.Status).Hint("the registry asks for a credential, or for another one")
		case resp.StatusCode != http.StatusOK, err != nil:
			return nil, fault.New(fault.Unavailable, "tags of %s: %s: %w", repo.Name(), resp.Status, cmp.Or(err, errors.New("no list"))).
				Hint("the registry has a fault of its own; try again later")
		}
		for _, tag := range list.Tags {
			ref, err := reference.WithTag(repo, tag)
			if err != nil {
				return nil, fault.New(fault.Unavailable, "tags of %s: %q is none: %w", repo.Name(), tag, err)
			}
			names = append(names, reference.FamiliarString(ref))
		}
		next = nextPage(next, resp.Header.Get("Link"))
	}
	if len(names) == 0 {
		return nil, fault.New(fault.NotFound, "%s: the registry has no tags of it", repo.Name()).Hint("check the name")
	}
	return names, nil
}

// nextPage is the page of a list that a registry names as next, nil for none.
// It is on the same host.
func nextPage(page *url.URL, link string) *url.URL {
	target, _, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.HasPrefix(link, "<") || !strings.Contains(link, `rel="next"`) {
		return nil
	}
	next, err := page.Parse(target)
	if err != nil || *next == *page {
		return nil
	}
	next.Scheme, next.Host = page.Scheme, page.Host
	return next
}

// authorizer shows a registry who asks, once that has said how it wants to know.
type authorizer interface {
	Authorize(ctx context.Context, req *http.Request) error
	AddResponses(ctx context.Context, responses []*http.Response) error
}

// get asks a registry, a second time if the first answer is how to ask.
func get(ctx context.Context, client *http.Client, auth authorizer, target *url.URL) (*http.Response, error) {
	for again := true; ; again = false {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
		if err == nil {
			err = auth.Authorize(ctx, req)
		}
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil || !again || resp.StatusCode != http.StatusUnauthorized {
			return resp, err
		}
		resp.Body.Close()
		if err := auth.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return nil, err
		}
	}
}

// tagOf is a name's tag, or its digest if it has none.
func tagOf(ref reference.Named) string {
	switch ref := ref.(type) {
	case reference.Tagged:
		return ref.Tag()
	case reference.Digested:
		return ref.Digest().String()
	}
	return ""
}

// imagePush pushes an image or, where no tag is given, all that there are of the name.
func (s *Server) imagePush(w http.ResponseWriter, r *http.Request, name string) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	if tag := param(r, "tag"); tag != "" {
		name += ":" + tag
	}
	auth, err := s.authFor(r, name)
	if err != nil {
		return err
	}
	names := []string{name}
	if repo := repository(name); repo != nil {
		if names, err = s.localNames(r.Context(), repo); err != nil {
			return err
		}
	}
	out, began := newMessages(w), false
	for _, name := range names {
		if err := s.push(r.Context(), out, name, store.TransferOptions{Auth: auth, Platform: platform}, &began); err != nil {
			return out.fail(err, began)
		}
	}
	return nil
}

// push pushes one image and tells how it goes on; began is set once anything was told.
func (s *Server) push(ctx context.Context, out messages, name string, opt store.TransferOptions, began *bool) error {
	opt.Progress = func(ev store.Event) {
		if ref, err := reference.ParseDockerRef(name); err == nil && !*began {
			out.send(jsonstream.Message{Status: "The push refers to repository [" + ref.Name() + "]"})
		}
		*began = true
		out.progress(ev)
	}
	pushed, err := s.opt.Engine.Images().Push(ctx, name, opt)
	if err != nil {
		return err
	}
	*began = true
	s.publish(events.ImageEventType, events.ActionPush, withTag(name), map[string]string{"name": withoutTag(name)})
	tagged := withTag(name)
	out.send(jsonstream.Message{Status: tagged[strings.LastIndexByte(tagged, ':')+1:] + ": digest: " + pushed.Digest.String() + " size: " + strconv.FormatInt(pushed.Size, 10)})
	aux, err := json.Marshal(map[string]any{"Tag": tagged[strings.LastIndexByte(tagged, ':')+1:], "Digest": pushed.Digest, "Size": pushed.Size})
	if err != nil {
		return err
	}
	out.send(jsonstream.Message{Aux: (*json.RawMessage)(&aux)})
	return nil
}

// localNames are the names of a repository that images have here.
func (s *Server) localNames(ctx context.Context, repo reference.Named) ([]string, error) {
	images, err := s.opt.Engine.Images().Images(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, img := range images {
		for _, name := range img.Names {
			ref, err := reference.ParseNormalizedNamed(name)
			if err != nil || ref.Name() != repo.Name() {
				continue
			}
			if _, tagged := ref.(reference.Tagged); tagged {
				names = append(names, reference.FamiliarString(ref))
			}
		}
	}
	if len(names) == 0 {
		return nil, fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(repo))
	}
	slices.Sort(names)
	return names, nil
}

// login checks a credential with its registry; the client keeps it.
func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	var c registry.AuthConfig
	if err := readJSON(r, &c); err != nil {
		return err
	}
	auth := authOf(c)
	if auth == (store.Auth{}) {
		return fault.New(fault.Invalid, "log in to %s: no user name and password", c.ServerAddress)
	}
	if err := s.opt.Engine.Images().Login(r.Context(), c.ServerAddress, auth); err != nil {
		return err
	}
	if err := s.showPassword(r.Context(), c.ServerAddress, auth); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

// showPassword shows a password to a registry that lets anybody in: that has not
// looked at it yet, but might refuse it when something is pushed.
func (s *Server) showPassword(ctx context.Context, server string, auth store.Auth) error {
	if server == "" || auth.Password == "" {
		return nil // Docker Hub, or a token, each of which was looked at
	}
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	asked, err := url.Parse(server)
	if err != nil {
		return fault.New(fault.Invalid, "log in to %s: %w", server, err)
	}
	hosts, err := s.opt.Engine.Images().Hosts(ctx, store.Auth{})(asked.Host)
	if err != nil {
		return err
	}
	h := hosts[len(hosts)-1]
	target := url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/"}
	for _, shown := range []bool{false, true} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
		if err != nil {
			return err
		}
		if shown {
			req.SetBasicAuth(auth.Username, auth.Password)
		}
		resp, err := h.Client.Do(req)
		if err != nil {
			return fault.New(fault.Unavailable, "Get %q: %w", target.String(), err).Hint("the registry cannot be reached")
		}
		resp.Body.Close()
		switch {
		case !shown && resp.StatusCode != http.StatusOK:
			return nil
		case resp.StatusCode == http.StatusUnauthorized:
			return fault.New(fault.Denied, "login attempt to %s failed with status: %s", target.String(), resp.Status).
				Hint("the registry does not accept this user name and password")
		}
	}
	return nil
}

// distribution tells what a registry has under a name.
func (s *Server) distribution(w http.ResponseWriter, r *http.Request) error {
	name, verb := splitVerb(r.PathValue("path"))
	if verb != "json" {
		return notServed(w, r)
	}
	auth, err := s.authFor(r, name)
	if err != nil {
		return err
	}
	desc, platforms, err := s.opt.Engine.Images().Remote(r.Context(), name, auth)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.DistributionInspect{Descriptor: desc, Platforms: append([]ocispec.Platform{}, platforms...)})
}

// imageSearch is refused: registries have no search, Docker Hub's is its own.
func (s *Server) imageSearch(http.ResponseWriter, *http.Request) error {
	return fault.New(fault.Unsupported, "searching Docker Hub for images is not supported").Hint("search on https://hub.docker.com")
}

// authFor is what a registry is shown for a request about an image: what the
// client gives, but nothing where it is the built-in one, whose credential the
// daemon has. A client may have kept another, of an earlier one on this machine.
func (s *Server) authFor(r *http.Request, name string) (store.Auth, error) {
	auth, err := registryAuth(r)
	if ref, refErr := reference.ParseNormalizedNamed(name); refErr == nil && s.opt.OwnRegistry != nil && s.opt.OwnRegistry(reference.Domain(ref)) {
		return store.Auth{}, err
	}
	return auth, err
}

// registryAuth reads the X-Registry-Auth header: JSON in URL-safe base64.
func registryAuth(r *http.Request) (store.Auth, error) {
	header := r.Header.Get("X-Registry-Auth")
	if header == "" {
		return store.Auth{}, nil
	}
	data, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(header, "="))
	if err != nil {
		return store.Auth{}, fault.New(fault.Invalid, "X-Registry-Auth: %w", err)
	}
	var c registry.AuthConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return store.Auth{}, fault.New(fault.Invalid, "X-Registry-Auth: %w", err)
	}
	return authOf(c), nil
}

func authOf(c registry.AuthConfig) store.Auth {
	return store.Auth{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
}

// wantedPlatform reads the platform that a request about an image asks for, ""
// for none: OS/ARCH[/VARIANT], or an object in JSON.
func wantedPlatform(r *http.Request) (string, error) {
	values := r.URL.Query()["platform"]
	if len(values) > 1 {
		return "", unsupported("more than one platform at a time")
	}
	if len(values) == 0 || !strings.HasPrefix(values[0], "{") {
		return param(r, "platform"), nil
	}
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(values[0]), &p); err != nil {
		return "", fault.New(fault.Invalid, "platform %s: %w", values[0], err)
	}
	return path.Join(p.OS, p.Architecture, p.Variant), nil
}

// progress sends a step of a pull or push.
func (m messages) progress(ev store.Event) {
	msg := jsonstream.Message{ID: ev.ID.Encoded()[:12], Status: string(ev.Status)}
	if ev.Total > 0 {
		msg.Progress = &jsonstream.Progress{Current: ev.Current, Total: ev.Total}
	}
	m.send(msg)
}

// fail reports an error: as the answer, or in the stream once that has begun.
func (m messages) fail(err error, began bool) error {
	if !began {
		return err
	}
	m.send(struct {
		jsonstream.Message
		Text string `json:"error"` // as old clients read it
	}{jsonstream.Message{Error: &jsonstream.Error{Code: fault.HTTPStatus(err), Message: message(err)}}, message(err)})
	return nil
}
