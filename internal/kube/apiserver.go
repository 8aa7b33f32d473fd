package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/pflag"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// setFeatures sets the feature gates of all parts, which share one registry,
// once and before any of them reads it.
func setFeatures() error {
	return utilfeature.DefaultMutableFeatureGate.SetFromMap(map[string]bool{
		// Usage comes from the engine's cgroups, not from cAdvisor's own search for containers.
		"PodAndContainerStatsFromCRI": true,
	})
}

// slowHooks are the API server's post-start hooks that write the default roles
// and priority classes, polling at one second each time. What they write is in
// etcd after the first start of a version.
var slowHooks = []string{"rbac/bootstrap-roles", "scheduling/bootstrap-system-priority-classes"}

func (c *Cluster) apiServerFlags() []string {
	p := c.keys.path
	return []string{
		"--etcd-servers=" + c.etcdSocket(),
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.opt.APIPort), "--advertise-address=" + c.opt.Gateway.String(),
		"--tls-cert-file=" + p("apiserver.crt"), "--tls-private-key-file=" + p("apiserver.key"),
		"--client-ca-file=" + p("ca.crt"), "--anonymous-auth=false",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--encryption-provider-config=" + p("encryption.yaml"),
		"--service-account-issuer=https://kubernetes.default.svc." + c.opt.ClusterDomain,
		"--service-account-key-file=" + p("sa.key"), "--service-account-signing-key-file=" + p("sa.key"),
		"--service-cluster-ip-range=" + c.opt.ServiceCIDR.String(),
		"--kubelet-certificate-authority=" + p("ca.crt"),
		"--kubelet-client-certificate=" + p(toKubelet.file+".crt"), "--kubelet-client-key=" + p(toKubelet.file+".key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged=true", "--profiling=false",
	}
}

// startAPIServer starts the API server and waits until it is ready.
func (c *Cluster) startAPIServer(ctx, run context.Context) error {
	o := options.NewServerRunOptions()
	fs := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range o.Flags().FlagSets {
		fs.AddFlagSet(set)
	}
	if err := fs.Parse(c.apiServerFlags()); err != nil {
		return err
	}
	l, err := c.listenAPI()
	if err != nil {
		return err
	}
	o.SecureServing.Listener = l
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err = o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	completed, err := o.Complete(run)
	if err != nil {
		return err
	}
	if err = errors.Join(completed.Validate()...); err != nil {
		return err
	}
	config, err := app.NewConfig(completed)
	if err != nil {
		return err
	}
	marker := c.dir("bootstrapped")
	if done, readErr := os.ReadFile(marker); readErr == nil && string(done) == version.Get().GitVersion {
		config.KubeAPIs.ControlPlane.Generic.DisabledPostStartHooks.Insert(slowHooks...)
	}
	full, err := config.Complete()
	if err != nil {
		return err
	}
	chain, err := app.CreateServerChain(full)
	if err != nil {
		return err
	}
	prepared, err := chain.PrepareRun()
	if err != nil {
		return err
	}
	c.goRun(run, "api server", func(ctx context.Context) error { return prepared.Run(ctx) })
	if err = c.waitReadyz(ctx); err != nil {
		return err
	}
	return os.WriteFile(marker, []byte(version.Get().GitVersion), 0o600)
}

// listenAPI listens on loopback and on the bridge: nowhere else, least of all everywhere.
func (c *Cluster) listenAPI() (net.Listener, error) {
	var list []net.Listener
	for _, host := range []string{"127.0.0.1", c.opt.Gateway.String()} {
		l, err := listen(net.JoinHostPort(host, strconv.Itoa(c.opt.APIPort)), "api.port")
		if err != nil {
			for _, have := range list {
				have.Close()
			}
			return nil, err
		}
		list = append(list, l)
	}
	return newMultiListener(list), nil
}

// readyTime is how long the API server gets until it is ready, and then the node.
const readyTime = 2 * time.Minute

// waitReadyz waits until the API server says that it is ready.
func (c *Cluster) waitReadyz(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	var last error
	for {
		body, err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Param("verbose", "true").DoRaw(ctx)
		if err == nil {
			return nil
		}
		if len(body) > 0 {
			err = fmt.Errorf("%w: %s", err, body)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case err := <-c.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", errors.Join(ctx.Err(), last))
		}
	}
}

// multiListener accepts from several listeners.
type multiListener struct {
	list   []net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
}

func newMultiListener(list []net.Listener) *multiListener {
	m := &multiListener{list: list, conns: make(chan net.Conn), closed: make(chan struct{})}
	for _, l := range list {
		m.wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					select {
					case <-m.closed:
						return
					case <-time.After(10 * time.Millisecond): // out of descriptors, say
						continue
					}
				}
				select {
				case m.conns <- conn:
				case <-m.closed:
					conn.Close()
					return
				}
			}
		})
	}
	return m
}

// Accept implements net.Listener.
func (m *multiListener) Accept() (net.Conn, error) {
	select {
	case conn := <-m.conns:
		return conn, nil
	case <-m.closed:
		return nil, http.ErrServerClosed
	}
}

// Close implements net.Listener.
func (m *multiListener) Close() error {
	var errs []error
	m.once.Do(func() {
		close(m.closed)
		for _, l := range m.list {
			errs = append(errs, l.Close())
		}
		m.wg.Wait()
	})
	return errors.Join(errs...)
}

// Addr implements net.Listener: that of the first.
func (m *multiListener) Addr() net.Addr { return m.list[0].Addr() }
