package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/fault"
)

// Load is LoadFor every platform.
func (s *Store) Load(ctx context.Context, in io.Reader) (names []string, err error) {
	return s.LoadFor(ctx, in, "")
}

// LoadFor imports an OCI layout or `docker save` archive, plain or compressed, and
// returns the names of the images in it, unpacked if they are for this machine.
// Of an image for several platforms all that the archive has is kept, or what is
// for the platform given, if one is. An unnamed image is returned, and kept, by
// its digest. On error the names of the images that could not be loaded stay
// what they were.
func (s *Store) LoadFor(ctx context.Context, in io.Reader, platform string) (names []string, err error) {
	plain, err := Decompress(in)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	defer plain.Close()
	ctx, done, err := s.withLease(namespaced(ctx))
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, done())
		if err != nil {
			s.collect.soon() // what it got is nobody's
		}
	}()
	index, err := archive.ImportIndex(ctx, loading{Store: s.db.ContentStore(), store: s, id: rand.Text()}, plain)
	if err != nil {
		if fault.KindOf(err) != fault.Internal || ctx.Err() != nil {
			return nil, fmt.Errorf("load images: %w", err)
		}
		return nil, fault.New(fault.Invalid, "load images: %w", err).Hint("the file must be an OCI layout or the output of `docker save`, as a tar")
	}
	var list ocispec.Index
	if err := readDocument(ctx, s.db.ContentStore(), index, maxManifest, &list); err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	for _, target := range list.Manifests {
		name, err := s.loadOne(ctx, target, platform)
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

// loading is the content store as one Load writes to it: its names of ingests
// are files' of the archive, which another archive has too.
type loading struct {
	content.Store
	store *Store
	id    string
}

// Writer implements content.Ingester.
func (l loading) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var opt content.WriterOpts
	for _, o := range opts {
		if err := o(&opt); err != nil {
			return nil, err
		}
	}
	if err := l.store.room(opt.Desc.Size); err != nil {
		return nil, err
	}
	return l.Store.Writer(ctx, append(opts, content.WithRef("load-"+l.id+"-"+opt.Ref))...)
}

func (s *Store) loadOne(ctx context.Context, target ocispec.Descriptor, platform string) (string, error) {
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
	want := platforms.All
	if platform != "" {
		if want, err = s.matcher(platform); err != nil {
			return "", err
		}
	}
	target.Annotations, target.Platform = nil, nil // of the archive, not of the image
	if err := verifyKnown(target); err != nil {
		return "", err
	}
	if err := s.keepTree(ctx, target, want, 0); err != nil {
		return "", err
	}
	s.known.forget(target.Digest)
	img, err := s.readVariant(ctx, target, platform)
	if err != nil {
		return "", err
	}
	if img.ArtifactType == "" && s.runnable(img) == nil {
		if err := s.ensureUnpacked(ctx, img); err != nil {
			return "", err
		}
	}
	return ref, s.name(ctx, ref, target) // at last: on error the name stays what it was
}

// keepTree labels what target is made of, as far as it is here and wanted, so
// that garbage collection finds it.
func (s *Store) keepTree(ctx context.Context, target ocispec.Descriptor, want platforms.Matcher, depth int) error {
	blobs := s.db.ContentStore()
	list, err := children(ctx, blobs, target, depth)
	if err != nil {
		return err
	}
	if !images.IsIndexType(target.MediaType) {
		return s.label(ctx, target, list)
	}
	var kept []ocispec.Descriptor
	for _, child := range list {
		if !isAttestation(child) && child.Platform != nil && !want.Match(*child.Platform) {
			continue
		}
		if ok, err := content.Exists(ctx, blobs, child); err != nil {
			return err
		} else if !ok {
			continue // an archive of some of the platforms
		}
		if err := s.keepTree(ctx, child, want, depth+1); err != nil {
			return err
		}
		kept = append(kept, child)
	}
	return s.label(ctx, target, kept)
}

// Save is SaveFor every platform.
func (s *Store) Save(ctx context.Context, out io.Writer, names ...string) error {
	return s.SaveFor(ctx, out, "", names...)
}

// SaveFor writes images as an archive that both OCI tools and `docker load`
// read: all variants that are here, or the platform's, if one is given.
func (s *Store) SaveFor(ctx context.Context, out io.Writer, platform string, names ...string) error {
	want := s.platform
	var opts []archive.ExportOpt
	if platform == "" {
		opts = append(opts, archive.WithAllPlatforms(), archive.WithSkipMissing(s.db.ContentStore()))
	} else {
		var err error
		if want, err = s.matcher(platform); err != nil {
			return err
		}
	}
	ctx = namespaced(ctx)
	for _, name := range names {
		img, err := s.ImageFor(ctx, name, platform)
		if err != nil {
			return err
		}
		if platform == "" && !s.platform.Match(img.Platform()) {
			want = platforms.All // so that what reads manifest.json finds one
		}
		target, err := s.targetOf(ctx, img)
		if err != nil {
			return err
		}
		tags := slices.DeleteFunc(slices.Clone(img.Names), isDangling)
		opts = append(opts, archive.WithManifest(target, tags...))
	}
	if err := archive.Export(ctx, s.db.ContentStore(), out, append(opts, archive.WithPlatform(want))...); err != nil {
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
	return atomicfile.Write(state, data, 0o600)
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
