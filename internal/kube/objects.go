package kube

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Keep does what the cluster is to hold, now, or if that fails again and again
// until it is done or the cluster stops: a policy of the cluster may be against
// it, or something that would allow it may not run yet.
func (c *Cluster) Keep(ctx context.Context, what string, f func(context.Context) error) {
	err := f(ctx)
	if err == nil {
		return
	}
	c.opt.Log.Error("not done yet, trying again", "what", what, "error", err)
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.parts.Go(func() {
		defer cancel()
		for {
			select {
			case <-time.After(keepEvery):
			case <-c.stopping:
				return
			}
			if err := f(later); err == nil {
				c.opt.Log.Info("done at last", "what", what)
				return
			}
		}
	})
}

// keepEvery is how often Keep tries.
const keepEvery = 5 * time.Second

// ensureDNSObjects makes CoreDNS's role and its Service, which has no pods
// behind it but the node itself.
func (c *Cluster) ensureDNSObjects(ctx context.Context) error {
	meta := metav1.ObjectMeta{Name: dnsRole}
	read := []string{"list", "watch"}
	role := &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
	}}
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: dnsRole},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: naming.user}}}
	port := func(name string, protocol v1.Protocol) v1.ServicePort {
		return v1.ServicePort{Name: name, Port: 53, Protocol: protocol, TargetPort: intstr.FromInt32(53)}
	}
	return errors.Join(
		ensure(ctx, "role of cluster DNS", c.client.RbacV1().ClusterRoles(), role, exists),
		ensure(ctx, "role binding of cluster DNS", c.client.RbacV1().ClusterRoleBindings(), binding, exists),
		c.ensureNodeService(ctx, &v1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns", Labels: map[string]string{"k8s-app": "kube-dns"}},
			Spec: v1.ServiceSpec{ClusterIP: c.serviceIP(10).String(),
				Ports: []v1.ServicePort{port("dns", v1.ProtocolUDP), port("dns-tcp", v1.ProtocolTCP)}}}))
}

// EnsureService makes a Service with one TCP port that the node itself answers,
// on the bridge's address at target.
func (c *Cluster) EnsureService(ctx context.Context, namespace, name string, port, target int) error {
	return c.ensureNodeService(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: managed()},
		Spec:       v1.ServiceSpec{Ports: []v1.ServicePort{{Name: name, Port: int32(port), Protocol: v1.ProtocolTCP, TargetPort: intstr.FromInt(target)}}}})
}

// ensureNodeService makes a Service without pods: the node's address stands
// behind it, at its target ports, which follow the configuration.
func (c *Cluster) ensureNodeService(ctx context.Context, svc *v1.Service) error {
	what := "service " + svc.Name
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name,
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name, discoveryv1.LabelManagedBy: "ferry"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{c.opt.Gateway.String()}}},
	}
	for _, p := range svc.Spec.Ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.TargetPort.IntVal, Protocol: &p.Protocol})
	}
	slices := c.client.DiscoveryV1().EndpointSlices(svc.Namespace)
	return errors.Join(
		ensure(ctx, "endpoints of "+what, slices, slice, func(have, want *discoveryv1.EndpointSlice) bool {
			return len(have.Endpoints) == 1 && reflect.DeepEqual(have.Endpoints[0].Addresses, want.Endpoints[0].Addresses) && reflect.DeepEqual(have.Ports, want.Ports)
		}),
		ensure(ctx, what, c.client.CoreV1().Services(svc.Namespace), svc, exists))
}

// managed are the labels of objects that Ferry makes.
func managed() map[string]string { return map[string]string{"app.kubernetes.io/managed-by": "ferry"} }

// EnsureConfigMap makes a ConfigMap, or replaces its data.
func (c *Cluster) EnsureConfigMap(ctx context.Context, namespace, name string, data map[string]string) error {
	maps := c.client.CoreV1().ConfigMaps(namespace)
	return ensure(ctx, "config map "+namespace+"/"+name, maps,
		&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: managed()}, Data: data},
		func(have, want *v1.ConfigMap) bool { return reflect.DeepEqual(have.Data, want.Data) })
}

// EnsureSecret makes a Secret, or replaces its data.
func (c *Cluster) EnsureSecret(ctx context.Context, namespace, name string, kind v1.SecretType, data map[string][]byte) error {
	secrets := c.client.CoreV1().Secrets(namespace)
	return ensure(ctx, "secret "+namespace+"/"+name, secrets,
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: managed()}, Type: kind, Data: data},
		func(have, want *v1.Secret) bool { return reflect.DeepEqual(have.Data, want.Data) })
}

// store is what ensure needs of a typed client.
type store[T any] interface {
	Get(ctx context.Context, name string, opt metav1.GetOptions) (*T, error)
	Create(ctx context.Context, obj *T, opt metav1.CreateOptions) (*T, error)
	Update(ctx context.Context, obj *T, opt metav1.UpdateOptions) (*T, error)
}

// ensure makes an object, or replaces one that is not as wanted. What is right
// already is not written: a write passes admission, and a webhook that needs
// this node to answer would keep the node from ever coming up.
func ensure[T any, P interface {
	*T
	metav1.Object
}](ctx context.Context, what string, in store[T], want P, same func(have, want P) bool) error {
	have, err := in.Get(ctx, want.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = in.Create(ctx, want, metav1.CreateOptions{})
		// At the first start the API server is ready before it has made the namespaces of its own.
		for apierrors.IsNotFound(err) && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
			_, err = in.Create(ctx, want, metav1.CreateOptions{})
		}
	case err == nil && !same(have, want):
		_, err = in.Update(ctx, want, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// exists is for objects that are made once: what somebody changed since stays.
func exists[P any](_, _ P) bool { return true }
