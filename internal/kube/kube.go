// Package kube is a complete Kubernetes in this process: etcd, the API server,
// the controller manager, the scheduler, the kubelet, kube-proxy and CoreDNS
// run as goroutines, linked in and unchanged.
//
// It is the only importer of k8s.io/kubernetes, etcd and CoreDNS. It knows the
// engine by the two CRI interfaces alone. The composition root makes one
// Cluster a process: the kubelet cannot be started twice in one.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	clientset "k8s.io/client-go/kubernetes"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/kubernetes/pkg/kubelet"

	"github.com/ferryos/ferry/internal/fault"
)

// Options are what a Cluster is made from. Every directory, port and address
// must differ between two Clusters on one machine.
type Options struct {
	DataDir         string // keys, etcd, the kubelet's root; survives the boot
	RunDir          string // sockets
	NodeName        string
	CgroupParent    string
	Gateway         netip.Addr // the node's own address on the bridge
	PodCIDR         netip.Prefix
	ServiceCIDR     netip.Prefix
	ClusterDomain   string
	APIPort         int // on loopback and on Gateway
	KubeletPort     int // on Gateway
	KubeProxy       bool
	AdminKubeconfig string // written at Start, mode 0600
	Context         string // name of its context
	Runtime         internalapi.RuntimeService
	Images          internalapi.ImageManagerService
	// PodChanged receives the UID of a pod whenever the runtime changed it, so
	// that the kubelet looks at once and not at its next poll.
	PodChanged func(ctx context.Context) <-chan string
	Log        *slog.Logger
	// Progress is told of each part that has started. May be nil.
	Progress func(part string, took time.Duration)
}

// Cluster is the embedded Kubernetes.
type Cluster struct {
	opt    Options
	keys   keys
	client clientset.Interface // as administrator

	cancel   context.CancelFunc
	parts    sync.WaitGroup
	stopping chan struct{} // closed by Stop
	failed   chan error    // the first part that ended by itself
	etcd     *etcdServer
	dns      *dnsServer
	kubelet  *kubelet.Kubelet
	started  time.Time
	tunables tunables
}

// New returns a Cluster that does nothing before Start.
func New(opt Options) *Cluster {
	if opt.Progress == nil {
		opt.Progress = func(string, time.Duration) {}
	}
	return &Cluster{opt: opt, stopping: make(chan struct{}), failed: make(chan error, 16), tunables: tunables{file: filepath.Join(opt.DataDir, "tunables.json")}}
}

// Name implements lifecycle.Component.
func (c *Cluster) Name() string { return "kubernetes" }

// Start starts all parts; the node may not be ready yet (WaitReady).
func (c *Cluster) Start(ctx context.Context) (err error) {
	c.started = time.Now()
	bridgeLogs(c.opt.Log)
	for _, dir := range []string{c.opt.DataDir, c.opt.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("kubernetes directories: %w", err)
		}
	}
	if err := setFeatures(); err != nil {
		return err
	}
	if c.keys, err = c.loadKeys(); err != nil {
		return err
	}
	if c.client, err = c.clientOf(admin); err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
		}
	}()
	steps := []struct {
		name string
		run  func(start, run context.Context) error
	}{
		{"etcd", c.startEtcd}, {"api server", c.startAPIServer}, {"controllers", c.startControllers}, {"scheduler", c.startScheduler},
		{"kubelet", c.startKubelet}, {"service proxy", c.startProxy}, {"cluster dns", c.startDNS},
	}
	for _, s := range steps {
		begin := time.Now()
		if err := s.run(ctx, run); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		c.opt.Progress(s.name, time.Since(begin))
	}
	return nil
}

// Stop ends all parts. Pods run on.
func (c *Cluster) Stop(ctx context.Context) error {
	if c.cancel == nil {
		return nil
	}
	close(c.stopping)
	c.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c.dns != nil {
			if err := c.dns.stop(); err != nil {
				c.opt.Log.Error("stop cluster DNS", "error", err)
			}
		}
		c.parts.Wait()
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("kubernetes did not end: %w", ctx.Err()))
	case <-time.After(stopTime):
		// The kubelet's loops end with the process; nothing is lost by not waiting for them.
		c.opt.Log.Info("left kubernetes' last loops to the end of the process")
	}
	if c.etcd != nil {
		c.etcd.close()
	}
	// Put back already, unless the node never became ready.
	return errors.Join(err, c.tunables.restore())
}

// stopTime is how long the parts get to end: calls under way are answered. Watches, which the
// API server and the kubelet hold to each other, would keep them for a minute.
const stopTime = 200 * time.Millisecond

// Failed receives the error of a part that ended by itself.
func (c *Cluster) Failed() <-chan error { return c.failed }

// goRun runs a part until the Cluster stops.
func (c *Cluster) goRun(run context.Context, name string, f func(context.Context) error) {
	c.parts.Go(func() {
		err := f(run)
		if run.Err() != nil {
			c.opt.Log.Debug("part of kubernetes stopped", "part", name)
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		c.opt.Log.Error("part of kubernetes ended", "part", name, "error", err)
		c.failed <- fmt.Errorf("%s: %w", name, err)
	})
}

// dir is a directory of the cluster's own below its data directory.
func (c *Cluster) dir(name ...string) string {
	return filepath.Join(append([]string{c.opt.DataDir}, name...)...)
}

// serviceIP is the n-th address of the Service range.
func (c *Cluster) serviceIP(n byte) netip.Addr {
	a := c.opt.ServiceCIDR.Masked().Addr().As4()
	a[3] += n
	return netip.AddrFrom4(a)
}

func (c *Cluster) apiURL() string {
	return "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.opt.APIPort))
}

// listen opens a TCP port, with what to do if it is taken.
func listen(addr, field string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "listen on %s: %w", addr, err).
			Hint("end what uses the port (`ss -ltnp`), or set %s in the configuration", field)
	}
	return l, nil
}
