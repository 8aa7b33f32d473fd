package store

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/fault"
)

// Bounds of what an image may be made of, far beyond what any has.
const (
	maxManifest = 4 << 20 // bytes of a manifest or an index, as with Docker
	maxConfig   = 8 << 20 // bytes of a configuration
	maxNesting  = 4       // indexes in each other
	maxVariants = 1000    // entries of an index
)

// How an index tells what a manifest of it is about (BuildKit's attestations).
const (
	annotationReferenceType   = "vnd.docker.reference.type"
	annotationReferenceDigest = "vnd.docker.reference.digest"
)

// platform parses OS[/ARCH[/VARIANT]]; "" is the machine's.
func (s *Store) matcher(platform string) (platforms.MatchComparer, error) {
	if platform == "" {
		return s.platform, nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fault.New(fault.Invalid, "platform %q: %w", platform, err).Hint("platforms look like linux/arm64")
	}
	return platforms.Only(p), nil
}

// readDocument reads a manifest, an index or a configuration.
func readDocument(ctx context.Context, blobs content.Provider, desc ocispec.Descriptor, limit int64, into any) error {
	if desc.Size > limit {
		return fault.New(fault.Invalid, "%s of %d bytes; at most %d are possible", desc.MediaType, desc.Size, limit)
	}
	data, err := content.ReadBlob(ctx, blobs, desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fault.New(fault.Invalid, "%s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return nil
}

// children are what a manifest or an index refers to, checked: each document is
// what its media type says, and none is too large or too deep.
func children(ctx context.Context, blobs content.Provider, desc ocispec.Descriptor, depth int) ([]ocispec.Descriptor, error) {
	switch {
	case depth > maxNesting:
		return nil, fault.New(fault.Invalid, "the image's indexes are more than %d deep", maxNesting)
	case desc.Size > maxManifest:
		return nil, fault.New(fault.Invalid, "%s of %d bytes; at most %d are possible", desc.MediaType, desc.Size, maxManifest)
	}
	list, err := images.Children(ctx, blobs, desc)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, err
		}
		return nil, fault.New(fault.Invalid, "%s %s: %w", desc.MediaType, desc.Digest, err)
	}
	limit := maxLayers + 1
	if images.IsIndexType(desc.MediaType) {
		limit = maxVariants
	}
	if len(list) > limit {
		return nil, fault.New(fault.Invalid, "%s %s refers to %d blobs; at most %d are possible", desc.MediaType, desc.Digest, len(list), limit)
	}
	for _, child := range list {
		if err := child.Digest.Validate(); err != nil {
			return nil, fault.New(fault.Invalid, "%s %s refers to the digest %q: %w", desc.MediaType, desc.Digest, child.Digest, err)
		}
		if child.Size < 0 {
			return nil, fault.New(fault.Invalid, "%s %s refers to a blob of %d bytes", desc.MediaType, desc.Digest, child.Size)
		}
	}
	return list, nil
}

// pick returns, of an index's entries, those that belong to the platform: the
// ones that fit it, the best first, and what is attested of that. A nested index
// says nothing of itself, and is in if there is no better.
func pick(list []ocispec.Descriptor, want platforms.MatchComparer) []ocispec.Descriptor {
	fits := slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
		return isAttestation(d) || d.Platform != nil && !want.Match(*d.Platform)
	})
	slices.SortStableFunc(fits, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil && b.Platform == nil:
			return 0
		case b.Platform == nil:
			return -1
		case a.Platform == nil:
			return 1
		case want.Less(*a.Platform, *b.Platform):
			return -1
		case want.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return fits
}

func isAttestation(d ocispec.Descriptor) bool { return d.Annotations[annotationReferenceType] != "" }

// attestationsOf returns the entries of an index that are about another.
func attestationsOf(list []ocispec.Descriptor, dgst digest.Digest) []ocispec.Descriptor {
	return slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
		return !isAttestation(d) || d.Annotations[annotationReferenceDigest] != dgst.String()
	})
}

// refer labels, as containerd does, what a document refers to, so that garbage
// collection finds it. Unlike containerd's the labels of an index's entries do
// not depend on which of them were asked for: a second platform of an image
// does not take the first one's place.
func (s *Store) label(ctx context.Context, desc ocispec.Descriptor, list []ocispec.Descriptor) error {
	children := images.HandlerFunc(func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) { return list, nil })
	labels := images.ChildGCLabels
	if images.IsIndexType(desc.MediaType) {
		labels = func(d ocispec.Descriptor) []string {
			return []string{"containerd.io/gc.ref.content.m." + d.Digest.Encoded()[:12]}
		}
	}
	_, err := images.SetChildrenMappedLabels(s.db.ContentStore(), children, labels)(ctx, desc)
	return err
}

// variant returns the manifest that target is, or the best for the platform
// that it indexes. Of an index, what is not in the store is no candidate; for
// the machine's platform, by default, another that is there is better than none.
func (s *Store) variant(ctx context.Context, target ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	want, err := s.matcher(platform)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var all []ocispec.Descriptor
	if err := s.manifests(ctx, target, 0, &all); err != nil {
		return ocispec.Descriptor{}, err
	}
	if fits := pick(all, want); len(fits) > 0 {
		return fits[0], nil
	}
	if platform == "" {
		if there := pick(all, platforms.All); len(there) > 0 {
			return there[0], nil
		}
		platform = platforms.Format(platforms.DefaultSpec())
	}
	return ocispec.Descriptor{}, fault.New(fault.NotFound, "the image has no variant for the platform %s in the store", platform).
		Hint("fetch it with `ferry pull --platform %s`, if there is one", platform)
}

// manifests adds the manifests at or below target that are in the store.
func (s *Store) manifests(ctx context.Context, target ocispec.Descriptor, depth int, all *[]ocispec.Descriptor) error {
	blobs := s.db.ContentStore()
	if !images.IsIndexType(target.MediaType) {
		if ok, err := content.Exists(ctx, blobs, target); err != nil || !ok {
			return err
		}
		if target.Platform == nil && images.IsManifestType(target.MediaType) {
			target.Platform = s.platformOf(ctx, target)
		}
		*all = append(*all, target)
		return nil
	}
	list, err := children(ctx, blobs, target, depth)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, child := range list {
		if err := s.manifests(ctx, child, depth+1, all); err != nil {
			return err
		}
	}
	return nil
}

// platformOf reads a manifest's platform from its configuration; nil if it has none.
func (s *Store) platformOf(ctx context.Context, desc ocispec.Descriptor) *ocispec.Platform {
	var m ocispec.Manifest
	if readDocument(ctx, s.db.ContentStore(), desc, maxManifest, &m) != nil || !images.IsConfigType(m.Config.MediaType) {
		return nil
	}
	var p ocispec.Platform
	if readDocument(ctx, s.db.ContentStore(), m.Config, maxConfig, &p) != nil || p.OS == "" || p.Architecture == "" {
		return nil
	}
	return &p
}

// runnable returns an error if this machine cannot run the image's programs.
func (s *Store) runnable(img Image) error {
	if img.OS == "" || s.platform.Match(img.Platform()) {
		return nil
	}
	if img.OS == "linux" && emulated(img.Architecture) {
		return nil
	}
	return fault.New(fault.Unsupported, "the image is for %s and this machine is %s", platforms.Format(img.Platform()), platforms.Format(platforms.DefaultSpec())).
		Hint("pull or build it for this platform, or register an emulator: `apt install qemu-user-static`")
}

// qemuNames are how emulators of an architecture are registered.
var qemuNames = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "ppc64le": "ppc64le", "loong64": "loongarch64"}

// emulated reports whether the kernel hands programs of the architecture to an emulator.
func emulated(arch string) bool {
	name := arch
	if known := qemuNames[arch]; known != "" {
		name = known
	}
	state, err := os.ReadFile("/proc/sys/fs/binfmt_misc/qemu-" + name)
	return err == nil && strings.HasPrefix(string(state), "enabled")
}

// Platform is what the image was made for.
func (i Image) Platform() ocispec.Platform {
	return platforms.Normalize(ocispec.Platform{OS: i.OS, Architecture: i.Architecture, Variant: i.Variant})
}

// verifyKnown returns an error if target is nothing that the store can hold.
func verifyKnown(target ocispec.Descriptor) error {
	switch {
	case target.MediaType == images.MediaTypeDockerSchema1Manifest:
		return fault.New(fault.Unsupported, "the image is in Docker's first format, which no registry should serve any more").
			Hint("push it again with a Docker of this decade")
	case !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType):
		return fault.New(fault.Invalid, "the registry answers with the media type %q, which is no manifest's", target.MediaType)
	case target.Size > maxManifest:
		return fault.New(fault.Invalid, "manifest of %d bytes; at most %d are possible", target.Size, maxManifest)
	}
	if err := target.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", target.Digest, err)
	}
	return nil
}
