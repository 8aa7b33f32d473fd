package kube

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/kubelet"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/kubernetes/pkg/kubelet/watchdog"
)

// kubeletRoot is where volumes are mounted.
func (c *Cluster) kubeletRoot() string { return c.dir("kubelet") }

// kubeletServer is the kubelet's configuration.
func (c *Cluster) kubeletServer() (*options.KubeletServer, error) {
	s, err := options.NewKubeletServer()
	if err != nil {
		return nil, err
	}
	p := c.keys.path
	s.HostnameOverride, s.NodeIP = c.opt.NodeName, c.opt.Gateway.String()
	s.RootDirectory, s.CertDirectory = c.kubeletRoot(), c.dir("kubelet-pki")
	s.KubeConfig = "in-process" // not read: the clients are given below
	k := &s.KubeletConfiguration
	k.PodLogsDir, k.VolumePluginDir = c.dir("pod-logs"), c.dir("volume-plugins")
	k.Address, k.Port, k.HealthzPort, k.EnableServer = c.opt.Gateway.String(), int32(c.opt.KubeletPort), 0, true
	k.ReadOnlyPort = 0 // upstream's default without a file, 10255, shows all pods to everybody who reaches the bridge
	k.TLSCertFile, k.TLSPrivateKeyFile = p("kubelet.crt"), p("kubelet.key")
	k.Authentication.X509.ClientCAFile, k.Authentication.Anonymous.Enabled, k.Authentication.Webhook.Enabled = p("ca.crt"), false, true
	k.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	k.ContainerRuntimeEndpoint = "unix:///in-process" // only has to be something
	k.ClusterDNS, k.ClusterDomain, k.ResolverConfig = []string{c.opt.Gateway.String()}, c.opt.ClusterDomain, "/etc/resolv.conf"
	k.FailCgroupV1, k.CgroupDriver, k.CgroupsPerQOS, k.EnforceNodeAllocatable = false, "cgroupfs", false, nil
	k.FailSwapOn, k.MakeIPTablesUtilChains, k.EnableControllerAttachDetach = false, false, false
	k.SeccompDefault = true
	k.SerializeImagePulls, k.RegistryPullQPS, k.EventRecordQPS = false, 0, 0
	k.MaxPods = 250
	// Images are the user's as much as the cluster's: pressure on the disk evicts pods, it does not delete builds.
	k.ImageGCHighThresholdPercent, k.ImageGCLowThresholdPercent = 100, 99
	k.EvictionHard = map[string]string{"memory.available": "100Mi", "nodefs.available": "3%"}
	k.SyncFrequency = metav1.Duration{Duration: 10 * time.Second}
	k.StaticPodPath = ""
	return s, options.ValidateKubeletServer(s)
}

// startKubelet starts the kubelet. It cannot be stopped before the process ends
// and not be started again in it.
func (c *Cluster) startKubelet(_, run context.Context) error {
	s, err := c.kubeletServer()
	if err != nil {
		return err
	}
	// Tried first: where it cannot listen, the kubelet ends the process.
	l, err := listen(net.JoinHostPort(c.opt.Gateway.String(), strconv.Itoa(c.opt.KubeletPort)), "api.kubeletPort")
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	kubelet.ContainerLogsDir = c.dir("container-links") // links for log collectors, by default in /var/log
	ctx := run
	deps, err := kubeletapp.UnsecuredDependencies(ctx, s, utilfeature.DefaultFeatureGate)
	if err != nil {
		return err
	}
	if err := c.fillClients(deps); err != nil {
		return err
	}
	var reload func(<-chan struct{})
	if deps.Auth, reload, err = kubeletapp.BuildAuth(types.NodeName(c.opt.NodeName), deps.KubeClient, s.KubeletConfiguration); err != nil {
		return err
	}
	reload(run.Done())
	if deps.HealthChecker, err = watchdog.NewHealthChecker(klog.FromContext(ctx)); err != nil {
		return err
	}
	deps.RemoteRuntimeService, deps.RemoteImageService = c.opt.Runtime, c.opt.Images
	deps.PodStartupLatencyTracker = kubeletutil.NewPodStartupLatencyTracker()
	deps.NodeStartupLatencyTracker = kubeletutil.NewNodeStartupLatencyTracker(klog.FromContext(ctx))
	deps.OnHeartbeatFailure = func() {}
	roots := []string{c.opt.CgroupParent}
	deps.CAdvisorInterface, err = cadvisor.New(klog.FromContext(ctx), cadvisor.NewImageFsInfoProvider(s.ContainerRuntimeEndpoint),
		s.RootDirectory, roots, false, s.LocalStorageCapacityIsolation, true)
	if err != nil {
		return err
	}
	if deps.ContainerManager, err = c.containerManager(ctx, s, deps); err != nil {
		return err
	}
	var hooked error
	deps.Options = append(deps.Options, func(k *kubelet.Kubelet) { c.kubelet, hooked = k, c.hook(run, k) })
	if err := c.tunables.record(); err != nil {
		return err
	}
	if err := kubeletapp.RunKubelet(ctx, s, deps); err != nil {
		return err
	}
	return hooked
}

func (c *Cluster) fillClients(deps *kubelet.Dependencies) error {
	config := c.configOf(c.node())
	var err error
	if deps.KubeClient, err = clientset.NewForConfig(config); err != nil {
		return err
	}
	heartbeat := *config
	heartbeat.Timeout = 10 * time.Second
	if deps.HeartbeatClient, err = clientset.NewForConfig(&heartbeat); err != nil {
		return err
	}
	events, err := clientset.NewForConfig(config)
	if err != nil {
		return err
	}
	deps.EventClient = events.CoreV1()
	return nil
}

// containerManager is the kubelet's view of the machine: capacity, cgroups, devices.
func (c *Cluster) containerManager(ctx context.Context, s *options.KubeletServer, deps *kubelet.Dependencies) (cm.ContainerManager, error) {
	thresholds, err := eviction.ParseThresholdConfig(nil, s.EvictionHard, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	m, err := cm.NewContainerManager(ctx, deps.Mounter, deps.CAdvisorInterface, cm.NodeConfig{
		NodeName: types.NodeName(c.opt.NodeName), CgroupsPerQOS: s.CgroupsPerQOS, CgroupDriver: s.CgroupDriver, KubeletRootDir: s.RootDirectory,
		KubeletOOMScoreAdj: s.OOMScoreAdj, PodPidsLimit: s.PodPidsLimit, EnforceCPULimits: s.CPUCFSQuota,
		CPUCFSQuotaPeriod: s.CPUCFSQuotaPeriod.Duration, CPUManagerPolicy: s.CPUManagerPolicy,
		CPUManagerReconcilePeriod: s.CPUManagerReconcilePeriod.Duration, MemoryManagerPolicy: s.MemoryManagerPolicy,
		TopologyManagerPolicy: s.TopologyManagerPolicy, TopologyManagerScope: s.TopologyManagerScope,
		NodeAllocatableConfig: cm.NodeAllocatableConfig{EnforceNodeAllocatable: sets.New[string](), KubeReserved: v1.ResourceList{},
			SystemReserved: v1.ResourceList{}, HardEvictionThresholds: thresholds},
	}, s.FailSwapOn, deps.Recorder, deps.KubeClient)
	if err != nil {
		return nil, fmt.Errorf("container manager: %w", err)
	}
	return noPodCgroups{m}, nil
}
