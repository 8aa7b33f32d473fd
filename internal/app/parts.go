package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/ferryos/ferry/internal/build"
	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/dockerapi"
	"github.com/ferryos/ferry/internal/dockerconfig"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/cri"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/kube"
	"github.com/ferryos/ferry/internal/lifecycle"
	"github.com/ferryos/ferry/internal/registry"
)

// Version is Ferry's, set by the build.
var Version = "0.0.0-dev"

// poolSize is how many network namespaces and runners are kept ready for the next containers.
const poolSize = 4

// parts are the components of ferryd, in start order.
type parts struct {
	list     []lifecycle.Component
	engine   *engine.Engine
	network  *network.Network
	store    *store.Store
	registry *registry.Registry
	cluster  *kube.Cluster
}

// newParts makes all components from the configuration. Nothing starts here.
func newParts(cfg config.Config, log *slog.Logger, progress *progress) (*parts, error) {
	p, err := newEngineParts(cfg, poolSize, log)
	if err != nil {
		return nil, err
	}
	runtime := cri.New(cri.Options{Engine: p.engine, Version: Version, PodCIDR: cfg.Network.PodCIDR, Log: log})
	options := kubeOptions(cfg, log)
	options.Runtime, options.Images, options.PodChanged = runtime, runtime, runtime.PodChanges
	options.Progress = func(part string, took time.Duration) { progress.component(part, "started", took) }
	p.cluster = kube.New(options)
	builder := build.New(build.Options{Root: filepath.Join(cfg.DataDir, "images", "build"),
		Credential: p.ownCredential, Gateway: cfg.Gateway(), Engine: p.engine, Log: log})
	p.list = append(p.list,
		lifecycle.Func{Label: "bundled images", OnStart: func(ctx context.Context) error {
			return p.store.LoadBundled(ctx, filepath.Join(cfg.LibexecDir, "images"))
		}},
		builder,
		dockerapi.New(dockerapi.Options{Engine: p.engine, Builder: builder, Socket: cfg.DockerSocket(), LogDir: filepath.Join(cfg.DataDir, "container-logs"),
			Root: cfg.DataDir, Version: Version, Log: log, OwnRegistry: p.ownRegistry,
			Defaults: dockerapi.Defaults{UserNamespaces: cfg.Engine.UserNamespaces, PidsLimit: *cfg.Engine.PidsLimit}}),
		p.registry,
		runtime, cri.NewSocket(runtime, cfg.CRISocket(), log),
		p.cluster,
		lifecycle.Func{Label: "registry in the cluster", OnStart: func(ctx context.Context) error {
			p.cluster.Keep(ctx, "the registry in the cluster", p.shareRegistry(cfg.Registry.Port))
			return nil
		}},
	)
	return p, nil
}

// How pods find the registry: a Service, and in the default namespace a Secret
// to push with. Both names are the same on every Ferry, whatever its port and ranges.
const (
	registryNamespace = "kube-system"
	registryService   = "registry"
	registryPort      = 5000
	credentialSecret  = "ferry-registry"
)

// shareRegistry makes the registry known in the cluster, to people's tools too:
// https://github.com/kubernetes/enhancements/tree/master/keps/sig-cluster-lifecycle/generic/1755-communicating-a-local-registry
func (p *parts) shareRegistry(port int) func(context.Context) error {
	return func(ctx context.Context) error {
		service := net.JoinHostPort(registryService+"."+registryNamespace+".svc", strconv.Itoa(registryPort))
		credential, err := p.registry.DockerConfig(service)
		if err != nil {
			return err
		}
		host := net.JoinHostPort("localhost", strconv.Itoa(port))
		known := fmt.Sprintf("host: %q\nhostFromContainerRuntime: %q\nhostFromClusterNetwork: %q\n", host, host, service)
		return errors.Join(
			p.cluster.EnsureSecret(ctx, "default", credentialSecret, "kubernetes.io/dockerconfigjson", map[string][]byte{".dockerconfigjson": credential}),
			p.cluster.EnsureService(ctx, registryNamespace, registryService, registryPort, port),
			p.cluster.EnsureConfigMap(ctx, "kube-public", "local-registry-hosting", map[string]string{"localRegistryHosting.v1": known}))
	}
}

// newEngineParts makes the components that containers need, all that teardown
// uses, with so many network namespaces and runners kept ready.
func newEngineParts(cfg config.Config, pool int, log *slog.Logger) (*parts, error) {
	bridge, err := network.New(network.Options{
		Bridge: cfg.Network.Bridge, Subnet: netip.MustParsePrefix(cfg.Network.PodCIDR), Services: netip.MustParsePrefix(cfg.Network.ServiceCIDR),
		Networks: netip.MustParsePrefix(cfg.Network.UserCIDR),
		StateDir: filepath.Join(cfg.DataDir, "network"), NetnsDir: filepath.Join(cfg.RunDir, "netns"), PoolSize: pool, Log: log,
	})
	if err != nil {
		return nil, err
	}
	hub := registry.New(registry.Options{Root: filepath.Join(cfg.DataDir, "registry"), Gateway: cfg.Gateway(), Port: cfg.Registry.Port, Log: log})
	var containers *engine.Engine
	images := newStore(cfg, hub, func(ctx context.Context) []string { return containers.ImagesInUse(ctx) }, log)
	containers = engine.New(engine.Options{
		DataDir: filepath.Join(cfg.DataDir, "engine"), RunDir: cfg.RunDir, RunnerBinary: filepath.Join(cfg.LibexecDir, "ferry-runner"),
		InitBinary: filepath.Join(cfg.LibexecDir, "ferry-init"), CDIDirs: cfg.CDIDirs,
		CgroupParent: cfg.CgroupParent, Store: images, Network: bridge, Log: log, Runners: pool,
	})
	return &parts{list: []lifecycle.Component{bridge, images, containers}, engine: containers, network: bridge, store: images, registry: hub}, nil
}

func (p *parts) ownRegistry(host string) bool { return slices.Contains(p.registry.Hosts(), host) }

// ownCredential is the credential of the built-in registry; none for others.
func (p *parts) ownCredential(host string) (user, password string) {
	if p.ownRegistry(host) {
		return p.registry.Credential()
	}
	return "", ""
}

// newStore makes the image store, which has the built-in registry's credential
// and finds others where docker keeps them.
func newStore(cfg config.Config, hub *registry.Registry, inUse func(context.Context) []string, log *slog.Logger) *store.Store {
	ours := func(host string) bool { return slices.Contains(hub.Hosts(), host) }
	var registries []store.Registry
	for _, r := range cfg.Registries {
		registries = append(registries, store.Registry(r))
	}
	minAge, maxAge := cfg.Images.Ages()
	return store.New(store.Options{
		Root: filepath.Join(cfg.DataDir, "images"), Log: log, PlainHTTP: ours, Registries: registries, HostsDir: cfg.Images.HostsDir,
		InUse: inUse, Keep: store.Keep{HighPercent: cfg.Images.HighPercent, LowPercent: cfg.Images.LowPercent,
			MinAge: minAge, MaxAge: maxAge, RemoveTagged: *cfg.Images.RemoveTagged},
		Credential: func(host string) (user, password string) {
			if ours(host) {
				return hub.Credential()
			}
			user, password, err := dockerconfig.Credential(cfg.Images.DockerConfig, host)
			if err != nil {
				log.Warn("a registry's credential cannot be read", "registry", host, "error", err)
			}
			return user, password
		},
	})
}

func kubeOptions(cfg config.Config, log *slog.Logger) kube.Options {
	return kube.Options{
		DataDir: filepath.Join(cfg.DataDir, "kube"), RunDir: filepath.Join(cfg.RunDir, "kube"), NodeName: cfg.NodeName,
		CgroupParent: cfg.CgroupParent, Gateway: cfg.Gateway(), PodCIDR: netip.MustParsePrefix(cfg.Network.PodCIDR),
		ServiceCIDR: netip.MustParsePrefix(cfg.Network.ServiceCIDR), ClusterDomain: cfg.Network.ClusterDomain,
		APIPort: cfg.API.Port, KubeletPort: cfg.API.KubeletPort, KubeProxy: *cfg.Network.KubeProxy,
		AdminKubeconfig: cfg.AdminKubeconfig(), Context: cfg.API.Context, Log: log,
	}
}
