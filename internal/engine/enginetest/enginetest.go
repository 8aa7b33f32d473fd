// Package enginetest makes real engines for tests, beside whatever else runs on
// the machine: with directories, a bridge, ranges and a cgroup of their own,
// and with an image of busybox. Only tests import it; they must run as root.
package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/engine/store"
)

// Busybox is the image every Machine has.
const Busybox = "ferry.test/busybox:latest"

// patience is how long taking a machine away may take.
var patience = time.Duration(runnertest.Patience()) * time.Minute

// Machine is a set of directories and names on which engines can be started one
// after the other.
type Machine struct {
	*engine.Engine
	Store   *store.Store
	Network *network.Network

	registries []store.Registry

	tb     testing.TB
	dir    string
	suffix string
	cgroup string
}

// New starts an engine, which reaches registries as it is told. At the end of the test all its pods are removed and
// everything it made is taken away.
func New(tb testing.TB, registries ...store.Registry) *Machine {
	tb.Helper()
	runnertest.NeedRoot(tb)
	dir, err := os.MkdirTemp("", "fe")
	if err != nil {
		tb.Fatal(err)
	}
	sum := sha256.Sum256([]byte(dir))
	m := &Machine{registries: registries, tb: tb, dir: dir, suffix: hex.EncodeToString(sum[:3]), cgroup: "/ferrytest-" + filepath.Base(dir)}
	tb.Cleanup(m.remove)
	if err := os.Chmod(dir, 0o711); err != nil { // as /run/ferry is
		tb.Fatal(err)
	}
	m.Start()
	ctx := tb.Context()
	if _, err := m.Store.Image(ctx, Busybox); err != nil {
		if _, err := m.Store.Load(ctx, bytes.NewReader(BusyboxArchive(tb))); err != nil {
			tb.Fatal(err)
		}
	}
	return m
}

// Dir is the machine's directory, for what a test puts beside the engine.
func (m *Machine) Dir() string { return m.dir }

// Start starts an engine over what an earlier one left.
func (m *Machine) Start() {
	m.tb.Helper()
	ctx := m.tb.Context()
	log := slog.New(slog.NewTextHandler(writer{m.tb}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	sum := sha256.Sum256([]byte(m.suffix))
	var err error
	m.Network, err = network.New(network.Options{
		Bridge:   "fy" + m.suffix,
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + sum[0]%100, sum[1], 0}), 24),
		Networks: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + sum[0]%50, sum[1] &^ 15, 0}), 20),
		StateDir: filepath.Join(m.dir, "net"), NetnsDir: filepath.Join(m.dir, "run", "netns"), PoolSize: 2, Log: log})
	if err != nil {
		m.tb.Fatal(err)
	}
	m.Store = store.New(store.Options{Root: filepath.Join(m.dir, "store"), Registries: m.registries, Log: log})
	m.Engine = engine.New(engine.Options{DataDir: filepath.Join(m.dir, "engine"), RunDir: filepath.Join(m.dir, "run"),
		RunnerBinary: runnertest.Build(m.tb), InitBinary: runnertest.Init(m.tb), CDIDirs: []string{filepath.Join(m.dir, "cdi")}, CgroupParent: m.cgroup, Store: m.Store, Network: m.Network, Log: log, Runners: 2})
	for _, start := range []func(context.Context) error{m.Network.Start, m.Store.Start, m.Engine.Start} {
		if err := start(ctx); err != nil {
			m.tb.Fatal(err)
		}
	}
}

// Stop stops the engine; its containers run on.
func (m *Machine) Stop() {
	m.tb.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.tb.Context()), patience/2)
	defer cancel()
	for _, stop := range []func(context.Context) error{m.Engine.Stop, m.Store.Stop, m.Network.Stop} {
		if err := stop(ctx); err != nil {
			m.tb.Error(err)
		}
	}
	m.Engine = nil
}

// remove takes the machine away.
func (m *Machine) remove() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.tb.Context()), patience)
	defer cancel()
	if m.Engine != nil {
		for _, p := range m.Pods(ctx, "") {
			if err := m.RemovePod(ctx, p.ID); err != nil {
				m.tb.Error(err)
			}
		}
		m.Stop()
		if err := m.Network.Teardown(ctx); err != nil {
			m.tb.Error(err)
		}
	}
	if err := runner.KillOrphans(m.cgroup); err != nil {
		m.tb.Error(err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && bytes.Contains(mounts, []byte(m.dir)) {
		for line := range bytes.Lines(mounts) {
			if bytes.Contains(line, []byte(m.dir)) {
				m.tb.Errorf("left mounted: %s", line)
			}
		}
		return // what is mounted below is not ours to delete
	}
	if err := os.RemoveAll(m.dir); err != nil {
		m.tb.Error(err)
	}
}

// Run runs a container of the busybox image in a pod of its own and returns both.
func (m *Machine) Run(spec engine.ContainerSpec) (engine.Pod, engine.Container) {
	m.tb.Helper()
	return m.RunIn(engine.PodSpec{PID: engine.ModeContainer}, spec)
}

// RunIn is Run in a pod of the given kind.
func (m *Machine) RunIn(kind engine.PodSpec, spec engine.ContainerSpec) (engine.Pod, engine.Container) {
	m.tb.Helper()
	ctx := m.tb.Context()
	kind.Owner, kind.Name, kind.Hostname, kind.LogDir = engine.OwnerDocker, "t", "box", m.dir
	pod, err := m.RunPod(ctx, kind)
	if err != nil {
		m.tb.Fatal(err)
	}
	if spec.Image == "" {
		spec.Image = Busybox
	}
	if spec.LogPath == "" {
		spec.LogPath = pod.ID + ".log"
	}
	c, err := m.CreateContainer(ctx, pod.ID, spec)
	if err != nil {
		m.tb.Fatal(err)
	}
	if err := m.StartContainer(ctx, c.ID); err != nil {
		m.tb.Fatal(err)
	}
	c, err = m.Container(ctx, c.ID)
	if err != nil {
		m.tb.Fatal(err)
	}
	return pod, c
}

// writer sends log lines to the test's output.
type writer struct{ tb testing.TB }

func (w writer) Write(p []byte) (int, error) {
	w.tb.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// File is one file of an image.
type File struct {
	Name string // without a leading slash; a directory ends in one
	Data []byte
	Mode int64
	Link string // a symbolic link's target
	// Type is a kind of tar.Header that neither Name nor Link tell: tar.TypeFifo,
	// tar.TypeChar. Device is the major and minor number.
	Type   byte
	Device [2]int64
}

// BusyboxArchive is an OCI archive of Busybox.
func BusyboxArchive(tb testing.TB) []byte {
	tb.Helper()
	return Archive(tb, Busybox, busyboxFiles(tb), busyboxConfig)
}

var busyboxConfig = ocispec.ImageConfig{Env: []string{"PATH=/bin", "FROM=image"}, Cmd: []string{"sh"}}

// Image loads Busybox with other files under a name. A file that is no directory
// takes the place of what Busybox has there and below.
func (m *Machine) Image(name string, files ...File) {
	m.tb.Helper()
	all := slices.DeleteFunc(busyboxFiles(m.tb), func(have File) bool {
		return slices.ContainsFunc(files, func(f File) bool {
			return f.Name == have.Name || strings.HasPrefix(have.Name, f.Name+"/")
		})
	})
	archive := Archive(m.tb, name, append(all, files...), busyboxConfig)
	if _, err := m.Store.Load(m.tb.Context(), bytes.NewReader(archive)); err != nil {
		m.tb.Fatal(err)
	}
}

func busyboxFiles(tb testing.TB) []File {
	tb.Helper()
	root := runnertest.Rootfs(tb)
	var files []File
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil || path == root {
			return err
		}
		f := File{Name: path[len(root)+1:], Mode: int64(info.Mode().Perm())}
		switch {
		case info.IsDir():
			f.Name += "/"
		case info.Mode()&os.ModeSymlink != 0:
			f.Link, err = os.Readlink(path)
		default:
			f.Data, err = os.ReadFile(path)
		}
		files = append(files, f)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return append(files,
		File{Name: "etc/passwd", Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:u:/home/user:/bin/sh\n"), Mode: 0o644},
		File{Name: "etc/group", Data: []byte("root:x:0:\nuser:x:1000:\nextra:x:1001:user\n"), Mode: 0o644})
}

// Archive makes an OCI archive of one image with one layer.
func Archive(tb testing.TB, name string, files []File, config ocispec.ImageConfig) []byte {
	tb.Helper()
	layer := tarOf(tb, files)
	image, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, Config: config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})
	if err != nil {
		tb.Fatal(err)
	}
	return ArtifactArchive(tb, name, ocispec.MediaTypeImageConfig, image, ocispec.MediaTypeImageLayer, layer)
}

// ArtifactArchive makes an OCI archive of one manifest with one layer.
func ArtifactArchive(tb testing.TB, name, configType string, config []byte, layerType string, layer []byte) []byte {
	tb.Helper()
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: configType, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: layerType, Digest: digest.FromBytes(layer), Size: int64(len(layer))}}})
	if err != nil {
		tb.Fatal(err)
	}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
		Annotations: map[string]string{ocispec.AnnotationRefName: name}}}})
	if err != nil {
		tb.Fatal(err)
	}
	out := []File{{Name: "oci-layout", Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {Name: "index.json", Data: index}}
	for _, blob := range [][]byte{config, layer, manifest} {
		out = append(out, File{Name: "blobs/sha256/" + digest.FromBytes(blob).Encoded(), Data: blob})
	}
	return tarOf(tb, out)
}

// Tar is a tar of files, for ArtifactArchive.
func Tar(tb testing.TB, files []File) []byte { return tarOf(tb, files) }

func tarOf(tb testing.TB, files []File) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	slices.SortStableFunc(files, func(a, b File) int { return len(a.Name) - len(b.Name) })
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if f.Type != 0 {
			h.Typeflag, h.Devmajor, h.Devminor = f.Type, f.Device[0], f.Device[1]
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(fmt.Errorf("tar: %w", err))
		}
		if _, err := w.Write(f.Data); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}
