package cli

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ferryos/ferry/internal/fault"
)

// kubeTimeout is how long the Kubernetes API, which is on this machine, may take to take a connection.
const kubeTimeout = 10 * time.Second

func decodeJSON(data []byte, into any) error { return json.Unmarshal(data, into) }

// kubeClient asks the Kubernetes API for the few things that ferry shows of it.
// client-go would make the program four times as large.
type kubeClient struct {
	server string
	http   *http.Client
}

// kube returns a client that speaks as the administrator, whose credential
// root can read.
func (e *env) kube() (*kubeClient, error) {
	cfg, err := e.config()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(cfg.AdminKubeconfig())
	if err != nil {
		return nil, fault.New(fault.Unavailable, "no cluster on this machine: %w", err).Hint("start it with `ferry up`, as root")
	}
	var kc struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := yaml.Unmarshal(data, &kc); err != nil || len(kc.Clusters) != 1 || len(kc.Users) != 1 {
		return nil, fault.New(fault.Internal, "unreadable kubeconfig %s", cfg.AdminKubeconfig()).Hint("`ferry down` and `ferry up` write it anew")
	}
	cert, err := tls.X509KeyPair(kc.Users[0].User.Cert, kc.Users[0].User.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(kc.Clusters[0].Cluster.CA)
	// No limit on the whole: a log may be followed for days.
	return &kubeClient{kc.Clusters[0].Cluster.Server, &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{Timeout: kubeTimeout}).DialContext, TLSHandshakeTimeout: kubeTimeout,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}}}, nil
}

// get asks for a path; the caller closes the body.
func (k *kubeClient) get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.server+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, */*")
	res, err := k.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.New(fault.Unavailable, "Kubernetes API: %w", err).Hint("is Ferry running? see `ferry status`")
	}
	if res.StatusCode < 300 {
		return res.Body, nil
	}
	defer res.Body.Close()
	var status struct{ Message string }
	if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&status) != nil || status.Message == "" {
		status.Message = res.Status
	}
	kind := fault.Internal
	switch res.StatusCode {
	case http.StatusNotFound:
		kind = fault.NotFound
	case http.StatusBadRequest:
		kind = fault.Conflict // a container that is not there yet
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = fault.Denied
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		kind = fault.Unavailable
	}
	return nil, fault.New(kind, "%s", status.Message)
}

func (k *kubeClient) getJSON(ctx context.Context, path string, query url.Values, into any) error {
	body, err := k.get(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(into)
}

// kubePod is what ferry looks at of a pod.
type kubePod struct {
	Metadata struct {
		Name              string `json:"name"`
		CreationTimestamp string `json:"creationTimestamp"`
	} `json:"metadata"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

// pods returns the pods that KIND/NAME or NAME means, oldest first.
func (k *kubeClient) pods(ctx context.Context, namespace, target string) ([]kubePod, error) {
	base := "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods"
	kind, name, typed := strings.Cut(target, "/")
	if !typed || kind == "pod" {
		if !typed {
			name = target
		}
		var pod kubePod
		if err := k.getJSON(ctx, base+"/"+url.PathEscape(name), nil, &pod); err != nil {
			return nil, err
		}
		return []kubePod{pod}, nil
	}
	selector, err := k.selector(ctx, namespace, kind, name)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []kubePod }
	err = k.getJSON(ctx, base, url.Values{"labelSelector": {selector}}, &list)
	slices.SortStableFunc(list.Items, func(a, b kubePod) int {
		return cmp.Compare(a.Metadata.CreationTimestamp, b.Metadata.CreationTimestamp)
	})
	return list.Items, err
}

// selector asks the workload for the labels of its pods.
func (k *kubeClient) selector(ctx context.Context, namespace, kind, name string) (string, error) {
	paths := map[string]string{"job": "/apis/batch/v1/namespaces/%s/jobs/%s", "deployment": "/apis/apps/v1/namespaces/%s/deployments/%s",
		"deploy": "/apis/apps/v1/namespaces/%s/deployments/%s", "statefulset": "/apis/apps/v1/namespaces/%s/statefulsets/%s",
		"daemonset": "/apis/apps/v1/namespaces/%s/daemonsets/%s"}
	path, known := paths[kind]
	if !known {
		return "", fault.New(fault.Invalid, "%s/%s: logs of a %s are not known", kind, name, kind).
			Hint("use pod/NAME, job/NAME, deployment/NAME, statefulset/NAME or daemonset/NAME")
	}
	var workload struct {
		Spec struct {
			Selector labelSelector `json:"selector"`
		} `json:"spec"`
	}
	if err := k.getJSON(ctx, fmt.Sprintf(path, url.PathEscape(namespace), url.PathEscape(name)), nil, &workload); err != nil {
		return "", err
	}
	text, err := workload.Spec.Selector.String()
	if err != nil {
		return "", fmt.Errorf("pods of %s/%s: %w", kind, name, err)
	}
	return text, nil
}

// labelSelector is a workload's selector of its pods.
type labelSelector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []struct {
		Key      string   `json:"key"`
		Operator string   `json:"operator"`
		Values   []string `json:"values"`
	} `json:"matchExpressions"`
}

// String is the selector as a query has it. An empty one is an error: it would
// select every pod.
func (s labelSelector) String() (string, error) {
	var terms []string
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		terms = append(terms, key+"="+s.MatchLabels[key])
	}
	for _, e := range s.MatchExpressions {
		values := "(" + strings.Join(e.Values, ",") + ")"
		switch e.Operator {
		case "In":
			terms = append(terms, e.Key+" in "+values)
		case "NotIn":
			terms = append(terms, e.Key+" notin "+values)
		case "Exists":
			terms = append(terms, e.Key)
		case "DoesNotExist":
			terms = append(terms, "!"+e.Key)
		default:
			return "", fault.New(fault.Unsupported, "the selector's operator %q is not known", e.Operator)
		}
	}
	if len(terms) == 0 {
		return "", fault.New(fault.Unsupported, "the selector is empty")
	}
	return strings.Join(terms, ","), nil
}

// copyLines copies a log, a line at a time, each at once.
func copyLines(out io.Writer, in io.Reader, prefix string) error {
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadString('\n')
		if line != "" {
			if _, err := io.WriteString(out, prefix+line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
