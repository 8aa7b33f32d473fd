package cli

import (
	"net"
	"slices"
	"testing"

	"github.com/ferryos/ferry/internal/config"
)

// TestDoctorOnPorts has other programs on the ports of a Ferry that is down: on
// one address, and on all, where the bridge's does not exist yet.
func TestDoctorOnPorts(t *testing.T) {
	cfg := config.Default()
	cfg.RunDir, cfg.DataDir, cfg.Network.PodCIDR = t.TempDir(), t.TempDir(), "198.51.100.0/24"
	listen := func(addr string) (port int, free func()) {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return l.Addr().(*net.TCPAddr).Port, func() { l.Close() }
	}
	states := func() map[string]string {
		found := map[string]string{}
		for _, c := range (&env{}).examine(t.Context(), cfg) {
			if slices.Contains([]string{"api.port", "api.kubeletPort", "registry.port"}, c.Code) {
				found[c.Code] = c.State
			}
		}
		return found
	}
	var freeAPI, freeKubelet, freeRegistry func()
	cfg.API.Port, freeAPI = listen("127.0.0.1:0")
	cfg.API.KubeletPort, freeKubelet = listen(":0")
	cfg.Registry.Port, freeRegistry = listen("127.0.0.1:0")
	if got := states(); got["api.port"] != "error" || got["api.kubeletPort"] != "error" || got["registry.port"] != "error" {
		t.Errorf("all taken: %v", got)
	}
	freeAPI()
	freeKubelet()
	freeRegistry()
	if got := states(); got["api.port"] != "ok" || got["api.kubeletPort"] != "ok" || got["registry.port"] != "ok" {
		t.Errorf("all free: %v", got)
	}
}
