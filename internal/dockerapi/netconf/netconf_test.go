package netconf

import (
	"encoding/json"
	"testing"

	apinetwork "github.com/moby/moby/api/types/network"

	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/fault"
)

// FuzzDefinition: what is taken comes back as it was, all else is an error of
// the one who asked.
func FuzzDefinition(f *testing.F) {
	f.Add([]byte(`{"Name":"a","Attachable":true,"IPAM":{"Config":[{"Subnet":"10.0.0.0/24","IPRange":"10.0.0.0/25","Gateway":"10.0.0.1","AuxiliaryAddresses":{"r":"10.0.0.2"}}]}}`))
	f.Add([]byte(`{"Name":"a","Options":{"com.docker.network.driver.mtu":"x"},"EnableIPv6":true,"ConfigFrom":null}`))
	f.Add([]byte(`{"Name":"a","Options":{"com.docker.network.bridge.enable_icc":"false","com.docker.network.bridge.name":"br1"},"Internal":true}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var req apinetwork.CreateRequest
		if json.Unmarshal(body, &req) != nil {
			return
		}
		d, err := Definition(req)
		if err != nil {
			if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) && !fault.Is(err, fault.Denied) {
				t.Errorf("%s: %v", body, err)
			}
			return
		}
		n := Network(d)
		if n.Name != req.Name || n.Internal != req.Internal || n.Attachable != req.Attachable || len(n.Options) != len(req.Options) || len(n.Labels) != len(req.Labels) {
			t.Errorf("%s came back as %+v", body, n)
		}
	})
}

func TestBuiltins(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range Builtins(network.Definition{Bridge: "ferry0"}) {
		if !IsBuiltin(n) || len(n.ID) != 64 || seen[n.ID] {
			t.Errorf("%+v", n)
		}
		seen[n.ID] = true
	}
	if IsBuiltin(Network(network.Definition{ID: "x", Name: "bridge"})) {
		t.Error("another's network is taken for a built-in one")
	}
}
