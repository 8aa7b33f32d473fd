package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) imagePull(w http.ResponseWriter, r *http.Request) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	name := param(r, "fromImage")
	switch tag := param(r, "tag"); {
	case strings.HasPrefix(tag, "sha256:"):
		name += "@" + tag
	case tag != "":
		name += ":" + tag
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	images := s.opt.Engine.Images()
	before, _ := images.Image(r.Context(), name) // none is one that differs
	out := newMessages(w)
	begin := func() {
		if ref, err := reference.ParseDockerRef(name); err == nil {
			out.send(jsonstream.Message{Status: "Pulling from " + reference.Path(ref), ID: tagOf(ref)})
		}
	}
	began := false
	img, err := images.Pull(r.Context(), name, store.TransferOptions{Auth: auth, Platform: platform, Progress: func(ev store.Event) {
		if !began {
			began = true
			begin()
		}
		out.progress(ev)
	}})
	if err != nil {
		return out.fail(err, began)
	}
	if !began { // everything was there
		begin()
	}
	s.publish(events.ImageEventType, events.ActionPull, withTag(name), map[string]string{"name": withoutTag(name)})
	out.send(jsonstream.Message{Status: "Digest: " + img.Target})
	status := "Status: Downloaded newer image for "
	if before.Target == img.Target && before.Digest == img.Digest {
		status = "Status: Image is up to date for "
	}
	out.send(jsonstream.Message{Status: status + name})
	return nil
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

func (s *Server) imagePush(w http.ResponseWriter, r *http.Request, name string) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	if tag := param(r, "tag"); tag != "" {
		name += ":" + tag
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	out, began := newMessages(w), false
	pushed, err := s.opt.Engine.Images().Push(r.Context(), name, store.TransferOptions{Auth: auth, Platform: platform, Progress: func(ev store.Event) {
		if ref, err := reference.ParseDockerRef(name); err == nil && !began {
			out.send(jsonstream.Message{Status: "The push refers to repository [" + ref.Name() + "]"})
		}
		began = true
		out.progress(ev)
	}})
	if err != nil {
		return out.fail(err, began)
	}
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
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

// distribution tells what a registry has under a name.
func (s *Server) distribution(w http.ResponseWriter, r *http.Request) error {
	name, verb := splitVerb(r.PathValue("path"))
	if verb != "json" {
		return notServed(w, r)
	}
	auth, err := registryAuth(r)
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
