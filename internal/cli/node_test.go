package cli

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

// tlsWithClients asks clients for a certificate, whoever signed it.
func tlsWithClients() *tls.Config { return &tls.Config{ClientAuth: tls.RequestClientCert} }

// aDaemon holds the lock of a daemon with this process id.
func aDaemon(t *testing.T, pid string) {
	t.Helper()
	cfg, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(cfg.RunDir, "ferryd.lock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	write(t, cfg.PIDFile(), pid)
}

func TestDaemonPID(t *testing.T) {
	dir := notRunning(t)
	cfg, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := daemonPID(cfg); pid != 0 || err != nil {
		t.Errorf("without a lock: %d, %v", pid, err)
	}
	write(t, filepath.Join(dir, "ferryd.lock"), "")
	write(t, cfg.PIDFile(), "42")
	if pid, err := daemonPID(cfg); pid != 0 || err != nil {
		t.Errorf("a lock that nobody holds: %d, %v", pid, err)
	}
	aDaemon(t, "42\n")
	if pid, err := daemonPID(cfg); pid != 42 || err != nil {
		t.Errorf("%d, %v", pid, err)
	}
	// The lock comes before the number.
	write(t, cfg.PIDFile(), "")
	written := make(chan error, 1)
	go func() {
		time.Sleep(20 * time.Millisecond)
		written <- os.WriteFile(cfg.PIDFile(), []byte("43\n"), 0o600)
	}()
	if pid, err := daemonPID(cfg); pid != 43 || err != nil {
		t.Errorf("a number that comes later: %d, %v", pid, err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// TestStatus: a daemon that does not answer, one that does, and its node.
func TestStatus(t *testing.T) {
	m := running(t)
	ferry(t, "run", "-d", enginetest.Busybox, "sleep", "1000").wants(t, 0, "[0-9a-f]{64}\n", "")
	aDaemon(t, "42")
	status := func() (st nodeStatus, code int) {
		t.Helper()
		r := ferry(t, "status", "-o", "json")
		if err := json.Unmarshal([]byte(r.out), &st); err != nil {
			t.Fatalf("%v: %+v", err, r)
		}
		return st, r.code
	}
	st, code := status()
	if code != 6 || !st.Running || st.PID != 42 || st.Ready || !strings.Contains(st.NotReady, "no cluster on this machine") || st.Since == "" {
		t.Errorf("without a cluster: %d, %+v", code, st)
	}
	ready := "False"
	cfg, err := config.Load()
	if err != nil {
		t.Fatal(err)
	}
	kubeAPI(t, map[string]http.HandlerFunc{
		"GET /api/v1/nodes/" + cfg.NodeName: func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"status":{"conditions":[{"type":"Other","status":"True"},{"type":"Ready","status":%q,"message":"the network is not"}]}}`, ready)
		},
		"GET /api/v1/pods": says(`{"items":[{"status":{"phase":"Running"}},{"status":{"phase":"Pending"}}]}`),
	})
	if st, code := status(); code != 6 || st.Ready || st.NotReady != "the network is not" {
		t.Errorf("not ready: %d, %+v", code, st)
	}
	ready = "True"
	if st, code := status(); code != 0 || !st.Ready || st.NotReady != "" || st.Version != "0.0.0-test" || st.Containers != 1 || st.Images != 1 || st.Pods != 1 ||
		st.Docker != "unix://"+filepath.Join(m.Dir(), "docker.sock") {
		t.Errorf("ready: %d, %+v", code, st)
	}
	ferry(t, "status").wants(t, 0, `(?s)ferry +ready\ndaemon +version 0.0.0-test, process 42, since .*\nrunning +1 containers, 1 pods\nimages +1\n.*`, "")
	ferry(t, "up").wants(t, 0, "", `Ferry is up already \(process 42\)\nkubectl --context ferry, docker --context ferry and ferry are ready`)
	if data, err := os.ReadFile(filepath.Join(m.Dir(), "kubeconfig")); err != nil || !strings.Contains(string(data), "current-context: ferry") {
		t.Errorf("kubeconfig: %s, %v", data, err)
	}
	ferry(t, "version").wants(t, 0, `ferry +dev .*\nferryd +0.0.0-test \(Docker API 1.51, kernel .*\)\n`, "")
	ferry(t, "doctor").wants(t, 1, `(?s).*✓ node +is ready\n.*`, "warning: the list of changes cannot be read")
}

// TestUpWithoutDaemon: what is missing is named before anything is begun.
func TestUpWithoutDaemon(t *testing.T) {
	runnertest.NeedRoot(t)
	dir := notRunning(t)
	ferry(t, "up").wants(t, 6, "", "error: the daemon is missing: .*libexec/ferryd: no such file.*\nhint: install ferryd beside ferry")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	ferry(t, "down").wants(t, 1, "", "error: put the machine back: .*ferryd: no such file.*\nhint: run `ferry down` again")
}

// TestNeedRoot: who may not start the platform is told so.
func TestNeedRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("needs a user who is not root")
	}
	notRunning(t)
	ferry(t, "up").wants(t, 4, "", "error: ferry up must run as root\nhint: run it with sudo")
	ferry(t, "down").wants(t, 4, "", "ferry down must run as root")
}

// TestLastError finds why a daemon ended also before the stacks of its goroutines.
func TestLastError(t *testing.T) {
	stacks := "\n" + strings.Repeat("goroutine 1 [select]:\nmain.main()\n\t/main.go:1 +0x1\n\n", 1<<16)
	for log, want := range map[string]string{
		"": "its log tells no error",
		"time=x level=ERROR msg=first\ntime=x level=ERROR msg=\"no room\"\n" + stacks:     `"no room"`,
		"time=x level=ERROR msg=first\npanic: nil map\n" + stacks:                         "panic: nil map",
		"panic: of an earlier one\n" + stacks + "time=x level=ERROR msg=\"port taken\"\n": `"port taken"`,
	} {
		path := filepath.Join(t.TempDir(), "log")
		write(t, path, log)
		if got := lastError(path); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestFollowStart reads the daemon's progress as it starts.
func TestFollowStart(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = t.TempDir()
	write(t, cfg.LogFile(), "time=x level=INFO msg=started\ntime=x level=ERROR msg=\"no room\"\n")
	started := `{"phase":"engine","state":"starting"}` + "\n" + `{"phase":"engine","state":"started","tookMs":12}` + "\n"
	for _, tt := range []struct {
		name, lines string
		kind        fault.Kind
		says, hint  string
		shown       string
	}{
		{"ready", started + `{"phase":"ready","state":"started","tookMs":900}` + "\n", 0, "", "", "engine: done (12ms)\nready: done (900ms)\n"},
		{"failed", started + `{"phase":"kube","state":"failed","error":"port 6443 is taken","hint":"free it"}` + "\n", fault.Unavailable, "port 6443 is taken", "free it", "engine: done (12ms)\n"},
		{"failed without a hint", `{"phase":"kube","state":"failed","error":"no"}` + "\n", fault.Unavailable, "no", "see " + cfg.LogFile(), ""},
		{"ended", started, fault.Unavailable, `ferryd ended while it started: "no room"`, "see " + cfg.LogFile() + " and `ferry doctor`", "engine: done (12ms)\n"},
		{"nonsense", "panic: x\n", fault.Internal, "ferryd's progress", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := io.WriteString(w, tt.lines); err != nil {
				t.Fatal(err)
			}
			w.Close()
			var shown strings.Builder
			e := &env{term: term.New(nil, io.Discard, &shown, func(string) string { return "" })}
			err = e.follow(r, cfg)
			if tt.says == "" && err != nil || tt.says != "" && (!fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) || fault.HintOf(err) != tt.hint) {
				t.Errorf("%v, hint %q", err, fault.HintOf(err))
			}
			if shown.String() != tt.shown {
				t.Errorf("shown:\n%s", shown.String())
			}
		})
	}
}

func TestDoctor(t *testing.T) {
	dir := notRunning(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	write(t, filepath.Join(dir, "config.yaml"), fmt.Sprintf("runDir: %s\ndataDir: %[1]s/data\nlibexecDir: %[1]s/libexec\nregistry: {port: %d}\n", dir, l.Addr().(*net.TCPAddr).Port))
	r := ferry(t, "doctor", "-o", "json")
	var d diagnosis
	if err := json.Unmarshal([]byte(r.out), &d); err != nil || r.code != 1 {
		t.Fatalf("%v: %+v", err, r)
	}
	states := map[string]check{}
	for _, c := range d.Checks {
		states[c.Code] = c
	}
	for code, state := range map[string]string{"disk": "ok", "ferryd": "error", "ferry-runner": "error", "daemon": "warning", "registry.port": "error"} {
		if c := states[code]; c.State != state || state != "ok" && c.Remedy == "" {
			t.Errorf("%s: %+v, want %s", code, c, state)
		}
	}
	ferry(t, "doctor").wants(t, 1, `(?s).*✗ ferryd +.*\n +→ install it beside ferry.*! daemon +Ferry is not running\n +→ start it with .ferry up.\n\nFerry has changed nothing on this machine.\n`, "warning: the list of changes cannot be read")
}
