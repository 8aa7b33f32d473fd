package dockerapi

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) imageList(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "reference", "label", "label!", "dangling", "until", "before", "since")
	if err != nil {
		return err
	}
	older, newer, err := s.imagesAround(r.Context(), match)
	if err != nil {
		return err
	}
	images, err := s.containerImages(r.Context())
	if err != nil {
		return err
	}
	shared := map[string]int64{}
	if flag(r, "shared-size") {
		shared, _ = sharedSizes(images)
	}
	images = slices.DeleteFunc(images, func(img store.Image) bool {
		return !match.image(img) || !older.IsZero() && !img.Created.Before(older) || !newer.IsZero() && !img.Created.After(newer)
	})
	out := s.imageSummaries(r.Context(), images)
	for i := range out {
		if match["reference"] != nil { // as Docker: of the names those that were asked for
			other := func(name string) bool { return !match.reference(name) }
			out[i].RepoTags, out[i].RepoDigests = slices.DeleteFunc(out[i].RepoTags, other), slices.DeleteFunc(out[i].RepoDigests, other)
		}
		if size, known := shared[images[i].Target]; known {
			out[i].SharedSize = size
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// imagesAround reads the filters before and since: when the images were made
// that those asked for are older and newer than.
func (s *Server) imagesAround(ctx context.Context, match filters) (older, newer time.Time, err error) {
	for key, at := range map[string]*time.Time{"before": &older, "since": &newer} {
		for _, name := range match[key] {
			img, err := s.opt.Engine.Images().Image(ctx, name)
			if err != nil {
				return older, newer, err
			}
			*at = img.Created
		}
	}
	return older, newer, nil
}

// containerImages are the images that are no artifacts.
func (s *Server) containerImages(ctx context.Context) ([]store.Image, error) {
	images, err := s.opt.Engine.Images().Images(ctx)
	return slices.DeleteFunc(images, func(img store.Image) bool { return img.ArtifactType != "" }), err
}

// imageSummaries are images as lists show them, their shared size left open.
func (s *Server) imageSummaries(ctx context.Context, images []store.Image) []image.Summary {
	uses := map[string]int64{}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
		uses[c.ImageID]++
	}
	out := []image.Summary{}
	for _, img := range images {
		created := img.Created.Unix()
		if img.Created.IsZero() {
			created = 0
		}
		out = append(out, image.Summary{ID: img.ID, RepoTags: notNil(img.RepoTags()), RepoDigests: notNil(img.RepoDigests()),
			Created: created, Size: img.Size, SharedSize: -1, Containers: uses[img.ID], Labels: img.Config.Labels})
	}
	return out
}

// sharedSizes tells, by target, how much of each image is layers that others
// have too, and how much all of them take together.
func sharedSizes(images []store.Image) (shared map[string]int64, total int64) {
	users := map[digest.Digest]map[string]bool{}
	for _, img := range images {
		total += img.Size
		for _, layer := range img.Layers {
			if users[layer.Digest] == nil {
				users[layer.Digest] = map[string]bool{}
			} else {
				total -= layer.Size
			}
			users[layer.Digest][img.Target] = true
		}
	}
	shared = map[string]int64{}
	for _, img := range images {
		shared[img.Target] = 0
		for _, layer := range img.Layers {
			if len(users[layer.Digest]) > 1 {
				shared[img.Target] += layer.Size
			}
		}
	}
	return shared, total
}

// imagePrune removes images that no container uses: those without a name, or
// all with the filter dangling=false.
func (s *Server) imagePrune(w http.ResponseWriter, r *http.Request) error {
	match, err := parseFilters(r, "dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	if match["dangling"] == nil {
		match = maps.Clone(match)
		if match == nil {
			match = filters{}
		}
		match["dangling"] = []string{"true"}
	} else if all, _ := strconv.ParseBool(match["dangling"][0]); !all {
		delete(match, "dangling")
	}
	images, err := s.containerImages(r.Context())
	if err != nil {
		return err
	}
	_, before := sharedSizes(images)
	used := map[string]bool{}
	for _, image := range s.opt.Engine.ImagesInUse(r.Context()) {
		used[image] = true
	}
	report := image.PruneReport{ImagesDeleted: []image.DeleteResponse{}}
	for _, img := range images {
		if used[img.ID] || used[img.Digest] || !match.image(img) {
			continue
		}
		gone, err := s.dropImage(r.Context(), img.ID, img.ID, true)
		if fault.Is(err, fault.NotFound) {
			continue // by another hand
		}
		if err != nil {
			return err
		}
		report.ImagesDeleted = append(report.ImagesDeleted, gone...)
	}
	if images, err = s.containerImages(r.Context()); err != nil {
		return err
	}
	_, after := sharedSizes(images)
	report.SpaceReclaimed = uint64(max(before-after, 0))
	return writeJSON(w, http.StatusOK, report)
}

// notNil makes null an empty list: clients index it.
func notNil(list []string) []string { return append([]string{}, list...) }

func (f filters) image(img store.Image) bool {
	tags := img.RepoTags()
	return f.labels(img.Config.Labels) && f.noLabels(img.Config.Labels) && f.until(img.Created) &&
		f.any("dangling", func(v string) bool { want, _ := strconv.ParseBool(v); return (len(tags) == 0) == want }) &&
		(f["reference"] == nil || slices.ContainsFunc(tags, f.reference))
}

// reference reports whether a name is one of those asked for.
func (f filters) reference(name string) bool {
	ref, err := reference.ParseNormalizedNamed(name)
	return err == nil && f.any("reference", func(pattern string) bool {
		ok, err := reference.FamiliarMatch(pattern, ref)
		return err == nil && ok
	})
}

// imageVerbs are the routes below /images/NAME, by method and verb.
func (s *Server) imageVerbs() map[string]func(w http.ResponseWriter, r *http.Request, name string) error {
	return map[string]func(http.ResponseWriter, *http.Request, string) error{
		"GET json":    s.imageInspect,
		"GET history": s.imageHistory,
		"GET get": func(w http.ResponseWriter, r *http.Request, name string) error {
			return s.saveImages(w, r, []string{name})
		},
		"POST tag":  s.imageTag,
		"POST push": s.imagePush,
	}
}

// imageVerb answers METHOD /images/NAME/VERB.
func (s *Server) imageVerb(w http.ResponseWriter, r *http.Request) error {
	name, verb := splitVerb(r.PathValue("path"))
	if answer := s.imageVerbs()[r.Method+" "+verb]; answer != nil {
		return answer(w, r, name)
	}
	return notServed(w, r)
}

func splitVerb(path string) (name, verb string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

// image returns an image with all its names. The store tells, of one asked for
// by name, that name alone.
func (s *Server) image(ctx context.Context, name string) (store.Image, error) {
	img, err := s.opt.Engine.Images().Image(ctx, name)
	if err != nil {
		return img, err
	}
	all, err := s.opt.Engine.Images().Images(ctx)
	if err != nil {
		return img, err
	}
	for _, other := range all {
		if other.Target == img.Target {
			return other, nil
		}
	}
	return img, nil // removed meanwhile
}

func (s *Server) imageInspect(w http.ResponseWriter, r *http.Request, name string) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	img, err := s.image(r.Context(), name)
	if err != nil {
		return err
	}
	if platform != "" {
		names := img.Names
		if img, err = s.opt.Engine.Images().ImageFor(r.Context(), name, platform); err != nil {
			return err
		}
		img.Names = names
	}
	config, err := json.Marshal(img.Config)
	if err != nil {
		return err
	}
	layers := []string{}
	for _, d := range img.DiffIDs {
		layers = append(layers, d.String())
	}
	// As Docker has it; the types of the client library add nothing to what is known here.
	return writeJSON(w, http.StatusOK, map[string]any{
		"Id": img.ID, "RepoTags": notNil(img.RepoTags()), "RepoDigests": notNil(img.RepoDigests()), "Created": img.Created.Format(time.RFC3339Nano),
		"Architecture": img.Architecture, "Variant": img.Variant, "Os": img.OS, "Size": img.Size, "Config": json.RawMessage(config), "Author": img.Author, "Comment": img.Comment(),
		"RootFS":     image.RootFS{Type: "layers", Layers: layers},
		"Descriptor": map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": img.Digest},
	})
}

func (s *Server) imageHistory(w http.ResponseWriter, r *http.Request, name string) error {
	img, err := s.image(r.Context(), name)
	if err != nil {
		return err
	}
	out := []image.HistoryResponseItem{}
	layer := len(img.Layers)
	for i := len(img.History) - 1; i >= 0; i-- {
		h := img.History[i]
		item := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment, Tags: []string{}}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer > 0 {
			layer--
			item.Size = img.Layers[layer].Size
		}
		if len(out) == 0 {
			item.ID, item.Tags = img.ID, notNil(img.RepoTags())
		}
		out = append(out, item)
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) imageTag(w http.ResponseWriter, r *http.Request, name string) error {
	to := param(r, "repo")
	if tag := param(r, "tag"); tag != "" {
		to += ":" + tag
	}
	if err := s.opt.Engine.Images().Tag(r.Context(), name, to); err != nil {
		return err
	}
	s.publishTag(r.Context(), to)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (s *Server) imageRemove(w http.ResponseWriter, r *http.Request) error {
	name, force := r.PathValue("path"), flag(r, "force")
	img, err := s.image(r.Context(), name)
	if err != nil {
		return err
	}
	// One of several names may go whoever uses the image.
	ref, err := reference.ParseDockerRef(name)
	oneOfSeveral := err == nil && len(img.Names) > 1 && slices.Contains(img.Names, ref.String())
	for _, c := range s.opt.Engine.Containers(r.Context(), "") {
		if oneOfSeveral || !slices.ContainsFunc(s.opt.Engine.ImagesOf(r.Context(), c), func(used string) bool { return used == img.ID || used == img.Digest }) {
			continue
		}
		if alive(c) || !force {
			return fault.New(fault.Conflict, "unable to remove %q: container %s uses the image", name, c.ID[:12]).
				Hint("remove the container first")
		}
	}
	out, err := s.dropImage(r.Context(), name, img.ID, force)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// dropImage takes a name from the image with the ID, or all of them, and tells it.
func (s *Server) dropImage(ctx context.Context, name, id string, force bool) ([]image.DeleteResponse, error) {
	untagged, deleted, err := s.opt.Engine.Images().Remove(context.WithoutCancel(ctx), name, force)
	if err != nil {
		return nil, err
	}
	out := []image.DeleteResponse{}
	for _, tag := range untagged {
		s.publish(events.ImageEventType, events.ActionUnTag, id, map[string]string{"name": tag})
		out = append(out, image.DeleteResponse{Untagged: tag})
	}
	for _, id := range deleted {
		s.publish(events.ImageEventType, events.ActionDelete, id, map[string]string{"name": id})
		out = append(out, image.DeleteResponse{Deleted: id})
	}
	return out, nil
}

func (s *Server) imageSave(w http.ResponseWriter, r *http.Request) error {
	names := r.URL.Query()["names"]
	if len(names) == 0 {
		return fault.New(fault.Invalid, "save: no image named")
	}
	return s.saveImages(w, r, names)
}

func (s *Server) saveImages(w http.ResponseWriter, r *http.Request, names []string) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	for _, name := range names { // before the answer begins
		if _, err := s.opt.Engine.Images().ImageFor(r.Context(), name, platform); err != nil {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := s.opt.Engine.Images().SaveFor(r.Context(), w, platform, names...); err != nil {
		return err
	}
	for _, name := range names {
		s.publishImage(r.Context(), events.ActionSave, name)
	}
	return nil
}

func (s *Server) imageLoad(w http.ResponseWriter, r *http.Request) error {
	platform, err := wantedPlatform(r)
	if err != nil {
		return err
	}
	names, err := s.opt.Engine.Images().LoadFor(r.Context(), r.Body, platform)
	if err != nil {
		return err
	}
	out := newMessages(w)
	for _, name := range names {
		s.publishImage(r.Context(), events.ActionLoad, name)
		what := "Loaded image: "
		if strings.HasPrefix(name, "sha256:") {
			what = "Loaded image ID: "
		} else if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			name = reference.FamiliarString(ref)
		}
		out.send(jsonstream.Message{Stream: what + name + "\n"})
	}
	return nil
}

// messages is Docker's stream of progress: JSON objects one after the other.
type messages struct {
	enc *json.Encoder
	rc  *http.ResponseController
}

func newMessages(w http.ResponseWriter) messages {
	w.Header().Set("Content-Type", "application/json")
	return messages{json.NewEncoder(w), http.NewResponseController(w)}
}

// send writes one message; a client that is gone is noticed by the server.
func (m messages) send(msg any) {
	if m.enc.Encode(msg) == nil {
		_ = m.rc.Flush()
	}
}
