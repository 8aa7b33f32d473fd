package kube

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// create makes an object unless it exists; what its owner changed since stays.
func create[T any](ctx context.Context, what string, f func(context.Context, *T, metav1.CreateOptions) (*T, error), obj *T) error {
	if _, err := f(ctx, obj, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s: %w", what, err)
	}
	return nil
}

// ensureDNSObjects makes CoreDNS's role and its Service, which has no pods
// behind it but the node itself.
func (c *Cluster) ensureDNSObjects(ctx context.Context) error {
	meta := metav1.ObjectMeta{Name: dnsRole}
	read := []string{"list", "watch"}
	if err := create(ctx, "role of cluster DNS", c.client.RbacV1().ClusterRoles().Create, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: read},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: read},
	}}); err != nil {
		return err
	}
	if err := create(ctx, "role binding of cluster DNS", c.client.RbacV1().ClusterRoleBindings().Create, &rbacv1.ClusterRoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: dnsRole},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: naming.user}}}); err != nil {
		return err
	}
	port := func(name string, protocol v1.Protocol) v1.ServicePort {
		return v1.ServicePort{Name: name, Port: 53, Protocol: protocol, TargetPort: intstr.FromInt32(53)}
	}
	return c.ensureNodeService(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns", Labels: map[string]string{"k8s-app": "kube-dns"}},
		Spec: v1.ServiceSpec{ClusterIP: c.serviceIP(10).String(),
			Ports: []v1.ServicePort{port("dns", v1.ProtocolUDP), port("dns-tcp", v1.ProtocolTCP)}}})
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
	if err := ensure(ctx, "endpoints of "+what, slices.Create, slices.Update, slice); err != nil {
		return err
	}
	// Asked for first: to make one again whose address is taken, by itself, fails for that.
	if _, err := c.client.CoreV1().Services(svc.Namespace).Get(ctx, svc.Name, metav1.GetOptions{}); err == nil {
		return nil
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return create(ctx, what, c.client.CoreV1().Services(svc.Namespace).Create, svc)
}

// managed are the labels of objects that Ferry makes.
func managed() map[string]string { return map[string]string{"app.kubernetes.io/managed-by": "ferry"} }

// EnsureConfigMap makes a ConfigMap, or replaces its data.
func (c *Cluster) EnsureConfigMap(ctx context.Context, namespace, name string, data map[string]string) error {
	maps := c.client.CoreV1().ConfigMaps(namespace)
	return ensure(ctx, "config map "+namespace+"/"+name, maps.Create, maps.Update,
		&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: managed()}, Data: data})
}

// EnsureSecret makes a Secret, or replaces its data.
func (c *Cluster) EnsureSecret(ctx context.Context, namespace, name string, kind v1.SecretType, data map[string][]byte) error {
	secrets := c.client.CoreV1().Secrets(namespace)
	return ensure(ctx, "secret "+namespace+"/"+name, secrets.Create, secrets.Update,
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: managed()}, Type: kind, Data: data})
}

// ensure makes an object, or replaces it.
func ensure[T any](ctx context.Context, what string, create func(context.Context, *T, metav1.CreateOptions) (*T, error),
	update func(context.Context, *T, metav1.UpdateOptions) (*T, error), obj *T) error {
	_, err := create(ctx, obj, metav1.CreateOptions{})
	// At the first start the API server is ready before it has made the namespaces of its own.
	for apierrors.IsNotFound(err) && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
		_, err = create(ctx, obj, metav1.CreateOptions{})
	}
	if apierrors.IsAlreadyExists(err) {
		_, err = update(ctx, obj, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
