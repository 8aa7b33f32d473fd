package kube

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func testCluster(t *testing.T) *Cluster {
	t.Helper()
	dir := t.TempDir()
	return New(Options{DataDir: dir, RunDir: dir, NodeName: "n", Gateway: netip.MustParseAddr("10.1.0.1"), PodCIDR: netip.MustParsePrefix("10.1.0.0/24"),
		ServiceCIDR: netip.MustParsePrefix("10.2.0.0/24"), ClusterDomain: "cluster.local", APIPort: 6443, AdminKubeconfig: filepath.Join(dir, "admin"),
		Context: "c", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

// What the cluster holds already is not written again: a policy that refuses
// writes must not keep the node from coming up.
func TestEnsureWritesOnlyDifferences(t *testing.T) {
	ctx := t.Context()
	client := fake.NewClientset()
	c := testCluster(t)
	c.client = client
	put := func(port int) error {
		return errors.Join(c.ensureDNSObjects(ctx), c.EnsureService(ctx, "kube-system", "registry", 5000, port),
			c.EnsureSecret(ctx, "default", "s", v1.SecretTypeOpaque, map[string][]byte{"a": []byte("b")}),
			c.EnsureConfigMap(ctx, "default", "m", map[string]string{"port": "x"}))
	}
	if err := put(5000); err != nil {
		t.Fatal(err)
	}
	refuse := func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("refused by a policy")
	}
	client.PrependReactor("create", "*", refuse)
	client.PrependReactor("update", "*", refuse)
	if err := put(5000); err != nil {
		t.Errorf("wrote what was right already: %v", err)
	}
	if err := put(5001); err == nil || strings.Count(err.Error(), "refused by a policy") != 1 || !strings.Contains(err.Error(), "endpoints of service registry") {
		t.Errorf("another port is one write, to the endpoints alone; got %v", err)
	}
}

func TestKeepTriesUntilDone(t *testing.T) {
	c := testCluster(t)
	tries := make(chan error, 1)
	failed := false
	c.Keep(t.Context(), "something", func(context.Context) error {
		if !failed {
			failed = true
			return errors.New("not yet")
		}
		tries <- nil
		return nil
	})
	select {
	case <-tries:
	case <-time.After(3 * keepEvery):
		t.Error("not tried again")
	}
	c.parts.Wait()
}

func TestKeysStay(t *testing.T) {
	c := testCluster(t)
	first, err := c.loadKeys()
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.loadKeys()
	if err != nil {
		t.Fatal(err)
	}
	if string(first.caPEM) != string(second.caPEM) || !reflect.DeepEqual(first.caKey, second.caKey) {
		t.Error("the authority was made anew: every kubeconfig that people have would be void")
	}
	for _, name := range []string{"ca.key", "sa.key", "encryption.yaml"} {
		info, err := os.Stat(first.path(name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, info, err)
		}
	}
	if err := os.WriteFile(first.path("ca.key"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.loadKeys(); err == nil || !strings.Contains(err.Error(), "ca.key") {
		t.Errorf("a damaged key must be named, got %v", err)
	}
}

func TestMultiListener(t *testing.T) {
	var list []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	m := newMultiListener(list)
	for _, l := range list {
		out, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := m.Accept()
		if err != nil {
			t.Fatal(err)
		}
		in.Close()
		out.Close()
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Accept(); err == nil {
		t.Error("accepts after Close")
	}
	if _, err := net.Dial("tcp", list[1].Addr().String()); err == nil {
		t.Error("listens after Close")
	}
}

// A Kubernetes whose fields have other names or types must be noticed.
func TestReplace(t *testing.T) {
	type inner struct{ wait time.Duration }
	type outer struct {
		direct any
		other  int
	}
	o := &outer{direct: &inner{time.Second}, other: 1}
	v := reflect.ValueOf(o).Elem()
	half := func(d time.Duration) time.Duration { return d / 2 }
	if err := replace(v, half, "direct", "wait"); err != nil || o.direct.(*inner).wait != time.Second/2 {
		t.Errorf("%v, %v", o.direct, err)
	}
	for _, path := range [][]string{{"none"}, {"direct", "none"}, {"other"}, {"other", "wait"}} {
		if err := replace(v, half, path...); err == nil {
			t.Errorf("replaced %v", path)
		}
	}
	if o.other != 1 {
		t.Errorf("a field of another type was changed to %v", o.other)
	}
}

func TestTunablesRestoreOnlyWhatDiffers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tunables.json")
	tun := tunables{file: file}
	if err := tun.record(); err != nil {
		t.Skipf("the settings cannot be read here: %v", err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := tun.record(); err != nil { // a second start does not take the changed values for the machine's
		t.Fatal(err)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("recorded anew: %s, %v", after, err)
	}
	if err := tun.restore(); err != nil { // nothing differs, so nothing is written: works without root
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record stays after restore: %v", err)
	}
	if err := tun.restore(); err != nil {
		t.Errorf("restore twice: %v", err)
	}
}
