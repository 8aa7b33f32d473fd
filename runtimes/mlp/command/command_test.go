package command

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ferryos/ferry/runtimes/mlp/model"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/train"
)

func mlp(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Main(t.Context(), args, &o, &e)
	return code, o.String(), e.String()
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := mlp(t, args...)
	if code != exitOK {
		t.Fatalf("mlp %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// trained makes a small data set and a model of it.
func trained(t *testing.T) (data, dir string) {
	t.Helper()
	base := t.TempDir()
	data, dir = filepath.Join(base, "data"), filepath.Join(base, "model")
	must(t, "data", "generate", "--out", data, "--train", "1500", "--test", "150")
	out := must(t, "train", "--data", data, "--out", dir, "--hidden", "64", "--epochs", "3")
	if !strings.Contains(out, "epoch 3/3 loss ") {
		t.Fatalf("training printed\n%s", out)
	}
	return data, dir
}

// TestStory generates, trains, scores, and predicts from file and through a
// server, which must agree.
func TestStory(t *testing.T) {
	data, dir := trained(t)
	if out := must(t, "data", "inspect", "--data", data); !strings.Contains(out, "1500 training and 150 held-out samples of 784 values, 10 classes") {
		t.Errorf("inspect printed\n%s", out)
	}
	var scores [3]struct {
		Accuracy float64
		Samples  int
	}
	last := func(out string) []byte {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		return []byte(lines[len(lines)-1])
	}
	base := serving(t, "--model", dir, "--name", "digits")
	for i, args := range [][]string{
		{"eval", "--data", data, "--model", dir, "--json"},
		{"predict", "--data", data, "--model", dir, "--json"},
		{"predict", "--data", data, "--url", base, "--name", "digits", "--json", "--draw", "2"},
	} {
		if err := json.Unmarshal(last(must(t, args...)), &scores[i]); err != nil {
			t.Fatal(err)
		}
	}
	if scores[0] != scores[1] || scores[1] != scores[2] || scores[0].Accuracy < 0.5 || scores[0].Samples != 150 {
		t.Errorf("scores %+v", scores)
	}
	if code, _, errs := mlp(t, "predict", "--data", data, "--url", base, "--name", "other"); code != exitFailed || !strings.Contains(errs, "hint: ") {
		t.Errorf("predicting with a model that is not served: exit %d, %s", code, errs)
	}
}

// serving runs mlp serve until the test ends and returns its address.
func serving(t *testing.T, args ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	var errs bytes.Buffer
	go func() {
		done <- Main(ctx, append([]string{"serve", "--http", addr, "--grpc", "127.0.0.1:0", "--drain", "0s"}, args...), io.Discard, &errs)
	}()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != exitOK {
			t.Errorf("serve: exit %d\n%s", code, errs.String())
		}
	})
	for range 500 {
		if res, err := http.Get("http://" + addr + "/v2/health/ready"); err == nil {
			_ = res.Body.Close() // only the status matters
			return "http://" + addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("server does not answer")
	return ""
}

// TestPush pushes a trained model and checks what is said about it and where the digest is left.
func TestPush(t *testing.T) {
	var manifest []byte
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodHead: // every blob is there
		case strings.Contains(r.URL.Path, "/manifests/"):
			manifest, _ = io.ReadAll(r.Body) // an error shows as a manifest that does not parse
			w.WriteHeader(http.StatusCreated)
		}
	}))
	defer s.Close()
	_, dir := trained(t)
	log := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	image := "sha256:" + strings.Repeat("a", 64)
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	ref := strings.TrimPrefix(s.URL, "http://") + "/models/digits:v1"
	out := must(t, "push", "--model", dir, "--image-digest", image, "--termination-log", log, "--digest-file", log+".copy", ref)
	got, err := os.ReadFile(log)
	if err != nil || !strings.HasPrefix(string(got), "sha256:") || !strings.Contains(out, string(got)) {
		t.Errorf("termination log %q (%v), printed %s", got, err, out)
	}
	for _, want := range []string{`"dev.ferry.model.image.digest":"` + image, `"dev.ferry.model.accuracy":"0.`, `"dev.ferry.model.epochs":"3"`, `"org.opencontainers.image.created":"2023-11-14`} {
		if !bytes.Contains(manifest, []byte(want)) {
			t.Errorf("manifest lacks %s:\n%s", want, manifest)
		}
	}
}

// TestBadInput checks that each mistake gets a message, a next step and its
// exit code.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	network, err := nn.New([]int{4, 2}, nn.ReLU, 1)
	if err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(dir, "small")
	if err := model.Save(small, network, model.Metrics{}); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	must(t, "data", "generate", "--out", data, "--train", "20", "--test", "10")
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"unknown flag", []string{"train", "--epoch", "3"}, exitUsage, "unknown flag"},
		{"argument", []string{"eval", "x"}, exitUsage, "unexpected argument"},
		{"no data", []string{"train", "--data", dir + "/none"}, exitFailed, "none"},
		{"broken config", []string{"train", "--data", data, "--config", file("c.yaml", "epochs: [")}, exitFailed, "c.yaml"},
		{"unknown key", []string{"train", "--data", data, "--config", file("d.yaml", "epoch: 1")}, exitFailed, "epoch"},
		{"bad hyperparameter", []string{"train", "--data", data, "--momentum", "2"}, exitUsage, "momentum"},
		{"bad reference", []string{"train", "--data", data, "--push", "digits"}, exitUsage, "reference"},
		{"bad image digest", []string{"push", "--image-digest", "sha256:1", "localhost:1/a:b"}, exitUsage, "image digest"},
		{"nothing to push", []string{"push", "--model", dir, "localhost:1/a:b"}, exitFailed, "metrics"},
		{"no credential", []string{"push", "--model", small, "--registry-config", dir + "/none", "localhost:1/a:b"}, exitFailed, "credential"},
		{"corrupt pth", []string{"serve", "--model", file("m.pth", "PK\x03\x04....")}, exitFailed, "corrupt .pth"},
		{"no model", []string{"serve", "--model", dir + "/none"}, exitFailed, "none"},
		{"model does not fit data", []string{"eval", "--model", small, "--data", data}, exitFailed, "784 values"},
		{"address", []string{"serve", "--model", small, "--http", "127.0.0.1:99999"}, exitFailed, "99999"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, _, errs := mlp(t, tc.args...)
			if code != tc.code || !strings.Contains(errs, tc.want) || !strings.Contains(errs, "\nhint: ") {
				t.Errorf("exit %d, want %d with %q and a hint, got\n%s", code, tc.code, tc.want, errs)
			}
		})
	}
}

func TestStopped(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	must(t, "data", "generate", "--out", data, "--train", "50", "--test", "10")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out := filepath.Join(t.TempDir(), "model")
	if code := Main(ctx, []string{"train", "--data", data, "--out", out}, io.Discard, io.Discard); code != exitStopped {
		t.Errorf("exit %d, want %d", code, exitStopped)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a training run that was stopped left a model")
	}
}

// TestExample checks that the hyperparameters and arguments of the example's
// Jobs and Deployment are ones that this program takes.
func TestExample(t *testing.T) {
	type doc struct {
		Data map[string]string
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct{ Args []string }
				}
			}
		}
	}
	for _, name := range []string{"train.yaml", "train-v2.yaml", "serve.yaml"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "..", "examples", "digits", name))
		if err != nil {
			t.Fatal(err)
		}
		for part := range strings.SplitSeq(string(b), "\n---\n") {
			var d doc
			if err := yaml.Unmarshal([]byte(part), &d); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if text := d.Data["config.yaml"]; text != "" {
				file := filepath.Join(t.TempDir(), "config.yaml")
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if c, err := train.Load(file); err != nil || c.Validate() != nil {
					t.Errorf("%s: config: %v", name, err)
				}
			}
			for _, c := range d.Spec.Template.Spec.Containers {
				if code, _, errs := mlp(t, append(c.Args, "--help")...); code != exitOK {
					t.Errorf("%s: mlp %v: %s", name, c.Args, errs)
				}
			}
		}
	}
}
