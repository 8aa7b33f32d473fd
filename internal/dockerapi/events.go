package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"github.com/ferryos/ferry/internal/dockerapi/eventlog"
	"github.com/ferryos/ferry/internal/engine"
)

// actions maps the engine's events to Docker's.
var actions = map[engine.EventType]events.Action{
	engine.EventCreated: events.ActionCreate,
	engine.EventStarted: events.ActionStart,
	engine.EventExited:  events.ActionDie,
	engine.EventOOM:     events.ActionOOM,
	engine.EventPaused:  events.ActionPause,
	engine.EventResumed: events.ActionUnPause,
	engine.EventDeleted: events.ActionDestroy,
}

// publish tells who follows the events what happened to something that is no
// container: an image, a network, a volume. The attributes are the caller's no more.
func (s *Server) publish(kind events.Type, action events.Action, id string, attributes map[string]string) {
	s.publishAt(time.Now(), kind, action, id, attributes)
}

func (s *Server) publishAt(at time.Time, kind events.Type, action events.Action, id string, attributes map[string]string) {
	if attributes == nil {
		attributes = map[string]string{} // clients expect an object
	}
	s.events.Publish(events.Message{Type: kind, Action: action, Scope: "local",
		Actor: events.Actor{ID: id, Attributes: attributes}, Time: at.Unix(), TimeNano: at.UnixNano()})
}

// publishOf tells what the API did to a container. The engine's own events are
// told by follow.
func (s *Server) publishOf(c engine.Container, action events.Action, more ...string) {
	s.publish(events.ContainerEventType, action, c.ID, attributesOf(c, more...))
}

// attributesOf are what every event of a container says of it: its labels, its
// image, its name, and more in pairs.
func attributesOf(c engine.Container, more ...string) map[string]string {
	attributes := maps.Clone(c.Spec.Labels)
	if attributes == nil {
		attributes = map[string]string{}
	}
	attributes["image"], attributes["name"] = c.Spec.Image, c.Spec.Name
	for pair := range slices.Chunk(more, 2) {
		attributes[pair[0]] = pair[1]
	}
	return attributes
}

// publishImage tells what was done to an image by the name it has now.
func (s *Server) publishImage(ctx context.Context, action events.Action, name string) {
	id := name
	if img, err := s.opt.Engine.Images().Image(ctx, name); err == nil {
		id = img.ID
	}
	s.publish(events.ImageEventType, action, id, map[string]string{"name": name})
}

// publishTag tells that an image was given a name, which is told as people
// write it, but always with the tag.
func (s *Server) publishTag(ctx context.Context, name string) {
	if ref, err := reference.ParseNormalizedNamed(name); err == nil {
		name = reference.FamiliarString(reference.TagNameOnly(ref))
	}
	s.publishImage(ctx, events.ActionTag, name)
}

// publishEngine tells an event of the engine, if Docker has it.
func (s *Server) publishEngine(ev engine.Event) {
	if ev.Type == engine.EventPodUp || ev.Type == engine.EventPodDown {
		s.publishEndpoints(ev)
		return
	}
	action, known := actions[ev.Type]
	if !known || ev.Container == nil {
		return
	}
	c := *ev.Container
	var more []string
	if ev.Type == engine.EventExited {
		more = []string{"exitCode", strconv.Itoa(c.ExitCode), "execDuration", strconv.Itoa(int(c.FinishedAt.Sub(c.StartedAt).Seconds()))}
	}
	if ev.Type == engine.EventStarted {
		s.publishMounts(ev.Time, events.ActionMount, c)
	}
	s.publishAt(ev.Time, events.ContainerEventType, action, c.ID, attributesOf(c, more...))
	if ev.Type == engine.EventExited {
		s.publishMounts(ev.Time, events.ActionUnmount, c)
	}
}

// toldTime is how long an operation waits for the event of its success, so that
// its own comes after. It comes at once, unless the engine dropped it.
const toldTime = time.Second

// told returns once an action of a container that happened after the place was published.
func (s *Server) told(ctx context.Context, from eventlog.Place, id string, action events.Action) {
	ctx, cancel := context.WithTimeout(ctx, toldTime)
	defer cancel()
	_ = s.events.Await(ctx, from, func(m events.Message) bool { return m.Actor.ID == id && m.Action == action })
}

// legacyMessage adds what clients of API versions before 1.52 still read.
type legacyMessage struct {
	Status events.Action `json:"status,omitempty"`
	ID     string        `json:"id,omitempty"`
	From   string        `json:"from,omitempty"`
	events.Message
}

func legacyEvent(m events.Message) legacyMessage {
	out := legacyMessage{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		out.Status, out.ID, out.From = m.Action, m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		out.Status, out.ID = m.Action, m.Actor.ID
	}
	return out
}

// eventStream answers with events: from the time "since", else from now on,
// until the client leaves or the time "until" has come.
func (s *Server) eventStream(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "container", "event", "image", "label", "type", "scope", "volume", "network", "daemon")
	if err != nil {
		return err
	}
	since, err := parseTime(param(r, "since"))
	if err != nil {
		return err
	}
	until, err := parseTime(param(r, "until"))
	if err != nil {
		return err
	}
	place := s.events.Now()
	ctx := r.Context()
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	tell := func(list []events.Message) error {
		for _, m := range list {
			at := time.Unix(0, m.TimeNano)
			if at.Before(since) || !until.IsZero() && at.After(until) || !match.event(m) {
				continue
			}
			if err := enc.Encode(legacyEvent(m)); err != nil {
				return err
			}
		}
		return rc.Flush()
	}
	var list []events.Message
	if param(r, "since") != "" { // 0 is the beginning of time
		list, place = s.events.After(0)
		if err := tell(list); err != nil {
			return err
		}
	}
	for {
		list, place, err = s.events.Next(ctx, place)
		if errors.Is(err, context.DeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := tell(list); err != nil {
			return err
		}
	}
}

// event reports whether m is one of those asked for. As in Docker, what names
// an object may be the beginning of its ID or name.
func (f filters) event(m events.Message) bool {
	object := func(kind events.Type) bool {
		return f.any(string(kind), func(v string) bool {
			return m.Type == kind && (strings.HasPrefix(m.Actor.ID, v) || strings.HasPrefix(m.Actor.Attributes["name"], v))
		})
	}
	return f.labels(m.Actor.Attributes) &&
		f.any("type", func(v string) bool { return string(m.Type) == v }) &&
		f.any("scope", func(v string) bool { return m.Scope == v }) &&
		f.any("event", func(v string) bool { return isAction(m.Action, v) }) &&
		f.any("image", func(v string) bool { return isImage(m, v) }) &&
		object(events.ContainerEventType) && object(events.VolumeEventType) && object(events.NetworkEventType) && object(events.DaemonEventType)
}

// isAction compares an action; one that says more after a colon, as
// "exec_create: ls", is found by what is before it too.
func isAction(action events.Action, want string) bool {
	name, _, _ := strings.Cut(string(action), ":")
	return string(action) == want || name == want
}

// isImage reports whether an event is of an image, or of a container of it;
// the tag may be left out.
func isImage(m events.Message, want string) bool {
	name := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		name = m.Actor.Attributes["name"]
	}
	return name == want || m.Actor.ID == want || withoutTag(name) == want || withoutTag(m.Actor.ID) == want
}

// withoutTag is the name of an image without tag and digest.
func withoutTag(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if colon := strings.LastIndex(ref, ":"); colon > strings.LastIndex(ref, "/") {
		return ref[:colon]
	}
	return ref
}
