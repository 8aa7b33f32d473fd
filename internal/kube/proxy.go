package kube

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
)

// startProxy starts kube-proxy, which sends a Service's traffic to its pods by
// nftables rules. They stay when the process ends: Services go on answering.
func (c *Cluster) startProxy(_, run context.Context) error {
	if !c.opt.KubeProxy {
		return nil
	}
	kubeconfig, err := c.writeKubeconfig(proxying)
	if err != nil {
		return err
	}
	file := c.dir("kube-proxy.yaml")
	if err := writeSecret(file, c.proxyConfig(kubeconfig)); err != nil {
		return err
	}
	o := app.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse([]string{"--config=" + file}); err != nil {
		return err
	}
	if err := o.Complete(fs); err != nil {
		return err
	}
	if err := o.Validate(); err != nil {
		return err
	}
	c.goRun(run, "service proxy", o.Run)
	return nil
}

// proxyConfig is kube-proxy's configuration. Connection tracking is the
// machine's: its sizes and times stay as they are. A new pod of a Service is
// waited for: changes are batched for a moment, not for the default second.
func (c *Cluster) proxyConfig(kubeconfig string) []byte {
	return fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %q}
hostnameOverride: %q
clusterCIDR: %q
nodePortAddresses: [primary]
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 50ms, syncPeriod: 30s}
healthzBindAddress: ""
metricsBindAddress: ""
`, kubeconfig, c.opt.NodeName, c.opt.PodCIDR)
}
