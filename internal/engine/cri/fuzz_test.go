package cri

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
)

// FuzzRequests: any message of the interface is translated or refused.
func FuzzRequests(f *testing.F) {
	ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
	users := &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids}, Network: runtimeapi.NamespaceMode_NODE}
	for _, m := range []proto.Message{
		&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, PortMappings: []*runtimeapi.PortMapping{{HostPort: 70000, HostIp: "::1"}},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: users}}},
		&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "i"}, StopSignal: 99,
			Envs: []*runtimeapi.KeyValue{nil, {Key: "=", Value: []byte{0}}}, Mounts: []*runtimeapi.Mount{nil, {Propagation: 7, UidMappings: ids, GidMappings: ids}}, Devices: []*runtimeapi.Device{nil},
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{nil}},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: users, RunAsGroup: &runtimeapi.Int64Value{Value: -1}, Apparmor: &runtimeapi.SecurityProfile{ProfileType: 9, LocalhostRef: "localhost/x"}}}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		var pod runtimeapi.PodSandboxConfig
		if proto.Unmarshal(data, &pod) == nil {
			if spec, err := podSpec(&pod, ""); err == nil && (spec.Name == "" || spec.Owner != engine.OwnerCRI) {
				t.Errorf("%+v", spec)
			}
		}
		var c runtimeapi.ContainerConfig
		if proto.Unmarshal(data, &c) != nil {
			return
		}
		for _, m := range c.Mounts { // a path that is missing is made
			if m != nil && m.HostPath != "" {
				m.HostPath = dir
			}
		}
		if s := c.GetLinux().GetSecurityContext().GetSeccomp(); s != nil && !strings.HasPrefix(s.LocalhostRef, dir) {
			s.LocalhostRef = dir // a file of the machine, which may have no end
		}
		spec, err := containerSpec(&c)
		if err == nil && (spec.Name == "" || spec.Image == "") {
			t.Errorf("%+v", spec)
		}
		_ = checkUsers(&c, usersIn(&pod))
	})
}

func usersIn(c *runtimeapi.PodSandboxConfig) *engine.Users {
	u, err := users(c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions())
	if err != nil {
		return nil
	}
	return u
}
