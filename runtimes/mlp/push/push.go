// Package push sends a trained model to an OCI registry as a CNCF ModelPack
// artifact whose one weight layer is a tar of the model's files, so that a
// runtime can mount it as an image volume.
//
// The commands of the mlp runtime import it. It knows HTTP and the
// distribution protocol, and nothing of networks.
package push

import (
	"archive/tar"
	"bytes"
	"context"
	_ "crypto/sha256" // go-digest finds it at run time
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

// Media types of ModelPack 0.0.7.
const (
	artifactType = "application/vnd.cncf.model.manifest.v1+json"
	configType   = "application/vnd.cncf.model.config.v1+json"
	layerType    = "application/vnd.cncf.model.weight.v1.tar"
)

// Annotation keys of the manifest that ModelPack has no name for.
const (
	annotationPrefix = "dev.ferry.model."
	ImageDigest      = annotationPrefix + "image.digest" // of the image that trained the model
)

// Artifact is a model packed and ready to be sent: same input, same bytes.
type Artifact struct {
	Manifest []byte
	Config   []byte
	Layer    []byte
	Digest   digest.Digest // of Manifest
}

// Description is what an artifact says about its model.
type Description struct {
	Name        string
	Version     string
	Created     time.Time         // whole seconds, UTC
	Params      int               // weights and biases
	Annotations map[string]string // of the manifest, beside the created time
}

// Annotation returns the key of an annotation on the manifest for a metric.
func Annotation(metric string) string { return annotationPrefix + metric }

// Pack makes an artifact of the named files in dir.
func Pack(dir string, files []string, d Description) (*Artifact, error) {
	created := d.Created.UTC().Truncate(time.Second)
	layer, err := tarball(dir, files, created)
	if err != nil {
		return nil, err
	}
	layerDesc := descriptor(layerType, layer)
	layerDesc.Annotations = map[string]string{"org.cncf.model.filepath": "."}
	config, err := json.Marshal(map[string]any{
		"descriptor": map[string]any{"name": d.Name, "version": d.Version, "createdAt": created.Format(time.RFC3339)},
		"config":     map[string]any{"architecture": "mlp", "format": "safetensors", "paramSize": fmt.Sprintf("%.2fm", float64(d.Params)/1e6), "precision": "float32"},
		"modelfs":    map[string]any{"type": "layers", "diffIds": []digest.Digest{layerDesc.Digest}},
	})
	if err != nil {
		return nil, fmt.Errorf("pack model: %w", err)
	}
	annotations := maps.Clone(d.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[ocispec.AnnotationCreated] = created.Format(time.RFC3339)
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       descriptor(configType, config),
		Layers:       []ocispec.Descriptor{layerDesc},
		Annotations:  annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("pack model: %w", err)
	}
	return &Artifact{Manifest: manifest, Config: config, Layer: layer, Digest: digest.FromBytes(manifest)}, nil
}

func descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func tarball(dir string, files []string, mtime time.Time) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(slices.Values(files)) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, hint.Errorf("Train a model first: 'mlp train --out DIR'.", "pack model: %w", err)
		}
		h := &tar.Header{Name: name, Mode: 0o444, Size: int64(len(b)), ModTime: mtime, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack model: %w", err)
		}
		if _, err := w.Write(b); err != nil {
			return nil, fmt.Errorf("pack model: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack model: %w", err)
	}
	return buf.Bytes(), nil
}

// Send uploads a to ref and returns when the registry has confirmed the
// manifest's digest. Blobs that are there already are not sent again, so a
// repeated Send costs little.
func (c *Client) Send(ctx context.Context, ref Reference, a *Artifact) error {
	for _, blob := range [][]byte{a.Config, a.Layer} {
		if err := c.blob(ctx, ref, blob); err != nil {
			return err
		}
	}
	return c.manifest(ctx, ref, a)
}
