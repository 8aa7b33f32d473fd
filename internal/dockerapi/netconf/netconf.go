// Package netconf is what Docker's clients say of networks in the engine's terms,
// and the other way round.
//
// Only dockerapi imports it. It holds no state and asks nobody.
package netconf

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"

	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

// Names of the drivers. Only networks of the first can be made: the others have
// one network each, which is there from the beginning.
const (
	BridgeDriver = "bridge"
	HostDriver   = "host"
	NullDriver   = "null"
)

// networkExtra is what a network's definition keeps for Docker's clients.
type networkExtra struct {
	Options    map[string]string `json:",omitempty"`
	Attachable bool              `json:",omitempty"`
}

// Builtins are the networks that are there from the beginning; own is the node's own.
func Builtins(own network.Definition) []apinetwork.Network {
	list := []apinetwork.Network{
		{Name: apinetwork.NetworkBridge, Driver: BridgeDriver, Options: map[string]string{
			"com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.enable_icc": "true",
			"com.docker.network.bridge.enable_ip_masquerade": "true", "com.docker.network.bridge.name": own.Bridge},
			IPAM: apinetwork.IPAM{Config: []apinetwork.IPAMConfig{{Subnet: own.Subnet, Gateway: own.Gateway}}}},
		{Name: apinetwork.NetworkHost, Driver: HostDriver, Options: map[string]string{}},
		{Name: apinetwork.NetworkNone, Driver: NullDriver, Options: map[string]string{}},
	}
	for i := range list {
		n := &list[i]
		n.ID, n.Scope, n.EnableIPv4, n.Labels, n.IPAM.Driver = BuiltinID(n.Name), "local", true, map[string]string{}, "default"
	}
	return list
}

// BuiltinID is the ID of a network that is there from the beginning.
func BuiltinID(name string) string {
	sum := sha256.Sum256([]byte("ferry network " + name))
	return hex.EncodeToString(sum[:])
}

// IsBuiltin reports whether n is there from the beginning.
func IsBuiltin(n apinetwork.Network) bool { return n.ID == BuiltinID(n.Name) }

// EngineID is how the engine calls a network of the driver bridge.
func EngineID(n apinetwork.Network) string {
	if IsBuiltin(n) {
		return network.DefaultNetwork
	}
	return n.ID
}

// Network is a network that somebody made, as clients see it.
func Network(d network.Definition) apinetwork.Network {
	var extra networkExtra
	if json.Unmarshal(d.Extra, &extra) != nil {
		extra = networkExtra{} // made by another client of the engine
	}
	config := apinetwork.IPAMConfig{Subnet: d.Subnet, Gateway: d.Gateway, IPRange: d.Range, AuxAddress: d.Reserved}
	n := apinetwork.Network{Name: d.Name, ID: d.ID, Created: d.Created, Scope: "local", Driver: BridgeDriver, EnableIPv4: true,
		IPAM: apinetwork.IPAM{Driver: "default", Options: map[string]string{}, Config: []apinetwork.IPAMConfig{config}}, Internal: d.Internal,
		Attachable: extra.Attachable, Options: extra.Options, Labels: d.Labels}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	return n
}

// Definition translates a request. What cannot be honoured is an error.
func Definition(req apinetwork.CreateRequest) (network.Definition, error) {
	d := network.Definition{Name: req.Name, Internal: req.Internal, Labels: req.Labels}
	switch {
	case req.Driver == HostDriver, req.Driver == NullDriver:
		return d, fault.New(fault.Denied, "only one instance of %q network is allowed", req.Driver)
	case req.Driver != "" && req.Driver != BridgeDriver:
		return d, fault.New(fault.Unsupported, "networks of the driver %q are not supported", req.Driver).Hint("use the driver bridge, which is the default")
	case req.Scope != "" && req.Scope != "local":
		return d, fault.New(fault.Unsupported, "--scope %s: networks across machines is not supported yet", req.Scope)
	case req.EnableIPv6 != nil && *req.EnableIPv6, req.EnableIPv4 != nil && !*req.EnableIPv4:
		return d, fault.New(fault.Unsupported, "--ipv6: networks have IPv4 and that alone; this one is not supported yet")
	case req.Ingress, req.ConfigOnly, req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return d, fault.New(fault.Unsupported, "--ingress, --config-only and --config-from: swarm is not supported yet")
	}
	extra := networkExtra{Options: req.Options, Attachable: req.Attachable}
	if err := options(&d, req.Options); err != nil {
		return d, err
	}
	if ipam := req.IPAM; ipam != nil {
		if ipam.Driver != "" && ipam.Driver != "default" || len(ipam.Options) > 0 {
			return d, fault.New(fault.Unsupported, "--ipam-driver %s, --ipam-opt: other address management than the default is not supported yet", ipam.Driver)
		}
		if len(ipam.Config) > 1 {
			return d, fault.New(fault.Unsupported, "--subnet: more than one for a network is not supported yet")
		}
		for _, c := range ipam.Config {
			d.Subnet, d.Gateway, d.Range, d.Reserved = c.Subnet, c.Gateway, c.IPRange, c.AuxAddress
		}
	}
	var err error
	d.Extra, err = json.Marshal(extra)
	return d, err
}

// options translates the driver's options of a network.
func options(d *network.Definition, list map[string]string) error {
	for name, value := range list {
		on, err := true, error(nil)
		switch name {
		case "com.docker.network.bridge.name":
			d.Bridge = value
		case "com.docker.network.driver.mtu":
			d.MTU, err = strconv.Atoi(value)
		case "com.docker.network.bridge.enable_icc":
			on, err = strconv.ParseBool(value)
			d.Isolated = !on
		case "com.docker.network.bridge.enable_ip_masquerade":
			if on, err = strconv.ParseBool(value); err == nil && !on {
				return fault.New(fault.Unsupported, "--opt %s=%s: a network whose addresses are seen outside is not supported yet", name, value)
			}
		default:
			return fault.New(fault.Unsupported, "--opt %s=%s is not supported yet", name, value)
		}
		if err != nil {
			return fault.New(fault.Invalid, "--opt %s=%s: %w", name, value, err)
		}
	}
	return nil
}
