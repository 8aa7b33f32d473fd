package kube

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/ferryos/ferry/internal/fault"
)

// An identity is whom a client certificate speaks for, by the names that
// Kubernetes' own RBAC rules know.
type identity struct {
	file, user string
	groups     []string
}

var (
	admin = identity{"admin", "ferry-admin", []string{"system:masters"}}
	// The controllers act in this process with every right, as the API server
	// itself does: a service account for each would guard nothing and cost a
	// token each at every start.
	controllers = identity{"controller-manager", "system:kube-controller-manager", []string{"system:masters"}}
	scheduling  = identity{"scheduler", "system:kube-scheduler", nil}
	proxying    = identity{"kube-proxy", "system:kube-proxy", nil}
	naming      = identity{"coredns", "ferry:coredns", nil}
	// toKubelet is the API server to the kubelet: logs, exec, port-forward.
	toKubelet = identity{"apiserver-kubelet", "kube-apiserver-kubelet-client", []string{"system:masters"}}
)

func (c *Cluster) node() identity {
	return identity{"kubelet-client", "system:node:" + c.opt.NodeName, []string{"system:nodes"}}
}

// keys are the cluster's certificate authority and what it signed. All are
// ECDSA on P-256; certificates are made anew at each start, the authority's,
// and the service accounts' key, once.
type keys struct {
	dir    string
	ca     *x509.Certificate
	caKey  crypto.Signer
	caPEM  []byte
	client map[string]certificate // by identity.file
}

type certificate struct{ cert, key []byte } // PEM

const (
	authorityTime   = 10 * 365 * 24 * time.Hour
	certificateTime = 365 * 24 * time.Hour
)

// loadKeys reads or makes the cluster's keys. Files are 0600 in a 0700 directory.
func (c *Cluster) loadKeys() (keys, error) {
	k := keys{dir: c.dir("pki"), client: map[string]certificate{}}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return k, fmt.Errorf("keys: %w", err)
	}
	if err := k.loadAuthority(); err != nil {
		return k, fmt.Errorf("certificate authority: %w", err)
	}
	for _, name := range []string{"sa.key"} {
		if _, err := k.key(name); err != nil {
			return k, err
		}
	}
	for _, id := range []identity{admin, controllers, scheduling, proxying, naming, toKubelet, c.node()} {
		cert, err := k.issue(id.file, &x509.Certificate{
			Subject: pkix.Name{CommonName: id.user, Organization: id.groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			return k, fmt.Errorf("certificate of %s: %w", id.user, err)
		}
		k.client[id.file] = cert
	}
	gateway := net.IP(c.opt.Gateway.AsSlice())
	if _, err := k.issue("apiserver", &x509.Certificate{
		Subject: pkix.Name{CommonName: "kube-apiserver"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), gateway, c.serviceIP(1).AsSlice()},
		DNSNames: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + c.opt.ClusterDomain, c.opt.NodeName}}); err != nil {
		return k, err
	}
	if _, err := k.issue("kubelet", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "system:node:" + c.opt.NodeName, Organization: []string{"system:nodes"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{gateway}, DNSNames: []string{c.opt.NodeName}}); err != nil {
		return k, err
	}
	if err := k.encryption(); err != nil {
		return k, fmt.Errorf("encryption of secrets: %w", err)
	}
	return k, c.writeAdmin(k)
}

func (k *keys) path(name string) string { return filepath.Join(k.dir, name) }

// key reads or makes a private key.
func (k *keys) key(name string) (crypto.Signer, error) {
	data, err := os.ReadFile(k.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		encoded, err := keyPEM(key)
		if err != nil {
			return nil, err
		}
		return key, k.write(name, encoded)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fault.New(fault.Invalid, "%s holds no key", k.path(name)).Hint("restore it from a backup; without it the cluster's tokens are void")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k.path(name), err)
	}
	return key, nil
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// write replaces a file as a whole.
func (k *keys) write(name string, data []byte) error { return writeSecret(k.path(name), data) }

func writeSecret(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// A power cut must not leave an empty key under the name.
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (k *keys) loadAuthority() error {
	key, err := k.key("ca.key")
	if err != nil {
		return err
	}
	k.caKey = key
	k.caPEM, err = os.ReadFile(k.path("ca.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		template := &x509.Certificate{Subject: pkix.Name{CommonName: "ferry-ca"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(authorityTime),
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, IsCA: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return err
		}
		k.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := k.write("ca.crt", k.caPEM); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	block, _ := pem.Decode(k.caPEM)
	if block == nil {
		return fault.New(fault.Invalid, "%s holds no certificate", k.path("ca.crt"))
	}
	k.ca, err = x509.ParseCertificate(block.Bytes)
	return err
}

// issue makes a key and a certificate and writes them as name.key and name.crt.
func (k *keys) issue(name string, template *x509.Certificate) (certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return certificate{}, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(certificateTime)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, k.ca, key.Public(), k.caKey)
	if err != nil {
		return certificate{}, err
	}
	encoded, err := keyPEM(key)
	if err != nil {
		return certificate{}, err
	}
	c := certificate{cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: encoded}
	return c, errors.Join(k.write(name+".crt", c.cert), k.write(name+".key", c.key))
}

// encryption writes the API server's rule for Secrets at rest: XSalsa20 and
// Poly1305 with a random key, made once.
func (k *keys) encryption() error {
	const name = "encryption.yaml"
	if _, err := os.Stat(k.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	return k.write(name, fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox: {keys: [{name: key1, secret: %s}]}
  - identity: {}
`, base64.StdEncoding.EncodeToString(key)))
}

// configOf is a client configuration that speaks for id, without rate limits:
// the API server's own priority and fairness keeps order.
func (c *Cluster) configOf(id identity) *rest.Config {
	cert := c.keys.client[id.file]
	return &rest.Config{Host: c.apiURL(), QPS: -1, UserAgent: "ferry/" + id.file,
		ContentConfig:   rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json"},
		TLSClientConfig: rest.TLSClientConfig{CAData: c.keys.caPEM, CertData: cert.cert, KeyData: cert.key}}
}

func (c *Cluster) clientOf(id identity) (*clientset.Clientset, error) {
	client, err := clientset.NewForConfig(c.configOf(id))
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", id.user, err)
	}
	return client, nil
}

// kubeconfig is a kubeconfig file's content that speaks for id.
func (c *Cluster) kubeconfig(k keys, id identity, name string) ([]byte, error) {
	cert := k.client[id.file]
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: c.apiURL(), CertificateAuthorityData: k.caPEM}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cert.cert, ClientKeyData: cert.key}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	return clientcmd.Write(*cfg)
}

// writeKubeconfig writes the kubeconfig of a part that takes nothing else.
func (c *Cluster) writeKubeconfig(id identity) (path string, err error) {
	data, err := c.kubeconfig(c.keys, id, id.file)
	if err != nil {
		return "", err
	}
	path = c.keys.path(id.file + ".kubeconfig")
	return path, writeSecret(path, data)
}

func (c *Cluster) writeAdmin(k keys) error {
	data, err := c.kubeconfig(k, admin, c.opt.Context)
	if err != nil {
		return err
	}
	return writeSecret(c.opt.AdminKubeconfig, data)
}
