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
	const namespace, name = metav1.NamespaceSystem, "kube-dns"
	ports := []v1.ServicePort{
		{Name: "dns", Port: 53, Protocol: v1.ProtocolUDP, TargetPort: intstr.FromInt32(53)},
		{Name: "dns-tcp", Port: 53, Protocol: v1.ProtocolTCP, TargetPort: intstr.FromInt32(53)},
	}
	// Asked for first: to make it again would fail for its address, which is taken by itself.
	if _, err := c.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{}); err == nil {
		return nil
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("service of cluster DNS: %w", err)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "ferry"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{c.opt.Gateway.String()}}},
	}
	for _, p := range ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol})
	}
	if err := create(ctx, "endpoints of cluster DNS", c.client.DiscoveryV1().EndpointSlices(namespace).Create, slice); err != nil {
		return err
	}
	return create(ctx, "service of cluster DNS", c.client.CoreV1().Services(namespace).Create, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"k8s-app": "kube-dns"}},
		Spec:       v1.ServiceSpec{ClusterIP: c.serviceIP(10).String(), Ports: ports}})
}

// EnsureSecret makes a Secret, or replaces its data.
func (c *Cluster) EnsureSecret(ctx context.Context, namespace, name string, kind v1.SecretType, data map[string][]byte) error {
	secrets := c.client.CoreV1().Secrets(namespace)
	want := &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": "ferry"}}, Type: kind, Data: data}
	_, err := secrets.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = secrets.Update(ctx, want, metav1.UpdateOptions{})
	}
	// At the first start the API server is ready before it has made the default namespace.
	for apierrors.IsNotFound(err) && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
		_, err = secrets.Create(ctx, want, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("secret %s/%s: %w", namespace, name, err)
	}
	return nil
}
