package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"path"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"

	"github.com/ferryos/ferry/internal/build/dockerfile"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/files"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// archivePath is the path that a request about a container's files names, from
// the root, with the "/" or "/." at its end that says to follow a link.
func archivePath(r *http.Request) (string, error) {
	asked := param(r, "path")
	if asked == "" {
		return "", fault.New(fault.Invalid, "bad parameter: 'path' cannot be empty")
	}
	clean := path.Join("/", asked)
	switch {
	case clean == "/":
	case strings.HasSuffix(asked, "/."):
		clean += "/."
	case strings.HasSuffix(asked, "/"):
		clean += "/"
	}
	return clean, nil
}

// noFile says in Docker's words that a container does not have a file.
func noFile(err error, name string, c engine.Container) error {
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "Could not find the file %s in container %s", name, c.Spec.Name)
	}
	return err
}

// containerArchive answers a file or directory of a container as a tar, or HEAD
// with what it is.
func (s *Server) containerArchive(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	name, err := archivePath(r)
	if err != nil {
		return err
	}
	root, err := s.opt.Engine.Files(ctx, c.ID)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Stat(name)
	if err != nil {
		return noFile(err, name, c)
	}
	stat, err := json.Marshal(container.PathStat{Name: info.Name, Size: info.Size, Mode: info.Mode, Mtime: info.ModTime, LinkTarget: info.LinkTarget})
	if err != nil {
		return err
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(stat))
	if r.Method == http.MethodHead {
		return nil
	}
	w.Header().Set("Content-Type", "application/x-tar")
	as := path.Base(name) // of the root, "/"
	if strings.HasSuffix(name, "/.") {
		as = "."
	}
	if err := root.Pack(ctx, w, name, as); err != nil {
		return err
	}
	s.publishOf(c, events.ActionArchivePath)
	return nil
}

// containerExtract unpacks a tar in a directory of a container.
func (s *Server) containerExtract(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	c, err := s.find(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	name, err := archivePath(r)
	if err != nil {
		return err
	}
	opt := files.UnpackOptions{KeepKind: flag(r, "noOverwriteDirNonDir")}
	if flag(r, "copyUIDGID") {
		uid, gid, err := s.opt.Engine.UserOf(ctx, c.ID)
		if err != nil {
			return err
		}
		opt.Owner = &[2]int{uid, gid}
	}
	plain, err := store.Decompress(r.Body)
	if err != nil {
		return err
	}
	defer plain.Close()
	root, err := s.opt.Engine.Files(ctx, c.ID)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(name); err != nil {
		return noFile(err, name, c)
	}
	if err := root.Unpack(ctx, plain, name, opt); err != nil {
		return err
	}
	s.publishOf(c, events.ActionExtractToDir)
	return nil
}

// containerExport answers a container's root as a tar, without what is mounted in it.
func (s *Server) containerExport(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	root, err := s.opt.Engine.OwnFiles(r.Context(), c.ID)
	if err != nil {
		return err
	}
	defer root.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	if err := root.Pack(r.Context(), w, "/", ""); err != nil {
		return err
	}
	s.publishOf(c, events.ActionExport)
	return nil
}

// changeKinds are the engine's kinds in Docker's numbers.
var changeKinds = map[files.ChangeKind]container.ChangeType{
	files.Modified: container.ChangeModify, files.Added: container.ChangeAdd, files.Deleted: container.ChangeDelete,
}

func (s *Server) containerChanges(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	changes, err := s.opt.Engine.Changes(r.Context(), c.ID)
	if err != nil {
		return err
	}
	out := []container.FilesystemChange{}
	for _, change := range changes {
		out = append(out, container.FilesystemChange{Path: change.Path, Kind: changeKinds[change.Kind]})
	}
	return writeJSON(w, http.StatusOK, out)
}

// newImageName is the name of repo and tag, which may come as one.
func newImageName(r *http.Request) string {
	name := param(r, "repo")
	if tag := param(r, "tag"); name != "" && tag != "" {
		name += ":" + tag
	}
	return name
}

// imageConfigOf is what an image keeps of a container's configuration.
func imageConfigOf(c container.Config) (dockerfile.Config, error) {
	var out dockerspec.DockerOCIImageConfig
	data, err := json.Marshal(c) // both have the same names
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	return out, err
}

// commit makes an image of a container.
func (s *Server) commit(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), param(r, "container"))
	if err != nil {
		return err
	}
	var own *container.Config // settings that the image has in place of the container's
	if err := readJSON(r, &own); err != nil {
		return err
	}
	set := settingsOf(c)
	config, err := imageConfigOf(set.Config)
	if err != nil {
		return err
	}
	if own != nil {
		merged, err := withImage(*own, config)
		if err != nil {
			return err
		}
		if config, err = imageConfigOf(merged); err != nil {
			return err
		}
	}
	if err := dockerfile.Apply(&config, r.URL.Query()["changes"]); err != nil {
		return err
	}
	pause := param(r, "pause") == "" || flag(r, "pause")
	img, err := s.opt.Engine.Commit(r.Context(), c.ID, pause, store.NewImage{Name: newImageName(r), Config: config,
		Author: param(r, "author"), Comment: param(r, "comment"), CreatedBy: strings.Join(set.Config.Cmd, " ")})
	if err != nil {
		return err
	}
	s.publishOf(c, events.ActionCommit, "comment", param(r, "comment"), "imageID", img.ID, "imageRef", newImageName(r))
	return writeJSON(w, http.StatusCreated, container.CommitResponse{ID: img.ID})
}

// imageCreate imports an image or, as a rule, pulls one.
func (s *Server) imageCreate(w http.ResponseWriter, r *http.Request) error {
	switch source := param(r, "fromSrc"); source {
	case "":
		return s.imagePull(w, r)
	case "-":
		return s.imageImport(w, r)
	default:
		return fault.New(fault.Unsupported, "import from %s: Ferry fetches nothing from the network for an import", source).
			Hint("pipe it: curl -sSf %s | docker import -", source)
	}
}

func (s *Server) imageImport(w http.ResponseWriter, r *http.Request) error {
	if err := checkPlatform(r); err != nil {
		return err
	}
	var config dockerfile.Config
	if err := dockerfile.Apply(&config, r.URL.Query()["changes"]); err != nil {
		return err
	}
	message := param(r, "message")
	if message == "" {
		message = "Imported from -"
	}
	name := newImageName(r)
	img, err := s.opt.Engine.Images().Import(r.Context(), r.Body, store.NewImage{Name: name, Config: config, Comment: message})
	if err != nil {
		return err
	}
	s.publish(events.ImageEventType, events.ActionImport, img.ID, map[string]string{"name": name})
	newMessages(w).send(jsonstream.Message{Status: img.ID})
	return nil
}
