package train

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/runtimes/mlp/dataset"
	"github.com/ferryos/ferry/runtimes/mlp/glyph"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/model"
)

func digits(t testing.TB, train, test int) *dataset.Data {
	t.Helper()
	d, err := glyph.New(glyph.Default)
	if err != nil {
		t.Fatal(err)
	}
	return &dataset.Data{Train: d.Set(train, 1), Test: d.Set(test, 2)}
}

// TestDefaultLearns trains the default network on the default set: it must
// pass the accuracy that the demo promises.
func TestDefaultLearns(t *testing.T) {
	var out bytes.Buffer
	_, m, err := Run(t.Context(), Default(), digits(t, 12000, 2000), &out, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", out.String())
	if m.Accuracy < 0.97 {
		t.Errorf("accuracy %v, want at least 0.97", m.Accuracy)
	}
	if !strings.Contains(out.String(), "epoch 1/5 loss ") {
		t.Errorf("no line for the first epoch in\n%s", out.String())
	}
}

// TestSameWeights checks that seed and data settle the file of weights to the
// byte, whatever the number of processors.
func TestSameWeights(t *testing.T) {
	data := digits(t, 600, 100)
	cfg := Default()
	cfg.Epochs = 2
	weights := func(procs int, seed uint64) []byte {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		cfg.Seed = seed
		net, m, err := Run(t.Context(), cfg, data, &bytes.Buffer{}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := model.Save(dir, net, m); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, model.WeightsFile))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := weights(1, 5)
	for _, procs := range []int{1, 2, 7} {
		if !bytes.Equal(weights(procs, 5), want) {
			t.Errorf("GOMAXPROCS %d gives other weights", procs)
		}
	}
	if bytes.Equal(weights(2, 6), want) {
		t.Error("another seed gives the same weights")
	}
}

func TestStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Run(ctx, Default(), digits(t, 100, 10), &bytes.Buffer{}, time.Now); err == nil {
		t.Error("training went on after its context ended")
	}
}

func TestDiverges(t *testing.T) {
	cfg := Default()
	cfg.LearningRate, cfg.Activation = 1000, "identity" // ReLUs die instead, with finite weights
	_, _, err := Run(t.Context(), cfg, digits(t, 2000, 10), &bytes.Buffer{}, time.Now)
	if err == nil || hint.Of(err) == "" {
		t.Errorf("diverging training gives %v, hint %q", err, hint.Of(err))
	}
}

func TestConfig(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"good", "hidden: [32, 16]\nepochs: 3\nlearningRate: 0.05\n", ""},
		{"empty is the default", "", ""},
		{"unknown key", "learning_rate: 0.1\n", "learning_rate"},
		{"no yaml", "epochs: [", "config"},
		{"wrong type", "epochs: many\n", "epochs"},
		{"range", "epochs: 0\n", "epochs"},
		{"activation", "activation: gelu\n", "gelu"},
		{"rate", "learningRate: -1\n", "learning rate"},
		{"batch", "batchSize: 0\n", "batch size"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Load(file)
			if err == nil {
				err = c.Validate()
			}
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || hint.Of(err) == "") {
				t.Errorf("got %v (hint %q), want error with %q", err, hint.Of(err), tc.want)
			}
		})
	}
	if _, err := Load("/no/such/file"); hint.Of(err) == "" {
		t.Errorf("missing file: %v has no hint", err)
	}
}

func BenchmarkDefault(b *testing.B) {
	data := digits(b, 12000, 2000)
	for b.Loop() {
		_, m, err := Run(b.Context(), Default(), data, &bytes.Buffer{}, time.Now)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(m.Accuracy, "accuracy")
	}
}
