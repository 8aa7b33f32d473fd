package dockerapi_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

func pointer[T any](v T) *T { return &v }

// TestSettings makes containers in many ways and has each say what it sees.
func TestSettings(t *testing.T) {
	a := newAPI(t)
	bridge := bridgeOf(t, a.machine)
	status := func(field string) string {
		return "while read k v; do case $k in " + field + ":) echo $v;; esac; done < /proc/self/status"
	}
	limit := func(v1, v2 string) string {
		return fmt.Sprintf("cat /sys/fs/cgroup/%s 2>/dev/null || cat /sys/fs/cgroup/%s", v1, v2)
	}
	for _, tt := range []struct {
		name   string
		script string
		set    func(*container.Config, *container.HostConfig)
		want   string
	}{
		{"environment", "echo $A, $FROM, $HOME", func(c *container.Config, _ *container.HostConfig) { c.Env = []string{"A=b=c", "HOME=/x"} }, "b=c, image, /x\n"},
		{"environment taken away", "echo ${FROM-none}", func(c *container.Config, _ *container.HostConfig) { c.Env = []string{"FROM"} }, "none\n"},
		{"directory", "pwd", func(c *container.Config, _ *container.HostConfig) { c.WorkingDir = "/made/for/it" }, "/made/for/it\n"},
		{"user by name", "id", func(c *container.Config, _ *container.HostConfig) { c.User = "user" }, "uid=1000(user) gid=1000(user) groups=1000(user),1001(extra)\n"},
		{"user by number", "id -u; id -g", func(c *container.Config, h *container.HostConfig) { c.User, h.GroupAdd = "12:34", []string{"56"} }, "12\n34\n"},
		{"groups by name", "id -G", func(c *container.Config, h *container.HostConfig) { h.GroupAdd = []string{"extra", "56"} }, "0 56 1001\n"},
		{"domain name", "cat /proc/sys/kernel/domainname", func(c *container.Config, _ *container.HostConfig) { c.Domainname = "example.org" }, "example.org\n"},
		{"reservation", limit("memory/memory.soft_limit_in_bytes", "memory.low"), func(_ *container.Config, h *container.HostConfig) { h.MemoryReservation = 32 << 20 }, "33554432\n"},
		{"device rule", "mknod /z c 1 5 && head -c 3 /z | wc -c; mknod /k c 1 11 && head -c 1 /k || echo refused", func(_ *container.Config, h *container.HostConfig) {
			h.DeviceCgroupRules = []string{"c 1:5 rwm"}
		}, "3\nrefused\n"},
		{"host name", "hostname; cat /etc/hostname", func(c *container.Config, _ *container.HostConfig) { c.Hostname = "boat" }, "boat\nboat\n"},
		{"host name and domain", "hostname; grep boat /etc/hosts | cut -f2", func(c *container.Config, _ *container.HostConfig) {
			c.Hostname, c.Domainname = "boat", "example.org"
		}, "boat\nboat.example.org boat\n"},
		{"host name with a domain", "hostname; grep boat /etc/hosts | cut -f2", func(c *container.Config, _ *container.HostConfig) { c.Hostname = "boat.example.org" },
			"boat.example.org\nboat.example.org boat\n"},
		{"entrypoint", "", func(c *container.Config, _ *container.HostConfig) {
			c.Entrypoint, c.Cmd = []string{"echo", "a"}, []string{"b"}
		}, "a b\n"},
		{"entrypoint reset", "", func(c *container.Config, _ *container.HostConfig) {
			c.Entrypoint, c.Cmd = []string{""}, []string{"echo", "c"}
		}, "c\n"},
		{"memory", limit("memory/memory.limit_in_bytes", "memory.max"), func(_ *container.Config, h *container.HostConfig) { h.Memory = 64 << 20 }, "67108864\n"},
		{"processes", limit("pids/pids.max", "pids.max"), func(_ *container.Config, h *container.HostConfig) { h.PidsLimit = pointer(int64(50)) }, "50\n"},
		{"shares", limit("cpu/cpu.shares", "cpu.weight"), func(_ *container.Config, h *container.HostConfig) { h.CPUShares = 512 }, "512\n"},
		{"quota", limit("cpu/cpu.cfs_quota_us", "cpu.max"), func(_ *container.Config, h *container.HostConfig) { h.NanoCPUs = 5e8 }, "50000\n"},
		{"period", limit("cpu/cpu.cfs_period_us", "cpu.max"), func(_ *container.Config, h *container.HostConfig) { h.CPUPeriod, h.CPUQuota = 50000, 25000 }, "50000\n"},
		{"period alone", limit("cpu/cpu.cfs_period_us", "cpu.max"), func(_ *container.Config, h *container.HostConfig) { h.CPUPeriod = 50000 }, "50000\n"},
		{"processors", status("Cpus_allowed_list"), func(_ *container.Config, h *container.HostConfig) { h.CpusetCpus = "0" }, "0\n"},
		{"open files", "ulimit -n", func(_ *container.Config, h *container.HostConfig) {
			h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}
		}, "100\n"},
		{"likelier killed", "cat /proc/self/oom_score_adj", func(_ *container.Config, h *container.HostConfig) { h.OomScoreAdj = 500 }, "500\n"},
		{"read-only root", "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", func(_ *container.Config, h *container.HostConfig) { h.ReadonlyRootfs = true }, "refused\nshm\n"},
		{"default capabilities", status("CapEff"), func(_ *container.Config, h *container.HostConfig) {}, "00000000a80425fb\n"},
		{"one more", status("CapEff"), func(_ *container.Config, h *container.HostConfig) { h.CapAdd = []string{"NET_ADMIN"} }, "00000000a80435fb\n"},
		{"none but", status("CapEff"), func(_ *container.Config, h *container.HostConfig) {
			h.CapDrop, h.CapAdd = []string{"ALL"}, []string{"chown"}
		}, "0000000000000001\n"},
		{"one less", "hostname x 2>/dev/null || echo refused; " + status("CapEff"), func(_ *container.Config, h *container.HostConfig) { h.CapDrop = []string{"CAP_CHOWN"} }, "refused\n00000000a80425fa\n"},
		{"no new privileges", status("NoNewPrivs"), func(_ *container.Config, h *container.HostConfig) { h.SecurityOpt = []string{"no-new-privileges"} }, "1\n"},
		{"no filter", status("Seccomp"), func(_ *container.Config, h *container.HostConfig) { h.SecurityOpt = []string{"seccomp=unconfined"} }, "0\n"},
		{"a filter", "mkdir /no; echo $?", func(_ *container.Config, h *container.HostConfig) {
			h.SecurityOpt = []string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`}
		}, "1\n"},
		{"privileged", status("Seccomp") + "; test -c /dev/kmsg || test -b /dev/vda && echo devices; touch /proc/sys/kernel/domainname && echo writable",
			func(_ *container.Config, h *container.HostConfig) { h.Privileged = true }, "0\ndevices\nwritable\n"},
		{"device", "test -c /dev/nothing && echo there", func(_ *container.Config, h *container.HostConfig) {
			h.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nothing"}}
		}, "there\n"},
		{"no network", "ls /sys/class/net", func(_ *container.Config, h *container.HostConfig) { h.NetworkMode = "none" }, "lo\n"},
		{"the host's network", "ls -d /sys/class/net/" + bridge, func(_ *container.Config, h *container.HostConfig) { h.NetworkMode = "host" }, "/sys/class/net/" + bridge + "\n"},
		{"kernel parameter", "cat /proc/sys/net/ipv4/ip_default_ttl", func(_ *container.Config, h *container.HostConfig) {
			h.Sysctls = map[string]string{"net.ipv4.ip_default_ttl": "77"}
		}, "77\n"},
		{"shared memory", "busybox df -k /dev/shm | while read fs size rest; do echo $size; done", func(_ *container.Config, h *container.HostConfig) { h.ShmSize = 2 << 20 }, "1K-blocks\n2048\n"},
		{"the host's processes", "test -d /proc/" + strconv.Itoa(os.Getpid()) + " && echo seen", func(_ *container.Config, h *container.HostConfig) { h.PidMode = "host" }, "seen\n"},
		{"own processes", "echo $$", func(*container.Config, *container.HostConfig) {}, "1\n"},
		{"name servers", "cat /etc/resolv.conf", func(_ *container.Config, h *container.HostConfig) {
			h.DNS, h.DNSSearch, h.DNSOptions = []netip.Addr{netip.MustParseAddr("9.8.7.6")}, []string{"a.test"}, []string{"ndots:2"}
		}, "search a.test\nnameserver 9.8.7.6\noptions ndots:2\n"},
		{"hosts", "busybox grep -wE 'db|six' /etc/hosts", func(_ *container.Config, h *container.HostConfig) {
			h.ExtraHosts = []string{"db:10.1.2.3", "six:[::1]"}
		}, "10.1.2.3\tdb\n::1\tsix\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := shell(tt.script)
			tt.set(&s.config, &s.host)
			if r := a.run(s); r.out != tt.want {
				t.Errorf("%q (%q, %d), want %q", r.out, r.err, r.code, tt.want)
			}
		})
	}
}

// bridgeOf is the name of the machine's interface that has the gateway's address.
func bridgeOf(t *testing.T, m *enginetest.Machine) string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			continue // gone since the listing: other tests make and remove theirs
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.String() == m.Network.Gateway().String() {
				return l.Name
			}
		}
	}
	t.Fatal("no interface has the gateway's address")
	return ""
}

func TestMemoryLimit(t *testing.T) {
	a := newAPI(t)
	s := shell("x=$(yes 0123456789abcde | head -c 60000000); echo survived")
	s.host.Memory = 16 << 20
	r := a.run(s)
	if c := a.inspect(r.id); !c.State.OOMKilled || r.code != 137 || r.out != "" {
		t.Errorf("%+v, %+v", r, c.State)
	}
}

// echoServer answers every connection with what it says.
const echoServer = "echo ready; while :; do busybox nc -l -p 80 -e cat; done"

func TestPublish(t *testing.T) {
	a := newAPI(t)
	s := shell(echoServer)
	s.name = "web"
	web, spare := network.MustParsePort("80/tcp"), network.MustParsePort("81/udp")
	s.config.ExposedPorts = network.PortSet{web: {}, spare: {}}
	s.host.PortBindings = network.PortMap{web: {{}, {HostIP: netip.MustParseAddr("127.0.0.1")}}}
	id := a.up(s)
	a.awaitOutput(id, "ready")
	c := a.inspect(id)
	bound := c.NetworkSettings.Ports[web]
	if got, exposed := c.NetworkSettings.Ports[spare]; len(bound) != 2 || !exposed || got != nil {
		t.Fatalf("%+v", c.NetworkSettings.Ports)
	}
	for _, b := range bound {
		if got := talk(t, net.JoinHostPort("127.0.0.1", b.HostPort)); got != "hello" {
			t.Errorf("%v: %q", b, got)
		}
	}
	addr := c.NetworkSettings.Networks["bridge"].IPAddress
	if got := talk(t, net.JoinHostPort(addr.String(), "80")); got != "hello" {
		t.Errorf("%v: %q", addr, got)
	}
	list, err := a.ContainerList(t.Context(), client.ContainerListOptions{})
	if err != nil || len(list.Items) != 1 || len(list.Items[0].Ports) != 3 || list.Items[0].Ports[0].PrivatePort != 80 || list.Items[0].Ports[2].PublicPort != 0 {
		t.Errorf("%+v, %v", list.Items, err)
	}
	// A port is taken at the start and not before: two containers may be made
	// for one port, of which one runs.
	taken := shell("true")
	taken.name = "taken"
	taken.host.PortBindings = network.PortMap{web: {{HostPort: bound[0].HostPort}}}
	a.create(taken)
	if got := a.do("POST", "/containers/taken/start", ""); got.status != http.StatusConflict ||
		!strings.HasPrefix(got.message, "driver failed programming external connectivity on endpoint taken (") ||
		!strings.Contains(got.message, "): Bind for 0.0.0.0:"+bound[0].HostPort+" failed: port is already allocated\nhint: ") {
		t.Errorf("a port that is taken: %+v", got)
	}
	if c := a.inspect("taken"); c.State.Status != container.StateCreated {
		t.Errorf("one that could not begin is %s", c.State.Status)
	}
	taken.name, taken.host.AutoRemove = "gone", true
	a.create(taken)
	if got := a.do("POST", "/containers/gone/start", ""); got.status != http.StatusConflict {
		t.Errorf("a port that is taken, with --rm: %+v", got)
	}
	if got := a.do("GET", "/containers/gone/json", ""); got.status != http.StatusNotFound {
		t.Errorf("one with --rm that could not begin is left: %+v", got)
	}
	elsewhere := shell("true")
	elsewhere.name = "elsewhere"
	elsewhere.host.PortBindings = network.PortMap{web: {{HostIP: netip.MustParseAddr("192.0.2.1")}}}
	a.create(elsewhere)
	if got := a.do("POST", "/containers/elsewhere/start", ""); got.status != http.StatusBadRequest || !strings.Contains(got.message, "not one of this machine's") {
		t.Errorf("an address of another machine: %+v", got)
	}
	first, err := strconv.Atoi(bound[0].HostPort)
	if err != nil {
		t.Fatal(err)
	}
	ranged := sleeper("ranged")
	ranged.host.PortBindings = network.PortMap{web: {{HostPort: fmt.Sprintf("%d-%d", first, min(first+20, 65535))}}}
	c = a.inspect(a.up(ranged))
	if got := c.NetworkSettings.Ports[web]; len(got) != 1 || got[0].HostPort <= bound[0].HostPort || len(got[0].HostPort) > 5 {
		t.Errorf("the first free port from %d: %+v", first, got)
	}
	if _, err := a.ContainerStop(t.Context(), id, client.ContainerStopOptions{Timeout: seconds(0)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a stopped container's port is free", func() bool {
		l, err := net.Listen("tcp", ":"+bound[0].HostPort)
		if err == nil {
			l.Close()
		}
		return err == nil
	})
	a.startContainer(id)
	all := shell("echo ready; sleep 1000")
	all.config.ExposedPorts, all.host.PublishAllPorts = network.PortSet{web: {}}, true
	if c := a.inspect(a.up(all)); len(c.NetworkSettings.Ports[web]) != 1 || c.NetworkSettings.Ports[web][0].HostPort == "0" {
		t.Errorf("-P: %+v", c.NetworkSettings.Ports)
	}
}

// talk says hello to an echo server, which may not listen yet, and returns its answer.
func talk(t *testing.T, addr string) string {
	t.Helper()
	var got string
	eventually(t, addr+" answers", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return false
		}
		var buf [5]byte
		n, _ := io.ReadFull(conn, buf[:])
		got = string(buf[:n])
		return n > 0
	})
	return got
}

// TestHostGateway: a container reaches this machine by the name people give it.
func TestHostGateway(t *testing.T) {
	a := newAPI(t)
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "the host\n")
			conn.Close()
		}
	}()
	s := shell(fmt.Sprintf("busybox nc host.docker.internal %d", l.Addr().(*net.TCPAddr).Port))
	s.host.ExtraHosts = []string{"host.docker.internal:host-gateway"}
	r := a.run(s)
	if r.out != "the host\n" {
		t.Errorf("%+v", r)
	}
}

// TestRefused: what cannot be made is refused before anything is made.
func TestRefused(t *testing.T) {
	a := newAPI(t)
	image := `"Image":"` + enginetest.Busybox + `"`
	host := func(s string) string { return `{` + image + `,"HostConfig":{` + s + `}}` }
	for _, tt := range []struct {
		body   string
		status int
		says   string
	}{
		{``, 400, "no image given"},
		{`{}`, 400, "no image given"},
		{`null`, 400, "no image given"},
		{`{`, 400, "request body"},
		{`[]`, 400, "request body"},
		{`{"Image":7}`, 400, "request body"},
		{`{` + image + `} trailing`, 400, "request body"},
		{`{"Image":"nothing"}`, 404, "No such image: nothing:latest"},
		{`{"Image":"not a name"}`, 404, "No such image: not a name"},
		{`{` + image + `,"Entrypoint":[""]}`, 400, "no command"},
		{`{` + image + `,"WorkingDir":"here"}`, 400, "needs to be an absolute path"},
		{`{` + image + `,"Env":["=x"]}`, 400, "invalid environment variable"},
		{`{` + image + `,"StopSignal":"NOTHING"}`, 400, `stop signal "NOTHING"`},
		{`{` + image + `,"Volumes":{"data":{}}}`, 400, "absolute path"},
		{`{` + image + `,"Healthcheck":{"Test":["CMD","true"],"Interval":3}}`, 400, "Interval in Healthcheck cannot be less than 1ms"},
		{`{` + image + `,"Healthcheck":{"Test":["true"]}}`, 400, "unknown type"},
		{host(`"RestartPolicy":{"Name":"often"}`), 400, "unknown policy 'often'"},
		{host(`"RestartPolicy":{"Name":"always","MaximumRetryCount":2}`), 400, "maximum retry count can only be used with 'on-failure'"},
		{host(`"RestartPolicy":{"Name":"always"},"AutoRemove":true`), 400, "can't create 'AutoRemove' container with restart policy"},
		{`{` + image + `,"MacAddress":"02:00:00:00:00:01"}`, 501, "MacAddress"},
		{host(`"Unheard":{"of":1}`), 501, "Unheard"},
		{host(`"PidMode":"other"`), 400, "invalid PID mode"},
		{host(`"PidMode":"container:x"`), 400, "No such container: x"},
		{host(`"IpcMode":"other"`), 400, "invalid IPC mode"},
		{host(`"IpcMode":"container:x"`), 400, "No such container: x"},
		{host(`"UTSMode":"mine"`), 400, "invalid UTS mode"},
		{host(`"CgroupnsMode":"mine"`), 400, "invalid cgroup namespace mode"},
		{host(`"Runtime":"runsc"`), 400, "unknown or invalid runtime name: runsc"},
		{host(`"DeviceCgroupRules":["c 1:3"]`), 400, "invalid device cgroup rule format"},
		{`{` + image + `,"Hostname":"h","HostConfig":{"UTSMode":"host"}}`, 400, "conflicting options: hostname and the UTS mode"},
		{host(`"StorageOpt":{"size":"1G"}`), 501, "not supported yet: --storage-opt (StorageOpt)"},
		{host(`"DeviceRequests":[{"Count":-1}]`), 400, "could not select device driver"},
		{host(`"CapAdd":["FLY"]`), 400, `unknown capability "CAP_FLY"`},
		{host(`"CapDrop":["FLY"]`), 400, `unknown capability`},
		{host(`"SecurityOpt":["apparmor=x"]`), 501, "AppArmor profile x"},
		{host(`"SecurityOpt":["seccomp={"]`), 400, "not JSON"},
		{host(`"Memory":4096`), 400, "Minimum memory limit allowed is 6MB"},
		{host(`"Memory":-1`), 400, "Minimum memory limit"},
		{host(`"MemorySwap":1000`), 400, "--memory-swap"},
		{host(`"Memory":67108864,"MemorySwap":-2`), 400, "--memory-swap"},
		{host(`"NanoCpus":1`), 400, "range of CPUs"},
		{host(`"NanoCpus":1000000000000`), 400, "range of CPUs"},
		{host(`"NanoCpus":1000000000,"CpuQuota":1000`), 400, "--cpus"},
		{host(`"CpuPeriod":1`), 400, "--cpu-period"},
		{host(`"CpuQuota":1`), 400, "--cpu-quota"},
		{host(`"CpuShares":-1`), 400, "--cpu-shares"},
		{host(`"OomScoreAdj":1001`), 400, "--oom-score-adj"},
		{host(`"ShmSize":-1`), 400, "--shm-size"},
		{host(`"Ulimits":[null]`), 400, "--ulimit"},
		{host(`"Ulimits":[{"Name":"odd","Soft":1,"Hard":1}]`), 400, "--ulimit odd=1:1"},
		{host(`"Ulimits":[{"Name":"nofile","Soft":2,"Hard":1}]`), 400, "--ulimit nofile=2:1"},
		{host(`"LogConfig":{"Type":"syslog"}`), 501, "--log-driver syslog"},
		{host(`"LogConfig":{"Config":{"compress":"true"}}`), 501, "--log-opt compress"},
		{host(`"LogConfig":{"Config":{"max-size":"big"}}`), 400, "max-size=big"},
		{host(`"LogConfig":{"Config":{"max-size":"-1m"}}`), 400, "max-size=-1m"},
		{host(`"LogConfig":{"Config":{"max-file":"few"}}`), 400, "max-file=few"},
		{host(`"Dns":[""]`), 400, "--dns"},
		{host(`"Dns":["x"]`), 400, "request body"},
		{host(`"ExtraHosts":["db"]`), 400, "--add-host db"},
		{host(`"ExtraHosts":[":1.2.3.4"]`), 400, "no name"},
		{host(`"PortBindings":{"80/tcp":[{"HostPort":"x"}]}`), 400, `"x" is not a port`},
		{host(`"PortBindings":{"80/tcp":[{"HostPort":"2-1"}]}`), 400, "not a port"},
		{host(`"PortBindings":{"80/tcp":[{"HostPort":"0-9"}]}`), 400, "not a port"},
		{host(`"PortBindings":{"0/tcp":[{}]}`), 400, "container port"},
		{host(`"PortBindings":{"80/icmp":[{}]}`), 400, "icmp"},
		{host(`"PortBindings":{"80/tcp":[{"HostIp":"::1"}]}`), 501, "IPv6"},
	} {
		got := a.do("POST", "/v1.51/containers/create?name=refused", tt.body)
		if got.status != tt.status || !strings.Contains(got.message, tt.says) {
			t.Errorf("%s: %d %q, want %d %q", tt.body, got.status, got.message, tt.status, tt.says)
		}
	}
	for query, want := range map[string]struct {
		status int
		says   string
	}{
		"platform=linux/s390x": {501, "platform linux/s390x"}, "platform=windows": {501, "platform windows"},
		"name=x": {400, "Invalid container name (x)"}, "name=-no": {400, "Invalid container name"}, "name=a%20b": {400, "Invalid container name"},
	} {
		if got := a.do("POST", "/containers/create?"+query, `{`+image+`}`); got.status != want.status || !strings.Contains(got.message, want.says) {
			t.Errorf("%s: %+v", query, got)
		}
	}
	if pods := a.machine.Pods(t.Context(), ""); len(pods) != 0 {
		t.Errorf("%d pods are left", len(pods))
	}
}

func TestNames(t *testing.T) {
	a := newAPI(t)
	web := a.create(spec{name: "web", config: container.Config{Image: enginetest.Busybox}})
	got := a.do("POST", "/containers/create?name=/web", `{"Image":"`+enginetest.Busybox+`"}`)
	if got.status != http.StatusConflict || !strings.Contains(got.message, `The container name "/web" is already in use by container "`+web+`"`) {
		t.Errorf("%+v", got)
	}
	// Of many who want one name at once, one gets it.
	statuses := make(chan int)
	for range 8 {
		go func() {
			statuses <- a.do("POST", "/containers/create?name=wanted", `{"Image":"`+enginetest.Busybox+`"}`).status
		}()
	}
	count := map[int]int{}
	for range 8 {
		count[<-statuses]++
	}
	if count[201] != 1 || count[409] != 7 {
		t.Errorf("%v", count)
	}
	random := a.inspect(a.create(spec{config: container.Config{Image: enginetest.Busybox}})).Name
	if !strings.HasPrefix(random, "/") || !strings.Contains(random, "_") {
		t.Errorf("a name by chance: %q", random)
	}
	for _, key := range []string{"web", "/web", web, web[:12], web[:6]} {
		if c := a.inspect(strings.TrimPrefix(key, "/")); c.ID != web || c.Name != "/web" {
			t.Errorf("%s: %+v", key, c)
		}
	}
	// A name goes before the beginning of an ID.
	other := a.create(spec{name: web[:12], config: container.Config{Image: enginetest.Busybox}})
	if c := a.inspect(web[:12]); c.ID != other {
		t.Errorf("%s is %s", web[:12], c.ID)
	}
	if _, err := a.ContainerRemove(t.Context(), "web", client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	a.create(spec{name: "web", config: container.Config{Image: enginetest.Busybox}})
}

func TestCreateWarnings(t *testing.T) {
	a := newAPI(t)
	res, err := a.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: &container.Config{Image: enginetest.Busybox},
		HostConfig: &container.HostConfig{NetworkMode: "host", PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "80"}}}}})
	if err != nil || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "Published ports are discarded when using host network mode") {
		t.Errorf("%+v, %v", res, err)
	}
	if got := a.do("POST", "/containers/create", `{"Image":"`+enginetest.Busybox+`"}`); got.status != 201 || !strings.Contains(got.body, `"Warnings":[]`) {
		t.Errorf("%+v", got)
	}
}
