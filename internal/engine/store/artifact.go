package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/fault"
)

// Annotations that name the file a layer is: ModelPack's and OCI's.
const (
	annotationModelPath = "org.cncf.model.filepath"
	annotationTitle     = ocispec.AnnotationTitle
)

// ensureMaterialised returns the snapshot that holds an artifact's files,
// making it the first time: a layer whose media type ends in "tar", compressed
// or not, is unpacked (ModelPack's model.weight.v1.tar and its kin), any other
// is one file named by its annotation.
func (s *Store) ensureMaterialised(ctx context.Context, img Image) (snapshot string, err error) {
	snapshot = "artifact-" + img.Digest
	if err := s.refer(ctx, img.Digest, labelSnapshotRef+"/artifact", snapshot); err != nil { // first, as in ensureUnpacked
		return "", err
	}
	if _, err := s.snapshotter.Stat(ctx, snapshot); err == nil {
		return snapshot, nil
	}
	unlock, err := s.unpacked.lock(ctx, snapshot)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := s.snapshotter.Stat(ctx, snapshot); err == nil {
		return snapshot, nil
	}
	ctx, done, err := s.withLease(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	making := "making-" + snapshot
	// What an interrupted attempt left behind.
	if err := s.snapshotter.Remove(ctx, making); err != nil && !errdefs.IsNotFound(err) {
		return "", err
	}
	mounts, err := s.snapshotter.Prepare(ctx, making, "")
	if err != nil {
		return "", err
	}
	if err := s.fill(ctx, img, mounts); err != nil {
		return "", errors.Join(fmt.Errorf("artifact %s: %w", img.Digest, err), s.snapshotter.Remove(context.WithoutCancel(ctx), making))
	}
	if err := s.snapshotter.Commit(ctx, snapshot, making); err != nil && !errdefs.IsAlreadyExists(err) {
		return "", err
	}
	return snapshot, nil
}

// fill writes the artifact's files below a mount of their own.
func (s *Store) fill(ctx context.Context, img Image, mounts []Mount) (err error) {
	dir, err := os.MkdirTemp(s.tmp(), "artifact-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := s.MountAll(mounts, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, UnmountAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, layer := range img.Layers {
		if err := s.writeLayer(ctx, layer, dir); err != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
	}
	return nil
}

func (s *Store) writeLayer(ctx context.Context, layer ocispec.Descriptor, dir string) error {
	ra, err := s.db.ContentStore().ReaderAt(ctx, layer)
	if err != nil {
		return err
	}
	defer ra.Close()
	in := content.NewReader(ra)
	kind, _, _ := strings.Cut(layer.MediaType, "+")
	if strings.HasSuffix(kind, "tar") || strings.HasSuffix(layer.MediaType, "tar.gzip") {
		plain, err := compression.DecompressStream(in)
		if err != nil {
			return err
		}
		defer plain.Close()
		_, err = archive.Apply(ctx, dir, plain)
		return err
	}
	name := layer.Annotations[annotationModelPath]
	if name == "" {
		name = layer.Annotations[annotationTitle]
	}
	if name == "" {
		return fault.New(fault.Unsupported, "it is of type %s and no annotation names its file", layer.MediaType)
	}
	return writeFile(dir, name, in)
}

// writeFile writes a file below dir, whatever its name tries.
func writeFile(dir, name string, in io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	// A layer before may have put there what is no file: a pipe, or a device to be written to.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Close())
}
