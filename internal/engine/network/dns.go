package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// DNSConfig is what a container's resolv.conf says.
type DNSConfig struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// HostEntry is a line of a container's hosts file beyond the usual ones.
type HostEntry struct {
	IP    netip.Addr `json:"ip"`
	Names []string   `json:"names"`
}

// The file every program reads, and the one that systemd-resolved keeps with
// the real servers when the first names only its stub on loopback.
const (
	hostResolvConf     = "/etc/resolv.conf"
	resolvedResolvConf = "/run/systemd/resolve/resolv.conf"
)

// HostDNS returns the machine's resolver settings as a container can use them,
// see ParseResolvConf. A machine without resolv.conf has none, which is no error.
func HostDNS() (DNSConfig, error) {
	return hostDNS(hostResolvConf, resolvedResolvConf)
}

func hostDNS(paths ...string) (DNSConfig, error) {
	var first DNSConfig
	for i, path := range paths {
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return DNSConfig{}, fmt.Errorf("read the host's resolver settings: %w", err)
		}
		c := ParseResolvConf(data)
		if len(c.Servers) > 0 {
			return c, nil
		}
		if i == 0 {
			first = c
		}
	}
	return first, nil
}

// ParseResolvConf reads resolv.conf(5) and keeps what holds inside a container:
// IPv4 servers that are not on loopback (that would be the container's own
// loopback, and containers have no IPv6), the last search or domain line, and
// the options. It never invents a server.
func ParseResolvConf(data []byte) DNSConfig {
	var c DNSConfig
	for line := range strings.Lines(string(data)) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(f[1])
			if err == nil && addr.Is4() && !addr.IsLoopback() && !addr.IsUnspecified() {
				c.Servers = append(c.Servers, addr.String())
			}
		case "search", "domain":
			// A lone dot means "no search list", as resolv.conf(5) writers use it.
			c.Searches = slices.DeleteFunc(slices.Clone(f[1:]), func(s string) bool { return s == "." })
		case "options":
			c.Options = append(c.Options, f[1:]...)
		}
	}
	return c
}

// ResolvConf renders c as resolv.conf(5).
func (c DNSConfig) ResolvConf() []byte {
	var b bytes.Buffer
	if len(c.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
	}
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.Bytes()
}

// HostsFile renders a container's /etc/hosts: loopback, the container's own
// addresses with its name, one with a domain also without that, then extra. Without an address (host network, none)
// only loopback and extra are written; without a name no address has a line.
func HostsFile(hostname string, ips []netip.Addr, extra []HostEntry) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\n" +
		"ff00::0\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n")
	if hostname != "" {
		names := hostname
		if host, _, dotted := strings.Cut(hostname, "."); dotted {
			names += " " + host
		}
		for _, ip := range ips {
			fmt.Fprintf(&b, "%s\t%s\n", ip, names)
		}
	}
	for _, e := range extra {
		fmt.Fprintf(&b, "%s\t%s\n", e.IP, strings.Join(e.Names, " "))
	}
	return b.Bytes()
}
