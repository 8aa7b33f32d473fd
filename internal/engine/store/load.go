package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/fault"
)

// Load imports an OCI layout or `docker save` archive, plain or compressed, and
// returns the names of the images in it, unpacked. An unnamed image is
// returned, and kept, by its digest. On error the names of the images that
// could not be loaded stay what they were.
func (s *Store) Load(ctx context.Context, in io.Reader) (names []string, err error) {
	ctx, done, err := s.withLease(namespaced(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	blobs := s.db.ContentStore()
	index, err := archive.ImportIndex(ctx, blobs, in)
	if err != nil {
		return nil, fault.New(fault.Invalid, "load images: %w", err).Hint("the file must be an OCI layout or the output of `docker save`, as a tar")
	}
	var list ocispec.Index
	if err := readJSON(ctx, blobs, index, &list); err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	for _, target := range list.Manifests {
		name, err := s.loadOne(ctx, target)
		if err != nil {
			return names, fmt.Errorf("load images: %w", err)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Invalid, "load images: the archive holds none")
	}
	return names, nil
}

func (s *Store) loadOne(ctx context.Context, target ocispec.Descriptor) (string, error) {
	name := target.Annotations[images.AnnotationImageName]
	if name == "" {
		name = target.Annotations[ocispec.AnnotationRefName]
	}
	if name == "" {
		name = target.Digest.String()
	}
	ref, err := normalize(name)
	if err != nil {
		return "", err
	}
	if err := s.keepTree(ctx, target); err != nil {
		return "", err
	}
	target.Annotations = nil // of the archive, not of the image
	img, err := s.read(ctx, target)
	if err != nil {
		return "", err
	}
	if img.ArtifactType == "" {
		if err := s.ensureUnpacked(ctx, img); err != nil {
			return "", err
		}
	}
	return ref, s.setName(ctx, ref, target) // at last: on error the name stays what it was
}

// keepTree labels what target is made of, so that garbage collection finds it.
func (s *Store) keepTree(ctx context.Context, target ocispec.Descriptor) error {
	blobs := s.db.ContentStore()
	handler := images.FilterPlatforms(images.ChildrenHandler(blobs), s.platform)
	return images.Walk(ctx, images.SetChildrenLabels(blobs, handler), target)
}

// Save writes images as an archive that both OCI tools and `docker load` read.
func (s *Store) Save(ctx context.Context, out io.Writer, names ...string) error {
	opts := []archive.ExportOpt{archive.WithPlatform(s.platform)}
	for _, name := range names {
		img, err := s.Image(ctx, name)
		if err != nil {
			return err
		}
		target, err := s.targetOf(namespaced(ctx), img)
		if err != nil {
			return err
		}
		tags := slices.DeleteFunc(slices.Clone(img.Names), isDangling)
		opts = append(opts, archive.WithManifest(target, tags...))
	}
	if err := archive.Export(namespaced(ctx), s.db.ContentStore(), out, opts...); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

// bundled is a file of LoadBundled as it was when it was loaded.
type bundled struct {
	Size    int64    `json:"size"`
	ModTime int64    `json:"modTime"` // nanoseconds
	Names   []string `json:"names"`
}

// LoadBundled loads every *.tar of a directory that is new, has changed, or
// whose image was removed. A directory that does not exist holds none.
func (s *Store) LoadBundled(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return err
	}
	state := filepath.Join(s.opt.Root, "bundled.json")
	have := map[string]bundled{}
	if data, err := os.ReadFile(state); err == nil {
		if err := json.Unmarshal(data, &have); err != nil {
			have = map[string]bundled{} // written anew below
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	changed := false
	for _, file := range files {
		st, err := os.Stat(file)
		if err != nil {
			return err
		}
		now := bundled{Size: st.Size(), ModTime: st.ModTime().UnixNano()}
		was := have[file]
		if was.Size == now.Size && was.ModTime == now.ModTime && s.haveAll(ctx, was.Names) {
			continue
		}
		if now.Names, err = s.loadFile(ctx, file); err != nil {
			return fmt.Errorf("bundled image %s: %w", file, err)
		}
		have[file], changed = now, true
	}
	if !changed {
		return nil
	}
	data, err := json.Marshal(have)
	if err != nil {
		return err
	}
	if err := os.WriteFile(state+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(state+".new", state)
}

func (s *Store) haveAll(ctx context.Context, names []string) bool {
	for _, name := range names {
		if _, err := s.Image(ctx, name); err != nil {
			return false
		}
	}
	return true
}

func (s *Store) loadFile(ctx context.Context, file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return s.Load(ctx, f)
}
