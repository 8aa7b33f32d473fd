package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/fault"
)

// Image is an image of the store for this machine's platform, or an OCI
// artifact such as a model.
type Image struct {
	ID      string   // digest of the configuration; of the manifest for an artifact
	Digest  string   // digest of the manifest
	Target  string   // digest that the names point to: the manifest, or an index of it
	Names   []string // full references, sorted; empty for a dangling one
	Size    int64    // bytes of manifest, configuration and layers, as stored
	Created time.Time

	Architecture, OS, Variant string
	Author                    string

	Config  dockerspec.DockerOCIImageConfig // HEALTHCHECK, ONBUILD and SHELL are Docker's own
	History []ocispec.History
	DiffIDs []digest.Digest
	Layers  []ocispec.Descriptor
	// ArtifactType is set for what is no container image.
	ArtifactType string
	Annotations  map[string]string
}

// RepoTags returns the names that have a tag, as Docker shows them.
func (i Image) RepoTags() []string {
	var tags []string
	for _, name := range i.Names {
		if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			if _, tagged := ref.(reference.Tagged); tagged {
				tags = append(tags, reference.FamiliarString(ref))
			}
		}
	}
	return tags
}

// RepoDigests returns name@digest for each repository the image is named in.
func (i Image) RepoDigests() []string {
	var out []string
	for _, name := range i.Names {
		if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			out = append(out, reference.FamiliarName(ref)+"@"+i.Target)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Comment is that of the last step of the image's history.
func (i Image) Comment() string {
	if len(i.History) == 0 {
		return ""
	}
	return i.History[len(i.History)-1].Comment
}

// ChainID is the snapshot that the image's layers make; "" for an artifact or
// an image without layers.
func (i Image) ChainID() string {
	if len(i.DiffIDs) == 0 {
		return ""
	}
	return identity.ChainID(i.DiffIDs).String()
}

// knownImages are the images read so far, by the digest that names point to:
// content never changes under its digest.
type knownImages struct {
	mu sync.Mutex
	m  map[digest.Digest]Image
}

// forget has an image read again, of which there may be more now.
func (k *knownImages) forget(target digest.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.m, target)
}

// read returns the image of a target, without names: of an index the variant
// for this machine, or another if that is not here.
func (s *Store) read(ctx context.Context, target ocispec.Descriptor) (Image, error) {
	s.known.mu.Lock()
	img, ok := s.known.m[target.Digest]
	s.known.mu.Unlock()
	if ok {
		return img, nil
	}
	img, err := s.decode(ctx, target, "")
	if err != nil {
		return img, asFault(err)
	}
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	if s.known.m == nil {
		s.known.m = map[digest.Digest]Image{}
	}
	s.known.m[target.Digest] = img
	return img, nil
}

// readVariant is read for a certain platform; "" is the machine's.
func (s *Store) readVariant(ctx context.Context, target ocispec.Descriptor, platform string) (Image, error) {
	if platform == "" {
		return s.read(ctx, target)
	}
	img, err := s.decode(ctx, target, platform)
	return img, asFault(err)
}

func (s *Store) decode(ctx context.Context, target ocispec.Descriptor, platform string) (Image, error) {
	blobs := s.db.ContentStore()
	desc := target
	if !images.IsManifestType(target.MediaType) || platform != "" {
		var err error
		if desc, err = s.variant(ctx, target, platform); err != nil {
			return Image{}, err
		}
	}
	var m ocispec.Manifest
	if err := readDocument(ctx, blobs, desc, maxManifest, &m); err != nil {
		return Image{}, fmt.Errorf("manifest: %w", err)
	}
	img := Image{ID: m.Config.Digest.String(), Digest: desc.Digest.String(), Target: target.Digest.String(),
		Layers: m.Layers, Annotations: m.Annotations, Size: desc.Size + m.Config.Size}
	for _, l := range m.Layers {
		img.Size += l.Size
	}
	if !images.IsConfigType(m.Config.MediaType) {
		// Two artifacts may well share an empty configuration.
		img.ID, img.ArtifactType = img.Digest, cmp.Or(m.ArtifactType, m.Config.MediaType)
		img.Created, _ = time.Parse(time.RFC3339, m.Annotations[ocispec.AnnotationCreated])
		return img, nil
	}
	var config dockerspec.DockerOCIImage
	if err := readDocument(ctx, blobs, m.Config, maxConfig, &config); err != nil {
		return Image{}, fmt.Errorf("image configuration: %w", err)
	}
	img.Architecture, img.OS, img.Variant, img.Config = config.Architecture, config.OS, config.Variant, config.Config
	img.Author = config.Author
	img.History, img.DiffIDs = config.History, config.RootFS.DiffIDs
	for _, d := range img.DiffIDs {
		if err := d.Validate(); err != nil {
			return Image{}, fault.New(fault.Invalid, "image configuration %s: layer digest %q: %w", m.Config.Digest, d, err)
		}
	}
	if config.Created != nil {
		img.Created = *config.Created
	}
	return img, nil
}

// Images returns all images, newest first, each once with all its names. What
// cannot be read (content lost) is reported to the log and left out.
func (s *Store) Images(ctx context.Context) ([]Image, error) {
	ctx = namespaced(ctx)
	records, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	byTarget := map[digest.Digest]*Image{}
	for _, rec := range records {
		img := byTarget[rec.Target.Digest]
		if img == nil {
			read, err := s.read(ctx, rec.Target)
			if err != nil {
				s.opt.Log.Warn("unreadable image", "image", rec.Name, "error", err)
				continue
			}
			img = &read
			byTarget[rec.Target.Digest] = img
		}
		if !isDangling(rec.Name) {
			img.Names = append(img.Names, rec.Name)
		}
	}
	out := make([]Image, 0, len(byTarget))
	for _, img := range byTarget {
		slices.Sort(img.Names)
		out = append(out, *img)
	}
	slices.SortFunc(out, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// isDangling reports a name that only keeps an image: its digest.
func isDangling(name string) bool { return strings.HasPrefix(name, "sha256:") }

// Image returns the image of a name, an ID, a digest, or the beginning of an ID
// that is no other's. NotFound if there is none here: it pulls nothing.
func (s *Store) Image(ctx context.Context, name string) (Image, error) {
	ctx = namespaced(ctx)
	if ref, err := normalize(name); err == nil {
		rec, err := s.images.Get(ctx, ref)
		if err == nil {
			img, err := s.read(ctx, rec.Target)
			if err != nil {
				return img, fmt.Errorf("image %s: %w", name, err)
			}
			img.Names = []string{ref}
			return img, nil
		}
		if !errdefs.IsNotFound(err) {
			return Image{}, fmt.Errorf("image %s: %w", name, err)
		}
	}
	return s.imageByID(ctx, name)
}

// ImageFor is Image for a certain platform, OS[/ARCH[/VARIANT]], of which there
// is a variant in the store; "" is this machine's, or another if that is all.
func (s *Store) ImageFor(ctx context.Context, name, platform string) (Image, error) {
	img, err := s.Image(ctx, name)
	if err != nil || platform == "" {
		return img, err
	}
	ctx = namespaced(ctx)
	target, err := s.targetOf(ctx, img)
	if err != nil {
		return Image{}, err
	}
	variant, err := s.readVariant(ctx, target, platform)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	variant.Names = img.Names
	return variant, nil
}

// idPrefix is the fewest characters of an ID that name an image.
const idPrefix = 4

func (s *Store) imageByID(ctx context.Context, key string) (Image, error) {
	_, dgst, found := strings.Cut(key, "@")
	if !found {
		dgst = key
	}
	all, err := s.Images(ctx)
	if err != nil {
		return Image{}, err
	}
	var matches []Image
	for _, img := range all {
		if dgst == img.ID || dgst == img.Digest || dgst == img.Target {
			return img, nil
		}
		if hex := strings.TrimPrefix(dgst, "sha256:"); len(hex) >= idPrefix && strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), hex) {
			matches = append(matches, img)
		}
	}
	switch len(matches) {
	case 1:
		return matches[0], nil
	case 0:
		return Image{}, fault.New(fault.NotFound, "No such image: %s", key).
			Hint("see `ferry images`; build it with `ferry build -t %s DIR` or fetch it with `ferry pull`", key)
	default:
		return Image{}, fault.New(fault.Invalid, "image ID %s is the beginning of %d images' IDs", key, len(matches)).Hint("give more of it")
	}
}

// normalize turns a name as people write it into the full reference it is
// stored under: docker.io/library/ before a bare name, :latest after an untagged one.
func normalize(name string) (string, error) {
	if isDangling(name) {
		return name, nil
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fault.New(fault.Invalid, "image name %q: %w", name, err).
			Hint("names look like registry:port/path/name:tag, in lower case")
	}
	return ref.String(), nil
}

// Tag gives an image another name, taking it from the image that had it.
func (s *Store) Tag(ctx context.Context, image, name string) error {
	img, err := s.Image(ctx, image)
	if err != nil {
		return err
	}
	ref, err := normalize(name)
	if err != nil {
		return err
	}
	ctx = namespaced(ctx)
	target, err := s.targetOf(ctx, img)
	if err != nil {
		return err
	}
	return s.setName(ctx, ref, target)
}

// targetOf returns the descriptor that the image's names point to.
func (s *Store) targetOf(ctx context.Context, img Image) (ocispec.Descriptor, error) {
	records, err := s.images.List(ctx, "target.digest=="+img.Target)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(records) == 0 {
		return ocispec.Descriptor{}, fault.New(fault.NotFound, "image %s was removed meanwhile", img.ID)
	}
	return records[0].Target, nil
}

// name is setName of what was brought here just now: that counts as a use.
func (s *Store) name(ctx context.Context, ref string, target ocispec.Descriptor) error {
	s.used.mu.RLock()
	defer s.used.mu.RUnlock()
	s.used.note(target.Digest.String(), s.clock.now())
	return s.setName(ctx, ref, target)
}

// setName points a name to target. An image that thereby loses its last name
// stays as a dangling one.
func (s *Store) setName(ctx context.Context, ref string, target ocispec.Descriptor) error {
	old, err := s.images.Get(ctx, ref)
	switch {
	case errdefs.IsNotFound(err):
		_, err = s.images.Create(ctx, images.Image{Name: ref, Target: target})
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
	case err != nil:
		return err
	case old.Target.Digest == target.Digest:
		return nil
	default:
		if err := s.KeepUnnamed(ctx, ref, old.Target, target); err != nil {
			return err
		}
	}
	_, err = s.images.Update(ctx, images.Image{Name: ref, Target: target}, "target")
	return err
}

// KeepUnnamed names target, which loses the name except to successor, by its
// digest, unless it has another name or is the same image: one that was built
// again differs in what is said about it alone.
func (s *Store) KeepUnnamed(ctx context.Context, except string, target, successor ocispec.Descriptor) error {
	ctx = namespaced(ctx)
	was, wasErr := s.read(ctx, target)
	is, isErr := s.read(ctx, successor)
	if wasErr == nil && isErr == nil && was.ID == is.ID {
		return nil
	}
	records, err := s.images.List(ctx, "target.digest=="+target.Digest.String())
	if err != nil {
		return err
	}
	if slices.ContainsFunc(records, func(r images.Image) bool { return r.Name != except }) {
		return nil
	}
	_, err = s.images.Create(ctx, images.Image{Name: target.Digest.String(), Target: target})
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Remove takes a name from its image, and the image away with its last name.
// Given an ID it takes all names, more than one only with force. The caller
// sees to it that no container uses the image. It returns what it did, as
// Docker's image removal does.
func (s *Store) Remove(ctx context.Context, name string, force bool) (untagged, deleted []string, err error) {
	img, err := s.Image(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	ctx = namespaced(ctx)
	records, err := s.images.List(ctx, "target.digest=="+img.Target)
	if err != nil {
		return nil, nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	remove := records
	if ref, err := normalize(name); err == nil {
		if i := slices.IndexFunc(records, func(r images.Image) bool { return r.Name == ref }); i >= 0 {
			remove = records[i : i+1]
		}
	}
	if len(remove) == len(records) && len(records) > 1 && !force {
		return nil, nil, fault.New(fault.Conflict, "image %s has %d names", name, len(records)).Hint("remove them one by one, or use --force")
	}
	for _, r := range remove {
		if err := s.images.Delete(ctx, r.Name); err != nil && !errdefs.IsNotFound(err) {
			return untagged, nil, fmt.Errorf("remove image %s: %w", name, err)
		}
		if !isDangling(r.Name) {
			untagged = append(untagged, familiar(r.Name))
		}
	}
	if len(remove) == len(records) {
		deleted = []string{img.ID}
		s.used.forget(img.Target)
	}
	s.collect.soon()
	return untagged, deleted, nil
}

func familiar(name string) string {
	if ref, err := reference.ParseNormalizedNamed(name); err == nil {
		return reference.FamiliarString(ref)
	}
	return name
}

// errNoImage is returned where an artifact was given in place of an image.
func errNoImage(img Image) error {
	return fault.New(fault.Invalid, "%s is an artifact of type %s, not a container image", img.ID, img.ArtifactType).
		Hint("mount it as a volume of type image")
}
