package dockerapi

import (
	"context"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// nameTable keeps the names of containers that are being created, which the
// engine does not know yet.
type nameTable struct {
	mu    *sync.Mutex
	taken map[string]struct{}
}

func newNameTable() nameTable { return nameTable{mu: new(sync.Mutex), taken: map[string]struct{}{}} }

// reserve takes a name, a random one if it is empty, until release is called.
// That of a container which goes with --rm, and has ended, is waited for.
func (s *Server) reserve(ctx context.Context, name string) (string, func(), error) {
	name = strings.TrimPrefix(name, "/")
	if name != "" && !validName.MatchString(name) {
		return "", nil, fault.New(fault.Invalid,
			"Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if c, err := s.find(ctx, name); err == nil && c.Spec.Name == name && c.State == engine.StateExited && settingsOf(c).HostConfig.AutoRemove {
		if err := s.removeContainer(context.WithoutCancel(ctx), c, true); err != nil {
			return "", nil, err
		}
	}
	s.names.mu.Lock()
	defer s.names.mu.Unlock()
	used := map[string]string{}
	for n := range s.names.taken {
		used[n] = "one that is being created"
	}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
		used[c.Spec.Name] = c.ID
	}
	if holder, ok := used[name]; ok {
		return "", nil, fault.New(fault.Conflict,
			"Conflict. The container name %q is already in use by container %q", "/"+name, holder).
			Hint("remove that container or give this one another name")
	}
	for name == "" {
		if candidate := randomName(); used[candidate] == "" {
			name = candidate
		}
	}
	s.names.taken[name] = struct{}{}
	return name, func() {
		s.names.mu.Lock()
		defer s.names.mu.Unlock()
		delete(s.names.taken, name)
	}, nil
}

// find returns Docker's container of that ID, name or unambiguous beginning of an ID.
func (s *Server) find(ctx context.Context, key string) (engine.Container, error) {
	if key = strings.TrimPrefix(key, "/"); key == "" {
		return engine.Container{}, fault.New(fault.NotFound, "No such container: %q", key)
	}
	var begins []engine.Container
	for _, c := range s.containers(ctx) {
		if c.ID == key || c.Spec.Name == key {
			return c, nil
		}
		if strings.HasPrefix(c.ID, key) {
			begins = append(begins, c)
		}
	}
	switch len(begins) {
	case 1:
		return begins[0], nil
	case 0:
		return engine.Container{}, fault.New(fault.NotFound, "No such container: %s", key)
	}
	return engine.Container{}, fault.New(fault.Invalid, "container %s: the ID begins %d of them", key, len(begins)).
		Hint("give more of the ID")
}

// findOther finds a container that the creation of another refers to. Not to find
// it is no NotFound: docker would take that for the image's, and pull it.
func (s *Server) findOther(ctx context.Context, key string) (engine.Container, error) {
	c, err := s.find(ctx, key)
	if fault.Is(err, fault.NotFound) {
		return c, fault.New(fault.Invalid, "No such container: %s", key)
	}
	return c, err
}

// findSettled is find, but for a container that is being started it waits for
// the start: a stop that comes then is meant for what runs afterwards.
func (s *Server) findSettled(ctx context.Context, key string) (engine.Container, error) {
	c, err := s.find(ctx, key)
	if err != nil || alive(c) {
		return c, err
	}
	if _, err := s.opt.Engine.Settled(c.ID); err != nil {
		return c, err
	}
	return s.find(ctx, c.ID)
}

var adjectives = strings.Fields(`agile amber ample azure blithe bold brave bright brisk calm candid clear clever
	cosmic crisp deft eager early fair fleet fond free fresh gentle glad golden grand happy hardy honest humble
	jolly keen kind light lively loyal lucid mellow merry mighty modest neat nimble noble placid plucky polite
	proud quick quiet rapid ready sage serene sharp silver sleek smart snug solid spry steady stout sunny swift
	tidy tranquil trusty upbeat vivid warm wise witty young zesty`)

var nouns = strings.Fields(`anchor anvil barge beacon bell boat bow breeze brig buoy cabin canal capstan cargo
	channel chart clipper coast compass cove crane crew current cutter deck delta dinghy dock drift ferry fjord
	fleet foghorn galley gangway gull halyard harbour haven helm hull inlet island jetty kayak keel ketch knot
	lagoon lantern lighthouse lock log mast mooring oar pier pilot port prow quay raft reef rigging rudder sail
	schooner sextant shore skiff sloop sound spar starboard stern strait tide tiller trawler tug voyage wake
	wharf winch windlass yawl`)

func randomName() string {
	return adjectives[rand.N(len(adjectives))] + "_" + nouns[rand.N(len(nouns))]
}
