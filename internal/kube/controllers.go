package kube

import (
	"context"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"

	clientset "k8s.io/client-go/kubernetes"
)

func (c *Cluster) controllerFlags() []string {
	p := c.keys.path
	return []string{
		"--master=http://127.0.0.1:1", // replaced below; the options ask for one
		"--leader-elect=false", "--secure-port=0", "--use-service-account-credentials=false", "--profiling=false",
		"--service-account-private-key-file=" + p("sa.key"), "--root-ca-file=" + p("ca.crt"),
		"--cluster-signing-cert-file=" + p("ca.crt"), "--cluster-signing-key-file=" + p("ca.key"),
		"--allocate-node-cidrs=false", "--cluster-cidr=" + c.opt.PodCIDR.String(),
		"--kube-api-qps=-1",
		// Both start the CSI volume plugin, whose node manager is one variable of the process: theirs, which
		// has no node, would replace the kubelet's, and the node would never become ready. The kubelet attaches by itself.
		"--controllers=*,-persistentvolume-attach-detach-controller,-persistentvolume-expander-controller",
	}
}

// startControllers starts the controller manager.
func (c *Cluster) startControllers(_, run context.Context) error {
	o, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	all, off, aliases := app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases()
	sets := o.Flags(all, off, aliases)
	fs := pflag.NewFlagSet("kube-controller-manager", pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		fs.AddFlagSet(set)
	}
	if err := fs.Parse(c.controllerFlags()); err != nil {
		return err
	}
	config, err := o.Config(run, all, off, aliases)
	if err != nil {
		return err
	}
	config.Kubeconfig = c.configOf(controllers)
	if config.Client, err = clientset.NewForConfig(rest.AddUserAgent(config.Kubeconfig, "kube-controller-manager")); err != nil {
		return err
	}
	completed := config.Complete()
	c.goRun(run, "controllers", func(ctx context.Context) error { return app.Run(ctx, completed) })
	return nil
}
