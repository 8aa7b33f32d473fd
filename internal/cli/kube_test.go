package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/fault"
)

// kubeAPI serves canned answers as the Kubernetes API that the configuration of
// the test names, to clients with a certificate.
func kubeAPI(t *testing.T, handlers map[string]http.HandlerFunc) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, h := range handlers {
		mux.HandleFunc(pattern, h)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, `{"message":"no certificate"}`, http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	server.TLS = tlsWithClients()
	server.StartTLS()
	t.Cleanup(server.Close)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, data []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
	}
	writeKubeconfig(t, fmt.Sprintf("clusters: [{name: ferry, cluster: {server: %q, certificate-authority-data: %s}}]\n"+
		"contexts: [{name: ferry, context: {cluster: ferry, user: ferry}}]\nusers: [{name: ferry, user: {client-certificate-data: %s, client-key-data: %s}}]\n",
		server.URL, block("CERTIFICATE", server.Certificate().Raw), block("CERTIFICATE", cert), block("PRIVATE KEY", key)))
	return server
}

// writeKubeconfig writes the administrator's.
func writeKubeconfig(t *testing.T, text string) {
	t.Helper()
	cfg, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(cfg.AdminKubeconfig()), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, cfg.AdminKubeconfig(), text)
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

func fails(status int, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
}

func TestPodLogs(t *testing.T) {
	notRunning(t)
	var asked atomic.Value
	var tries atomic.Int32
	pods := func(namespace string) string { return "GET /api/v1/namespaces/" + namespace + "/pods" }
	handlers := map[string]http.HandlerFunc{
		pods("default") + "/one":     says(`{"metadata":{"name":"one"}}`),
		pods("default") + "/one/log": func(w http.ResponseWriter, r *http.Request) { asked.Store(r.URL.RawQuery); fmt.Fprint(w, "a\nb") },
		pods("default") + "/gone":    fails(404, `pods "gone" not found`),
		pods("default") + "/closed":  fails(403, "forbidden"),
		pods("default") + "/broken":  fails(500, ""),
		pods("other") + "/one":       says(`{"metadata":{"name":"one"}}`),
		pods("other") + "/one/log":   says("of another\n"),
		"GET /apis/apps/v1/namespaces/default/deployments/web": says(
			`{"spec":{"selector":{"matchLabels":{"b":"2","a":"1"},"matchExpressions":[{"key":"tier","operator":"In","values":["x","y"]}]}}}`),
		"GET /apis/batch/v1/namespaces/default/jobs/train": says(`{"spec":{"selector":{"matchLabels":{"job":"train"}}}}`),
		"GET /apis/batch/v1/namespaces/default/jobs/all":   says(`{"spec":{"selector":{}}}`),
		pods("default"): func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Query().Get("labelSelector") {
			case "a=1,b=2,tier in (x,y)":
				fmt.Fprint(w, `{"items":[{"metadata":{"name":"young","creationTimestamp":"2026-01-02T00:00:00Z"}},{"metadata":{"name":"old","creationTimestamp":"2026-01-01T00:00:00Z"}}]}`)
			case "job=train": // the job's pod takes a moment to come
				if tries.Add(1) > 1 {
					fmt.Fprint(w, `{"items":[{"metadata":{"name":"train-1"}}]}`)
					return
				}
				fmt.Fprint(w, `{"items":[]}`)
			default:
				t.Errorf("selector %q", r.URL.RawQuery)
			}
		},
		pods("default") + "/young/log": says("y1\ny2\n"),
		pods("default") + "/old/log":   says("o1\n"),
		pods("default") + "/train-1/log": func(w http.ResponseWriter, r *http.Request) {
			if tries.Add(1) < 5 {
				fails(400, `container "c" in pod "train-1" is waiting to start: ContainerCreating`)(w, r)
				return
			}
			fmt.Fprint(w, "loss 0.1\n")
		},
	}
	kubeAPI(t, handlers)
	ferry(t, "logs", "-n", "other", "pod/one").wants(t, 0, "of another\n", "")
	ferry(t, "logs", "--tail", "3", "--since", "90s", "-t", "-c", "main", "pod/one").wants(t, 0, "a\nb", "")
	if got := asked.Load(); got != "container=main&sinceSeconds=90&tailLines=3&timestamps=true" {
		t.Errorf("asked for %s", got)
	}
	if r := ferry(t, "logs", "deployment/web"); r.code != 0 || !strings.Contains(r.out, "young: y1\nyoung: y2\n") || !strings.Contains(r.out, "old: o1\n") {
		t.Errorf("%+v", r)
	}
	ferry(t, "logs", "-f", "job/train").wants(t, 0, "loss 0.1\n", "")
	tries.Store(1)
	ferry(t, "logs", "job/train").wants(t, 1, "", "is waiting to start")
	for args, want := range map[string]struct {
		code int
		err  string
	}{
		"pod/gone":             {5, "error: no container and no pod or workload is called pod/gone\nhint: see `ferry ps -a` and `kubectl get pods -A`"},
		"pod/closed":           {4, "error: forbidden"},
		"pod/broken":           {1, "error: 500 Internal Server Error"},
		"job/nothing":          {5, "is called job/nothing"},
		"job/all":              {1, "pods of job/all: the selector is empty"},
		"service/web":          {2, "logs of a service are not known\nhint: use pod/NAME"},
		"--tail x pod/one":     {2, "--tail x: not a number of lines"},
		"--since x pod/one":    {2, "--since x: neither a duration nor a time\nhint: write 10m"},
		"-n ../x pod/one":      {5, "no container and no pod"},
		"pod/one%2flog":        {5, "no container and no pod"},
		"deployment/web?x=y#z": {5, "no container and no pod"},
	} {
		ferry(t, append([]string{"logs"}, strings.Fields(args)...)...).wants(t, want.code, "", want.err)
	}
}

// TestPlainName: a name is a container's first, and a pod's then.
func TestPlainName(t *testing.T) {
	running(t)
	kubeAPI(t, map[string]http.HandlerFunc{
		"GET /api/v1/namespaces/default/pods/both":     says(`{"metadata":{"name":"both"}}`),
		"GET /api/v1/namespaces/default/pods/pod":      says(`{"metadata":{"name":"pod"}}`),
		"GET /api/v1/namespaces/default/pods/pod/log":  says("of a pod\n"),
		"GET /api/v1/namespaces/default/pods/both/log": says("of a pod\n"),
	})
	ferry(t, "run", "--name", "both", image, "echo", "of a container").wants(t, 0, "of a container\n", "")
	ferry(t, "logs", "both").wants(t, 0, "of a container\n", "")
	ferry(t, "logs", "pod/both").wants(t, 0, "of a pod\n", "")
	ferry(t, "logs", "pod").wants(t, 0, "of a pod\n", "")
	ferry(t, "logs", "neither").wants(t, 5, "", "no container and no pod or workload is called neither")
	ferry(t, "rm", "both").wants(t, 0, "both\n", "")
}

func TestKubeconfig(t *testing.T) {
	notRunning(t)
	ferry(t, "logs", "pod/one").wants(t, 6, "", "error: no cluster on this machine: .*\nhint: start it with `ferry up`, as root")
	for text, err := range map[string]string{
		"{": "unreadable kubeconfig", "clusters: []": "unreadable kubeconfig", "clusters: [{}]\nusers: [{}]": "error: .*PEM",
	} {
		writeKubeconfig(t, text)
		ferry(t, "logs", "pod/one").wants(t, 1, "", err)
	}
	kubeAPI(t, nil).Close()
	ferry(t, "logs", "pod/one").wants(t, 6, "", "error: Kubernetes API: .*refused\nhint: is Ferry running\\?")
}

func TestLabelSelector(t *testing.T) {
	for text, want := range map[string]string{
		`{"matchLabels":{"b":"2","a":"1"}}`:                                                            "a=1,b=2",
		`{"matchExpressions":[{"key":"a","operator":"Exists"}]}`:                                       "a",
		`{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}`:                                 "!a",
		`{"matchExpressions":[{"key":"a","operator":"NotIn","values":["x"]}]}`:                         "a notin (x)",
		`{"matchLabels":{"l":""},"matchExpressions":[{"key":"a","operator":"In","values":["x","y"]}]}`: "l=,a in (x,y)",
	} {
		var s labelSelector
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		if got, err := s.String(); err != nil || got != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{`{}`, `{"matchExpressions":[{"key":"a","operator":"Gt","values":["1"]}]}`} {
		var s labelSelector
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		if got, err := s.String(); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

func TestLogsQuery(t *testing.T) {
	for _, tt := range []struct {
		opt  logsOptions
		want url.Values
	}{
		{logsOptions{tail: "all"}, url.Values{}},
		{logsOptions{follow: true, timestamps: true, tail: "0", containerOfThePod: "c"},
			url.Values{"follow": {"true"}, "timestamps": {"true"}, "tailLines": {"0"}, "container": {"c"}}},
		{logsOptions{since: "10ms"}, url.Values{"sinceSeconds": {"1"}}},
		{logsOptions{since: "2h"}, url.Values{"sinceSeconds": {"7200"}}},
		{logsOptions{since: "2026-01-02T03:04:05Z"}, url.Values{"sinceTime": {"2026-01-02T03:04:05Z"}}},
	} {
		if got, err := tt.opt.query(); err != nil || cmp.Diff(tt.want, got) != "" {
			t.Errorf("%+v: %v\n%s", tt.opt, err, cmp.Diff(tt.want, got))
		}
	}
	for _, opt := range []logsOptions{{tail: "-1"}, {tail: "x"}, {since: "x"}, {since: "2026-01-02"}} {
		if got, err := opt.query(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, %v", opt, got, err)
		}
	}
}
