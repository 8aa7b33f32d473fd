package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind" // the Corefile's directives are linked in by import
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"

	"github.com/ferryos/ferry/internal/fault"
)

// dnsServer is CoreDNS.
type dnsServer struct{ *caddy.Instance }

func (d *dnsServer) stop() error {
	return errors.Join(append(d.ShutdownCallbacks(), d.Stop())...)
}

// dnsRole is what CoreDNS reads, as its own deployment is allowed to.
const dnsRole = "ferry:coredns"

// startDNS starts CoreDNS on the bridge's address, where pods ask it, and names
// it as the Service kube-dns.
func (c *Cluster) startDNS(ctx, _ context.Context) error {
	c.Keep(ctx, "objects of cluster DNS", c.ensureDNSObjects)
	kubeconfig, err := c.writeKubeconfig(naming)
	if err != nil {
		return err
	}
	caddy.Quiet, dnsserver.Quiet = true, true
	if err := dnsserver.Register(); err != nil && !strings.Contains(err.Error(), "already") {
		return err
	}
	instance, err := caddy.Start(caddy.CaddyfileInput{Filepath: "Corefile", ServerTypeName: "dns", Contents: c.corefile(kubeconfig)})
	if err != nil {
		return fault.New(fault.Unavailable, "start: %w", err).
			Hint("another DNS server may own port 53 of %s: have it listen on its own addresses only", c.opt.Gateway)
	}
	c.dns = &dnsServer{instance}
	return nil
}

func (c *Cluster) corefile(kubeconfig string) []byte {
	forward := ""
	if hostHasResolver() {
		forward = "    forward . /etc/resolv.conf\n"
	}
	return fmt.Appendf(nil, `.:53 {
    bind %s
    errors
    kubernetes %s in-addr.arpa ip6.arpa {
        kubeconfig %s %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
%s    cache 30
    loadbalance
}
`, c.opt.Gateway, c.opt.ClusterDomain, kubeconfig, naming.file, forward)
}

// hostHasResolver reports whether the machine knows a name server to ask.
func hostHasResolver() bool {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(strings.TrimSpace(line), "nameserver") {
			return true
		}
	}
	return false
}
