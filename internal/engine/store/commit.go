package store

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine/files"
	"github.com/ferryos/ferry/internal/fault"
)

// NewImage is what a new image says of itself.
type NewImage struct {
	Name      string // "" for one without a name
	Config    dockerspec.DockerOCIImageConfig
	Author    string
	Comment   string
	CreatedBy string // the last line of its history
}

// Commit makes an image of what a container wrote: a layer on the image, by its
// ID, that the container was made of. Placeholders are paths in the container
// that were made to mount something on.
func (s *Store) Commit(ctx context.Context, container, base string, placeholders []string, img NewImage) (_ Image, err error) {
	ctx, done, err := s.withLease(namespaced(ctx))
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, done()) }()
	below, err := s.imageConfig(ctx, base)
	if err != nil {
		return Image{}, fmt.Errorf("commit %s: %w", container, err)
	}
	var layer newLayer
	err = s.withLayer(ctx, container, placeholders, func(l files.Layer) (err error) {
		var entries int
		layer, err = s.writeNewLayer(ctx, func(out io.Writer) (err error) {
			entries, err = l.Pack(ctx, out)
			return err
		})
		if entries == 0 {
			layer.diffID = ""
		}
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("commit %s: %w", container, err)
	}
	made, err := s.addImage(ctx, below, layer, img)
	if err != nil {
		return Image{}, fmt.Errorf("commit %s: %w", container, err)
	}
	return made, nil
}

// Import makes an image of a tar of a root, compressed or not.
func (s *Store) Import(ctx context.Context, in io.Reader, img NewImage) (_ Image, err error) {
	plain, err := Decompress(in)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	defer plain.Close()
	ctx, done, err := s.withLease(namespaced(ctx))
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, done()) }()
	layer, err := s.writeNewLayer(ctx, func(out io.Writer) error {
		n, err := io.Copy(out, plain)
		if err == nil && n == 0 {
			err = fault.New(fault.Invalid, "the archive is empty")
		}
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	base := baseImage{}
	base.Architecture, base.OS = runtime.GOARCH, "linux"
	made, err := s.addImage(ctx, base, layer, img)
	if err != nil {
		if fault.KindOf(err) == fault.Internal {
			err = fault.New(fault.Invalid, "%w", err).Hint("the archive must be a tar of a root file system")
		}
		return Image{}, fmt.Errorf("import: %w", err)
	}
	return made, nil
}

// Decompress undoes gzip, bzip2 and zstd; what is none of them is returned as it is.
func Decompress(in io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReader(in)
	in = buffered
	switch head, _ := buffered.Peek(6); { // what cannot be read fails below
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(in)), nil
	case bytes.Equal(head, []byte("\xfd7zXZ\x00")):
		return nil, fault.New(fault.Unsupported, "archives compressed by xz are not supported").Hint("pipe the archive through `xz -d`")
	}
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return nil, fault.New(fault.Invalid, "decompress: %w", err)
	}
	return plain, nil
}

// Changes tells how a container's files differ from those of its image.
func (s *Store) Changes(ctx context.Context, container string, placeholders []string) (out []files.Change, err error) {
	ctx, done, err := s.withLease(namespaced(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	err = s.withLayer(ctx, container, placeholders, func(l files.Layer) (err error) {
		out, err = l.Changes(ctx)
		return err
	})
	return out, err
}

// withLayer calls f with a container's writable layer. ctx has a lease, in
// which what the layer lies on is mounted meanwhile.
func (s *Store) withLayer(ctx context.Context, container string, placeholders []string, f func(files.Layer) error) (err error) {
	chain, _, err := s.writableOf(container)
	if err != nil {
		return err
	}
	upper, err := files.Open(filepath.Join(s.writableDir(container), upperName))
	if err != nil {
		return err
	}
	defer upper.Close()
	dir, err := os.MkdirTemp(s.tmp(), "below-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if chain != "" {
		key := "below-" + container + "-" + rand.Text()
		below, err := s.snapshotter.View(ctx, key, chain)
		if err != nil {
			return asFault(err)
		}
		end := context.WithoutCancel(ctx)
		defer func() { err = errors.Join(err, s.snapshotter.Remove(end, key)) }()
		if err := s.MountAll(below, dir); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, UnmountAll(dir)) }()
	}
	lower, err := files.Open(dir)
	if err != nil {
		return err
	}
	defer lower.Close()
	return f(files.Layer{Upper: upper, Lower: lower, Placeholders: placeholders})
}

// newLayer is a layer that was just written.
type newLayer struct {
	blob   ocispec.Descriptor
	diffID digest.Digest // "" for one that holds nothing
}

// writeNewLayer writes a layer to the content store, compressed and in one go.
func (s *Store) writeNewLayer(ctx context.Context, fill func(io.Writer) error) (_ newLayer, err error) {
	blobs := s.db.ContentStore()
	ref := "new-layer-" + rand.Text()
	w, err := content.OpenWriter(ctx, blobs, content.WithRef(ref))
	if err != nil {
		return newLayer{}, err
	}
	defer func() {
		err = errors.Join(err, w.Close())
		if err != nil {
			err = errors.Join(err, blobs.Abort(context.WithoutCancel(ctx), ref))
		}
	}()
	compressed, err := compression.CompressStream(w, compression.Gzip)
	if err != nil {
		return newLayer{}, err
	}
	plain := digest.SHA256.Digester()
	if err := errors.Join(fill(io.MultiWriter(compressed, plain.Hash())), compressed.Close()); err != nil {
		return newLayer{}, err
	}
	status, err := w.Status()
	if err != nil {
		return newLayer{}, err
	}
	layer := newLayer{diffID: plain.Digest(), blob: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: w.Digest(), Size: status.Offset}}
	err = w.Commit(ctx, layer.blob.Size, layer.blob.Digest, content.WithLabels(map[string]string{labels.LabelUncompressed: layer.diffID.String()}))
	if errdefs.IsAlreadyExists(err) { // the lease holds it now
		err = nil
	}
	return layer, err
}

// baseImage is the description of the image that another is made on.
type baseImage struct {
	dockerspec.DockerOCIImage
	layers []ocispec.Descriptor
}

func (s *Store) imageConfig(ctx context.Context, id string) (baseImage, error) {
	img, err := s.Image(ctx, id)
	if err != nil {
		return baseImage{}, err
	}
	base := baseImage{layers: img.Layers}
	dgst, err := digest.Parse(img.ID)
	if err != nil {
		return base, err
	}
	info, err := s.db.ContentStore().Info(ctx, dgst)
	if err != nil {
		return base, asFault(err)
	}
	return base, readDocument(ctx, s.db.ContentStore(), ocispec.Descriptor{Digest: dgst, Size: info.Size}, maxConfig, &base.DockerOCIImage)
}

// addImage writes the description of an image with one more layer, unpacks it
// and gives it its name. ctx has a lease.
func (s *Store) addImage(ctx context.Context, base baseImage, layer newLayer, img NewImage) (Image, error) {
	now := time.Now().UTC()
	config, layers := base.DockerOCIImage, base.layers
	config.Config, config.Created, config.Author = img.Config, &now, img.Author
	config.RootFS.Type = "layers"
	if layer.diffID != "" {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.diffID)
		layers = append(layers[:len(layers):len(layers)], layer.blob)
	}
	config.History = append(config.History, ocispec.History{Created: &now, CreatedBy: img.CreatedBy, Author: img.Author, Comment: img.Comment, EmptyLayer: layer.diffID == ""})
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers}
	var err error
	if manifest.Config, err = s.writeDocument(ctx, ocispec.MediaTypeImageConfig, config, nil); err != nil {
		return Image{}, err
	}
	refs := map[string]string{"containerd.io/gc.ref.content.config": manifest.Config.Digest.String()}
	for i, l := range layers {
		refs["containerd.io/gc.ref.content.l."+strconv.Itoa(i)] = l.Digest.String()
	}
	target, err := s.writeDocument(ctx, ocispec.MediaTypeImageManifest, manifest, refs)
	if err != nil {
		return Image{}, err
	}
	made, err := s.read(ctx, target)
	if err != nil {
		return Image{}, err
	}
	if err := s.ensureUnpacked(ctx, made); err != nil {
		return Image{}, err
	}
	name := target.Digest.String()
	if img.Name != "" {
		if name, err = normalize(img.Name); err != nil {
			return Image{}, err
		}
		made.Names = []string{name}
	}
	return made, s.setName(ctx, name, target)
}

// writeDocument writes a JSON document to the content store.
func (s *Store) writeDocument(ctx context.Context, mediaType string, v any, refs map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err = content.WriteBlob(ctx, s.db.ContentStore(), "document-"+desc.Digest.String(), strings.NewReader(string(data)), desc, content.WithLabels(refs))
	return desc, err
}
