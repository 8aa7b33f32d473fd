package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/network"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

func i64(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

func TestUser(t *testing.T) {
	for _, c := range []struct {
		in   *runtimeapi.LinuxContainerSecurityContext
		want string
		kind fault.Kind
	}{
		{nil, "", fault.Internal},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: i64(0)}, "0", fault.Internal},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody"}, "nobody", fault.Internal},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody", RunAsUser: i64(7)}, "7", fault.Internal},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUser: i64(7), RunAsGroup: i64(0)}, "7:0", fault.Internal},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody", RunAsGroup: i64(8)}, "nobody:8", fault.Internal},
		{&runtimeapi.LinuxContainerSecurityContext{RunAsGroup: i64(8)}, "", fault.Invalid},
	} {
		got, err := user(c.in)
		if got != c.want || (err != nil) != (c.kind == fault.Invalid) || err != nil && !fault.Is(err, c.kind) {
			t.Errorf("%v: %q, %v; want %q", c.in, got, err, c.want)
		}
	}
}

func TestSecurity(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(profile, []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	seccomp := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.LinuxContainerSecurityContext {
		return &runtimeapi.LinuxContainerSecurityContext{Seccomp: &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}}
	}
	none := []string{}
	for name, c := range map[string]struct {
		in   *runtimeapi.LinuxContainerSecurityContext
		want engine.Security
	}{
		"nothing given": {nil, engine.Security{Seccomp: engine.SeccompUnconfined, MaskedPaths: none, ReadonlyPaths: none}},
		"runtime's seccomp profile": {seccomp(runtimeapi.SecurityProfile_RuntimeDefault, ""),
			engine.Security{Seccomp: engine.SeccompDefault, MaskedPaths: none, ReadonlyPaths: none}},
		"unconfined": {seccomp(runtimeapi.SecurityProfile_Unconfined, ""),
			engine.Security{Seccomp: engine.SeccompUnconfined, MaskedPaths: none, ReadonlyPaths: none}},
		"own seccomp profile": {seccomp(runtimeapi.SecurityProfile_Localhost, "localhost/"+profile),
			engine.Security{Seccomp: engine.SeccompLocalhost, SeccompProfile: []byte(`{}`), MaskedPaths: none, ReadonlyPaths: none}},
		"everything else": {&runtimeapi.LinuxContainerSecurityContext{
			Privileged: true, ReadonlyRootfs: true, NoNewPrivs: true, RunAsUser: i64(3), SupplementalGroups: []int64{4, 5},
			SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict,
			Capabilities:             &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}},
			MaskedPaths:              []string{"/m"}, ReadonlyPaths: []string{"/r"},
			Apparmor: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		}, engine.Security{Privileged: true, ReadonlyRootfs: true, NoNewPrivileges: true, User: "3", SupplementalGroups: []uint32{4, 5},
			StrictGroups: true, AddCaps: []string{"NET_ADMIN"}, DropCaps: []string{"ALL"}, Seccomp: engine.SeccompUnconfined,
			MaskedPaths: []string{"/m"}, ReadonlyPaths: []string{"/r"}}},
	} {
		got, err := security(c.in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	for name, c := range map[string]struct {
		in   *runtimeapi.LinuxContainerSecurityContext
		kind fault.Kind
	}{
		"missing profile": {seccomp(runtimeapi.SecurityProfile_Localhost, "localhost/"+profile+"-"), fault.Invalid},
		"ambient": {&runtimeapi.LinuxContainerSecurityContext{
			Capabilities: &runtimeapi.Capability{AddAmbientCapabilities: []string{"CHOWN"}}}, fault.Unsupported},
	} {
		if _, err := security(c.in); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNamespaceModes(t *testing.T) {
	const pod, ctr, node, target = runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_TARGET
	for _, c := range []struct {
		in                *runtimeapi.NamespaceOption
		network, pid, ipc engine.NamespaceMode
		kind              fault.Kind
	}{
		{in: nil},
		{in: &runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node}, network: engine.ModeHost, pid: engine.ModeHost, ipc: engine.ModeHost},
		{in: &runtimeapi.NamespaceOption{Pid: ctr}, pid: engine.ModeContainer},
		{in: &runtimeapi.NamespaceOption{Pid: target}, pid: engine.ModeContainer},
		{in: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: node}}},
		{in: &runtimeapi.NamespaceOption{Network: ctr}, kind: fault.Invalid},
		{in: &runtimeapi.NamespaceOption{Ipc: target}, kind: fault.Invalid},
	} {
		network, pid, ipc, err := namespaceModes(c.in)
		if c.kind != fault.Internal {
			if !fault.Is(err, c.kind) {
				t.Errorf("%v: %v", c.in, err)
			}
			continue
		}
		if err != nil || network != c.network || pid != c.pid || ipc != c.ipc {
			t.Errorf("%v: %q %q %q, %v", c.in, network, pid, ipc, err)
		}
	}
}

func TestUsers(t *testing.T) {
	ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 4096}}
	own := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	maps := []engine.IDMap{{Host: 65536, Size: 4096}}
	want := &engine.Users{UIDs: maps, GIDs: maps}
	for _, c := range []struct {
		in   *runtimeapi.UserNamespace
		want *engine.Users
		kind fault.Kind
	}{
		{in: nil},
		{in: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}},
		{in: own, want: want},
		{in: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}, kind: fault.Invalid},
		{in: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET}, kind: fault.Invalid},
	} {
		got, err := users(c.in)
		if diff := cmp.Diff(c.want, got); diff != "" || fault.KindOf(err) != c.kind {
			t.Errorf("%v: %v\n%s", c.in, err, diff)
		}
	}
	if diff := cmp.Diff(own.String(), usersOf(want).String()); diff != "" {
		t.Errorf("back again:\n%s", diff)
	}
	other := []*runtimeapi.IDMapping{{HostId: 1, Length: 4096}}
	context := func(u *runtimeapi.UserNamespace) *runtimeapi.LinuxContainerConfig {
		return &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: u}}}
	}
	for name, c := range map[string]struct {
		in  *runtimeapi.ContainerConfig
		pod *engine.Users
		bad bool
	}{
		"nothing said":       {in: &runtimeapi.ContainerConfig{}, pod: want},
		"the same":           {in: &runtimeapi.ContainerConfig{Linux: context(own), Mounts: []*runtimeapi.Mount{{UidMappings: ids, GidMappings: ids}}}, pod: want},
		"in the node's":      {in: &runtimeapi.ContainerConfig{Linux: context(own)}, bad: true},
		"out of the pod's":   {in: &runtimeapi.ContainerConfig{Linux: context(&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE})}, pod: want, bad: true},
		"mount, other ids":   {in: &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{UidMappings: other, GidMappings: ids}}}, pod: want, bad: true},
		"mount, node's user": {in: &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{UidMappings: ids, GidMappings: ids}}}, bad: true},
	} {
		if err := checkUsers(c.in, c.pod); (err != nil) != c.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMountSpec(t *testing.T) {
	dir := t.TempDir()
	link, missing := filepath.Join(dir, "link"), filepath.Join(dir, "made")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   *runtimeapi.Mount
		want engine.Mount
		kind fault.Kind
	}{
		"link": {in: &runtimeapi.Mount{HostPath: link, ContainerPath: "/c", Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			want: engine.Mount{Kind: engine.MountBind, Source: dir, Destination: "/c", ReadOnly: true, Propagation: "rshared"}},
		"not there": {in: &runtimeapi.Mount{HostPath: missing, ContainerPath: "/c"},
			want: engine.Mount{Kind: engine.MountBind, Source: missing, Destination: "/c", Propagation: "rprivate"}},
		"image": {in: &runtimeapi.Mount{ContainerPath: "/m", Image: &runtimeapi.ImageSpec{Image: "models:v1"}, ImageSubPath: "sub"},
			want: engine.Mount{Kind: engine.MountImage, Source: "models:v1", Destination: "/m", SubPath: "sub"}},
		"recursive": {in: &runtimeapi.Mount{HostPath: dir, ContainerPath: "/c", Readonly: true, RecursiveReadOnly: true},
			want: engine.Mount{Kind: engine.MountBind, Source: dir, Destination: "/c", ReadOnly: true, Recursive: true, Propagation: "rprivate"}},
		"recursive, writable":   {in: &runtimeapi.Mount{HostPath: dir, RecursiveReadOnly: true}, kind: fault.Invalid},
		"recursive, propagated": {in: &runtimeapi.Mount{HostPath: dir, Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, kind: fault.Invalid},
		"mapped":                {in: &runtimeapi.Mount{HostPath: dir, UidMappings: []*runtimeapi.IDMapping{{}}}, kind: fault.Invalid},
	} {
		got, err := mountSpec(c.in)
		if c.kind != fault.Internal {
			if !fault.Is(err, c.kind) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestResourcesBothWays(t *testing.T) {
	want := &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuQuota: 3, CpuPeriod: 4, MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 6, OomScoreAdj: -7,
		CpusetCpus: "0", CpusetMems: "0", HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 8}}, Unified: map[string]string{"memory.high": "9"}}
	var r engine.Resources
	applyResources(&r, want)
	got := resourcesOf(r).Linux
	if got.String() != want.String() {
		t.Errorf("%v\nwant %v", got, want)
	}
	applyResources(&r, &runtimeapi.LinuxContainerResources{CpuShares: 20})
	if r.CPUShares != 20 || r.CPUQuota != 3 || r.Memory != 5 {
		t.Errorf("after an update of one limit: %+v", r)
	}
}

func TestPodAndContainerSpec(t *testing.T) {
	pod, err := podSpec(&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "s", Uid: "u", Attempt: 1},
		Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"}, LogDirectory: "/log", Hostname: "h", DnsConfig: &runtimeapi.DNSConfig{},
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80}, {ContainerPort: 53, HostPort: 5353, Protocol: runtimeapi.Protocol_UDP, HostIp: "0.0.0.0"},
			{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}}}, "")
	want := engine.PodSpec{Owner: engine.OwnerCRI, Name: "n", Namespace: "s", UID: "u", Attempt: 1, Labels: map[string]string{"l": "1"},
		Annotations: map[string]string{"a": "2"}, LogDir: "/log", Hostname: "h", Ports: []network.PortMapping{
			{HostPort: 5353, ContainerPort: 53, Protocol: "udp"}, {HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1")}}}
	if diff := cmp.Diff(want, pod, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := podSpec(&runtimeapi.PodSandboxConfig{}, ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("no metadata: %v", err)
	}
	config := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"},
		Envs: []*runtimeapi.KeyValue{{Key: "K", Value: []byte("V=1")}}, StopSignal: runtimeapi.Signal_SIGNAL_SIGQUIT,
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "t"}}}}
	c, err := containerSpec(config)
	if err != nil || c.PIDTarget != "t" || c.StopSignal != "SIGQUIT" || len(c.Env) != 1 || c.Env[0] != "K=V=1" {
		t.Errorf("%+v, %v", c, err)
	}
	for number, name := range runtimeapi.Signal_name {
		s := runtimeapi.Signal(number)
		if got := signalOf(signalName(s)); number != 0 && got != s {
			t.Errorf("%s: %q, then %v", name, signalName(s), got)
		}
	}
	if got := signalName(runtimeapi.Signal_SIGNAL_SIGRTMINPLUS2); got != "SIGRTMIN+2" {
		t.Errorf("real-time signal: %q", got)
	}
	config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor/gpu=0"}}
	if _, err := containerSpec(config); !fault.Is(err, fault.Unsupported) {
		t.Errorf("CDI: %v", err)
	}
}

func TestCredential(t *testing.T) {
	both := store.Auth{Username: "u", Password: "p:q"}
	for name, c := range map[string]struct {
		in   *runtimeapi.AuthConfig
		want store.Auth
		kind fault.Kind
	}{
		"none":     {},
		"plain":    {in: &runtimeapi.AuthConfig{Username: "u", Password: "p:q"}, want: both},
		"encoded":  {in: &runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("u:p:q"))}, want: both},
		"identity": {in: &runtimeapi.AuthConfig{IdentityToken: "t"}, want: store.Auth{Password: "t"}},
		"broken":   {in: &runtimeapi.AuthConfig{Auth: "?"}, kind: fault.Invalid},
		"registry": {in: &runtimeapi.AuthConfig{RegistryToken: "t"}, kind: fault.Unsupported},
	} {
		got, err := credential(c.in)
		if got != c.want || (err != nil) != (c.kind != fault.Internal) || err != nil && !fault.Is(err, c.kind) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestStatusCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK}, {errors.New("x"), codes.Unknown}, {fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled}, {fault.New(fault.NotFound, "x"), codes.NotFound}, {fault.New(fault.Invalid, "x"), codes.InvalidArgument},
		{fault.New(fault.Conflict, "x"), codes.FailedPrecondition}, {fault.New(fault.Denied, "x"), codes.PermissionDenied},
		{fault.New(fault.Unavailable, "x"), codes.Unavailable}, {fault.New(fault.Unsupported, "x"), codes.Unimplemented},
		{status.Error(codes.AlreadyExists, "x"), codes.AlreadyExists}, {timeoutError{[]string{"c"}, time.Second}, codes.DeadlineExceeded},
	} {
		if got := status.Code(asStatus(c.err)); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
	if !errors.Is(timeoutError{}, criclient.ErrCommandTimedOut) {
		t.Error("the kubelet's probes do not know a timeout")
	}
	if ignoreNotFound(asStatus(fault.New(fault.NotFound, "x"))) != nil || ignoreNotFound(asStatus(fault.New(fault.Denied, "x"))) == nil {
		t.Error("ignoreNotFound")
	}
}

func TestTablesOfProc(t *testing.T) {
	got := userOf("Name:\tsh\nUid:\t1\t1000\t1\t1\nGid:\t1\t100\t1\t1\nGroups:\t5000 20 \n")
	want := &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{Uid: 1000, Gid: 100, SupplementalGroups: []int64{20, 100, 5000}}}
	if got.String() != want.String() {
		t.Errorf("%v, want %v", got, want)
	}
	if got := userOf("Name: x\n"); got != nil {
		t.Errorf("no user: %v", got)
	}
	usage, err := networkUsage("Inter-|   Receive\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n")
	if err != nil || len(usage.Interfaces) != 1 {
		t.Fatalf("%v, %v", usage, err)
	}
	if i := usage.DefaultInterface; i.RxBytes.Value != 1 || i.RxErrors.Value != 3 || i.TxBytes.Value != 9 || i.TxErrors.Value != 11 {
		t.Errorf("counters: %v", i)
	}
}

func TestStopGrace(t *testing.T) {
	thirty := 30 * time.Second
	for annotation, want := range map[string]*time.Duration{"30": &thirty, "": nil, "soon": nil} {
		spec, err := containerSpec(&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
			Image: &runtimeapi.ImageSpec{Image: "i"}, Annotations: map[string]string{gracePeriod: annotation}})
		if err != nil || !cmp.Equal(spec.StopGrace, want) {
			t.Errorf("%q: %v, %v", annotation, spec.StopGrace, err)
		}
	}
}
