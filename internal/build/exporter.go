package build

import (
	"context"
	"maps"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/worker/base"

	"github.com/ferryos/ferry/internal/engine/store"
)

// Names of an exporter and of a worker's labels that buildx and the daemon agree on.
const (
	mobyExporter = "moby" // an image in the daemon's store
	// snapshotterLabel tells buildx that images are kept in containerd's stores,
	// which can hold what several platforms' builds and attestations make.
	snapshotterLabel = "org.mobyproject.buildkit.worker.snapshotter"
	// gatewayLabel is what --add-host NAME:host-gateway means.
	gatewayLabel = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"
)

// danglingPrefix stands before the digest in the name of an image that was
// given none; namedImages takes it off.
const danglingPrefix = "ferry-dangling"

// imageWorker is BuildKit's worker that knows Docker's own exporter.
type imageWorker struct {
	*base.Worker
	images *store.Store
}

// Exporter implements worker.Worker.
func (w imageWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name != mobyExporter {
		return w.Worker.Exporter(name, sm)
	}
	image, err := w.Worker.Exporter(client.ExporterImage, sm)
	return storeExporter{image, w.images}, err
}

// storeExporter makes images as docker's users expect them: they run at once,
// and one without a name is kept as well.
type storeExporter struct {
	exporter.Exporter
	images *store.Store
}

// Resolve implements exporter.Exporter.
func (e storeExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	attrs = maps.Clone(attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs[string(exptypes.OptKeyUnpack)] = "true"
	attrs[string(exptypes.OptKeyDanglingPrefix)] = danglingPrefix
	attrs[string(exptypes.OptKeyDanglingEmptyOnly)] = "true"
	var names []string
	for name := range strings.SplitSeq(attrs[string(exptypes.OptKeyName)], ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		name, err := full(name)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	attrs[string(exptypes.OptKeyName)] = strings.Join(names, ",")
	instance, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil || isTrue(attrs[string(exptypes.OptKeyPush)]) {
		return instance, err // what was pushed has its manifest's digest
	}
	return storeExport{instance, e.images}, nil
}

// storeExport tells the client the ID of the image, by which this daemon knows
// it: compose compares it with what it finds later.
type storeExport struct {
	exporter.ExporterInstance
	images *store.Store
}

// Export implements exporter.ExporterInstance.
func (e storeExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	res, finalize, ref, err := e.ExporterInstance.Export(ctx, src, info)
	if err != nil {
		return res, finalize, ref, err
	}
	if img, imgErr := e.images.Image(ctx, res[exptypes.ExporterImageDigestKey]); imgErr == nil { // else none for this machine
		res[exptypes.ExporterImageDigestKey], res[exptypes.ExporterImageConfigDigestKey] = img.ID, img.ID
		if w := witnessOf(ctx); w != nil {
			w.made(ref.Descriptor(), img.ID)
		}
	}
	return res, finalize, ref, nil
}
