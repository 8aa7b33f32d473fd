package dockerapi_test

import (
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// dockerCommand returns a function that runs the real docker command and
// compares its exit code and, with a pattern, its output.
func dockerCommand(t *testing.T, a *api) func(args, out string, code int) string {
	t.Helper()
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs the docker command, version 28 or so")
	}
	dir := t.TempDir()
	env := append(os.Environ(), "DOCKER_HOST=unix://"+a.socket, "DOCKER_CONFIG="+dir, "HOME="+dir)
	return func(args, out string, code int) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec "$0" `+strings.ReplaceAll(args, "IMAGE", enginetest.Busybox), docker)
		cmd.Env = env
		got, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if cmd.ProcessState.ExitCode() != code || !regexp.MustCompile(`(?s)^(?:`+out+`)$`).Match(got) {
			t.Errorf("docker %s: code %d, want %d, %q\n%.700s", args, cmd.ProcessState.ExitCode(), code, out, got)
		}
		return strings.TrimSpace(string(got))
	}
}

// removeNetworks removes all networks at the end of the test, after the containers.
func removeNetworks(t *testing.T, a *api) {
	t.Cleanup(func() {
		for _, d := range a.machine.Network.Definitions() {
			if err := a.machine.Network.RemoveNetwork(t.Context(), d.ID); err != nil {
				t.Logf("remove network %s: %v", d.Name, err)
			}
		}
	})
}

const wait = ` sh -c 'trap "exit 0" TERM; sleep 1000 & wait'`

// TestNetworks drives networks by the real docker command.
func TestNetworks(t *testing.T) {
	a := newAPI(t)
	docker := dockerCommand(t, a)
	log := a.Events(t.Context(), client.EventsListOptions{})
	docker("network create --label a=b --subnet 10.99.0.0/24 --gateway 10.99.0.254 app", "[0-9a-f]{64}\n", 0)
	docker("network create app", ".*network with name app already exists.*", 1)
	docker("network create --internal inside", "[0-9a-f]{64}\n", 0)
	docker("network create --driver overlay x", ".*driver \"overlay\".*not supported.*", 1)
	docker("network create --ipv6 x", ".*IPv4.*", 1)
	docker("network create --subnet 10.99.0.0/25 x", ".*Pool overlaps.*", 1)
	docker("network create --opt com.docker.network.driver.mtu=big x", ".*mtu=big.*", 1)
	docker("network create host", ".*predefined host network.*", 1)
	docker("network rm bridge", ".*pre-defined network and cannot be removed.*", 1)
	docker("network rm nothing", ".*network nothing not found.*", 1)
	docker("network ls --format '{{.Name}} {{.Driver}} {{.Scope}}'", "app bridge local\nbridge bridge local\nhost host local\ninside bridge local\nnone null local\n", 0)
	for filter, want := range map[string]string{"type=builtin": "bridge\nhost\nnone\n", "type=custom": "app\ninside\n", "label=a=b": "app\n", "driver=null": "none\n",
		"name=^ins": "inside\n", "dangling=true": "app\ninside\n", "dangling=false": "bridge\nhost\nnone\n", "scope=swarm": ""} {
		docker("network ls --format '{{.Name}}' --filter '"+filter+"'", want, 0)
	}
	docker("network inspect -f '{{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}} {{.Internal}} {{.Labels.a}} {{len .Containers}}' app",
		"10.99.0.0/24 10.99.0.254 false b 0\n", 0)

	docker("run -d --name db --network app --network-alias store --ip 10.99.0.9 --mac-address 02:00:00:00:00:09 IMAGE"+wait, ".*", 0)
	docker("run -d --name web --network app -p 80 --add-host gate:host-gateway IMAGE"+wait, ".*", 0)
	docker("run -d --name plain IMAGE"+wait, ".*", 0)
	docker("inspect -f '{{with .NetworkSettings.Networks.app}}{{.IPAddress}} {{.MacAddress}} {{.Gateway}} {{.Aliases}} {{index .DNSNames 0}}{{end}}' db",
		"10.99.0.9 02:00:00:00:00:09 10.99.0.254 \\[store\\] db\n", 0)
	id := docker("inspect -f '{{.Id}}' db", ".*", 0)
	docker("network inspect -f '{{len .Containers}}{{with index .Containers \""+id+"\"}} {{.Name}} {{.IPv4Address}}{{end}}' app", "2 db 10.99.0.9/24\n", 0)
	for _, name := range []string{"db", "store", id[:12], "db.app"} {
		docker("exec web busybox nslookup "+name, ".*127.0.0.11.*10.99.0.9.*", 0)
	}
	docker("exec web busybox ping -c1 -W5 db", ".*1 packets received.*", 0)
	docker("exec web cat /etc/resolv.conf", ".*nameserver 127.0.0.11\n.*ndots:0.*", 0)
	docker("exec web busybox grep gate /etc/hosts", "10.99.0.254\tgate\n", 0)
	docker("exec web hostname", "[0-9a-f]{12}\n", 0)
	docker("exec plain busybox nslookup db", ".*", 1)
	docker("ps --format '{{.Names}}' --filter network=app", "web\ndb\n", 0)
	docker("run --rm --network app --ip 10.99.0.9 IMAGE true", ".*already in use.*", 125)
	docker("run --rm --network app --ip 10.98.0.9 IMAGE true", ".*not in the network's subnet.*", 125)
	docker("run --rm --network nothing IMAGE true", ".*network nothing not found.*", 125)

	docker("rename db database", "", 0)
	docker("exec web busybox nslookup database", ".*10.99.0.9.*", 0)
	docker("rename database db", "", 0)
	// A running container comes and goes.
	docker("network connect --alias friend app plain", "", 0)
	docker("network connect app plain", ".*already exists in network app.*", 1)
	docker("exec plain busybox ping -c1 -W5 db", ".*1 packets received.*", 0)
	docker("exec web busybox nslookup friend", ".*Address.*10.99.0.*", 0)
	docker("exec plain ls /sys/class/net", "eth0\neth1\nlo\n", 0)
	docker("network rm app", ".*has active endpoints.*", 1)
	docker("network disconnect app plain", "", 0)
	docker("network disconnect app plain", ".*is not connected to network app.*", 1)
	docker("exec plain ls /sys/class/net", "eth0\nlo\n", 0)
	docker("exec web busybox nslookup friend", ".*", 1)
	// And one that does not run, at its start.
	docker("create --name later IMAGE true", ".*", 0)
	docker("network connect --ip 10.99.0.77 app later", "", 0)
	docker("inspect -f '{{len .NetworkSettings.Networks}} {{.NetworkSettings.Networks.app.IPAMConfig.IPv4Address}} {{.NetworkSettings.Networks.app.IPAddress}}' later", "2 10.99.0.77 (invalid IP)?\n", 0)
	docker("network disconnect bridge later", "", 0)
	docker("network disconnect app later", "", 0)
	docker("start -a later", "", 0)

	// Sharing another's network, with its names.
	docker("run --rm --network container:db IMAGE sh -c 'busybox ip -4 addr show eth0; hostname; busybox nslookup web'", ".*10.99.0.9/24.*"+id[:12]+".*Address.*10.99.0.*", 0)
	docker("run --rm --network container:later IMAGE true", ".*cannot join network of a non running container.*", 125)
	docker("network connect app $($0 run -d --network none IMAGE sleep 9)", ".*private \\(none\\) mode.*", 1)
	// Links: in /etc/hosts on the bridge, by the resolver elsewhere.
	docker("run --rm --link plain:p IMAGE busybox ping -c1 -W5 p", ".*1 packets received.*", 0)
	docker("run --rm --network app --link db:d IMAGE busybox ping -c1 -W5 d", ".*1 packets received.*", 0)
	docker("run --rm --link later IMAGE true", ".*Cannot link to a non running container: /later.*", 125)
	docker("run --rm --link db IMAGE true", ".*Cannot link to /db, as it does not belong to the default network.*", 125)

	docker("run --rm --network inside IMAGE busybox ip route", "[^d]*10\\.[0-9.]+/28[^\n]*\n", 0)
	docker("rm -f db web plain", ".*", 0)
	docker("network prune -f", "Deleted Networks:\n(app\ninside|inside\napp)\n\n", 0)
	docker("network ls -q --filter type=custom", "", 0)

	var told []string
	for len(told) < 30 {
		select {
		case m := <-log.Messages:
			if m.Type == events.NetworkEventType {
				told = append(told, string(m.Action)+" "+m.Actor.Attributes["name"])
			}
			if m.Type == events.NetworkEventType && m.Action == events.ActionPrune {
				goto done
			}
		case err := <-log.Err:
			t.Fatal(err)
		}
	}
done:
	for _, want := range []string{"create app", "create inside", "connect app", "disconnect app", "connect bridge", "disconnect bridge", "destroy app", "destroy inside"} {
		if !slices.Contains(told, want) {
			t.Errorf("no event %q among %q", want, told)
		}
	}
}

// TestNetworksOutliveTheServer: names and networks are there after the daemon was gone.
func TestNetworksOutliveTheServer(t *testing.T) {
	a := newAPI(t)
	docker := dockerCommand(t, a)
	removeNetworks(t, a)
	docker("network create app", ".*", 0)
	docker("run -d --name db --network app IMAGE"+wait, ".*", 0)
	docker("run -d --name web --network app IMAGE"+wait, ".*", 0)
	before := docker("inspect -f '{{json .NetworkSettings.Networks}}' db", ".*", 0)
	a.stop()
	a.machine.Stop()
	a.machine.Start()
	a.start()
	docker("inspect -f '{{json .NetworkSettings.Networks}}' db", regexp.QuoteMeta(before)+"\n", 0)
	docker("exec web busybox nslookup db", ".*127.0.0.11.*", 0)
	docker("restart -t 0 db", "db\n", 0)
	docker("exec web busybox ping -c1 -W5 db", ".*1 packets received.*", 0)
	docker("rm -f db web", ".*", 0)
	docker("network rm app", "app\n", 0)
}

// TestNetworkRequests are bodies that no client of Docker's would send.
func TestNetworkRequests(t *testing.T) {
	a := newAPI(t)
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"POST", "/networks/create", `{`, 400, "request body"},
		{"POST", "/networks/create", `{}`, 400, "must match"},
		{"POST", "/networks/create", `{"Name":"../x"}`, 400, "must match"},
		{"POST", "/networks/create", `{"Name":"x","Driver":"null"}`, 403, "only one instance"},
		{"POST", "/networks/create", `{"Name":"x","Scope":"swarm"}`, 501, "across machines"},
		{"POST", "/networks/create", `{"Name":"x","ConfigOnly":true}`, 501, "swarm"},
		{"POST", "/networks/create", `{"Name":"x","Options":{"odd":"1"}}`, 501, "odd=1"},
		{"POST", "/networks/create", `{"Name":"x","IPAM":{"Driver":"other"}}`, 501, "ipam"},
		{"POST", "/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.99.0.0/24"},{"Subnet":"10.98.0.0/24"}]}}`, 501, "more than one"},
		{"POST", "/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.99.0.0/31"}]}}`, 400, "no IPv4 range"},
		{"POST", "/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"nothing"}]}}`, 400, "request body"},
		{"GET", "/networks?filters=%7B%22odd%22%3A%5B%221%22%5D%7D", "", 400, "not supported here"},
		{"GET", "/networks?filters=%7B%22type%22%3A%5B%22odd%22%5D%7D", "", 400, "invalid filter"},
		{"GET", "/networks/nothing", "", 404, "network nothing not found"},
		{"POST", "/networks/nothing/connect", `{"Container":"x"}`, 404, "network nothing not found"},
		{"POST", "/networks/bridge/connect", `{"Container":"x"}`, 404, "No such container"},
		{"POST", "/networks/bridge/disconnect", `{}`, 404, "No such container"},
	} {
		if got := a.do(tt.method, tt.path, tt.body); got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s %s %s: %d %q, want %d %q", tt.method, tt.path, tt.body, got.status, got.message, tt.status, tt.says)
		}
	}
	if got := a.do("GET", "/networks/"+strings.Repeat("0", 64), ""); got.status != http.StatusNotFound {
		t.Errorf("%+v", got)
	}
	if n := len(a.machine.Network.Definitions()); n != 0 {
		t.Errorf("%d networks were made", n)
	}
}

// TestNetworkSettingsRefused: what a container cannot have of networks is
// refused before anything is made.
func TestNetworkSettingsRefused(t *testing.T) {
	a := newAPI(t)
	image := `"Image":"` + enginetest.Busybox + `"`
	host := func(s string) string { return `{` + image + `,"HostConfig":{` + s + `}}` }
	for _, tt := range []struct {
		body   string
		status int
		says   string
	}{
		{`{` + image + `,"NetworkingConfig":{"EndpointsConfig":{"backend":{}}}}`, 400, "network backend not found"},
		{`{` + image + `,"NetworkingConfig":{"EndpointsConfig":{"bridge":{"Aliases":["x"]}}}}`, 400, "only for containers in user defined networks"},
		{`{` + image + `,"NetworkingConfig":{"EndpointsConfig":{"bridge":{"IPAMConfig":{"IPv4Address":"10.0.0.9"}}}}}`, 400, "user defined networks only"},
		{`{` + image + `,"NetworkingConfig":{"EndpointsConfig":{"bridge":{"DriverOpts":{"a":"b"}}}}}`, 501, "driver-opt"},
		{`{` + image + `,"NetworkingConfig":{"EndpointsConfig":{"host":{}}}}`, 400, "conflicting options"},
		{`{` + image + `,"HostConfig":{"NetworkMode":"host"},"NetworkingConfig":{"EndpointsConfig":{"bridge":{}}}}`, 400, "conflicting options"},
		{host(`"NetworkMode":"backend"`), 400, "network backend not found"},
		{host(`"NetworkMode":"container:x"`), 400, "No such container: x"},
		{host(`"NetworkMode":"container:x","Dns":["1.1.1.1"]`), 400, "conflicting options: dns"},
		{host(`"NetworkMode":"container:x","PublishAllPorts":true`), 400, "conflicting options: port publishing"},
		{host(`"NetworkMode":"host","Links":["a:b"]`), 400, "can't be used with links"},
		{host(`"Links":["a:b"]`), 400, "could not get container for a"},
		{host(`"Links":[":b"]`), 400, "bad format for links"},
	} {
		got := a.do("POST", "/v1.51/containers/create?name=refused", tt.body)
		if got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s: %d %q, want %d %q", tt.body, got.status, got.message, tt.status, tt.says)
		}
	}
	if pods := a.machine.Pods(t.Context(), ""); len(pods) != 0 {
		t.Errorf("%d pods are left", len(pods))
	}
}
