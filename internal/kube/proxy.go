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
	o := app.NewOptions()
	fs := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse([]string{
		"--proxy-mode=nftables", "--kubeconfig=" + kubeconfig, "--hostname-override=" + c.opt.NodeName, "--cluster-cidr=" + c.opt.PodCIDR.String(),
		// Connection tracking is the machine's: its sizes and times stay as they are.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--nodeport-addresses=primary", "--healthz-port=0", fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", c.opt.KubeletPort-1),
	}); err != nil {
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
