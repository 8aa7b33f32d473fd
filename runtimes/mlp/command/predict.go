package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/runtimes/mlp/dataset"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/serve"
	"github.com/ferryos/ferry/runtimes/mlp/train"
)

// predictBatch is the number of samples in one request.
const predictBatch = 64

// predictor gives the probabilities of rows samples, row-major.
type predictor func(ctx context.Context, values []float32, rows int) (probs []float32, err error)

func predictCommand() *cobra.Command {
	var d dataFlags
	var m modelFlags
	var server, name string
	var count, draw int
	var asJSON bool
	c := &cobra.Command{
		Use:   "predict",
		Short: "Predict held-out samples, each drawn as characters beside its prediction",
		Long:  "Predict held-out samples with a model in a file, or with --url through a server of the Open Inference Protocol v2.",
		Example: "  mlp predict --model /models --data /data --draw 3\n" +
			"  mlp predict --url http://digits:8080 --name digits --data /data --count 1000",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			set, err := dataset.LoadTest(d.path, d.seed, d.csv)
			if err != nil {
				return err
			}
			predict, err := remote(server, name)
			if server == "" {
				predict, err = local(m, set)
			}
			if err != nil {
				return err
			}
			return runPredict(c, set, predict, count, draw, asJSON)
		},
	}
	d.add(c)
	m.add(c)
	f := c.Flags()
	f.StringVar(&server, "url", "", "server to ask, as http://HOST:PORT, instead of --model")
	f.StringVar(&name, "name", "mlp", "the model's name on the server")
	f.IntVar(&count, "count", 0, "number of samples; 0 for all")
	f.IntVar(&draw, "draw", 3, "number of samples to draw")
	f.BoolVar(&asJSON, "json", false, "end with one line of JSON instead of text")
	return c
}

func runPredict(c *cobra.Command, set *dataset.Set, predict predictor, count, draw int, asJSON bool) error {
	if count <= 0 || count > set.Len() {
		count = set.Len()
	}
	// Samples to draw are chosen from all, or a sorted set would show one class.
	order := rand.New(rand.NewPCG(1, 0xd4a3)).Perm(set.Len())[:count]
	out := c.OutOrStdout()
	correct := 0
	for at := 0; at < count; at += predictBatch {
		batch := order[at:min(at+predictBatch, count)]
		values := make([]float32, len(batch)*set.Features)
		for r, i := range batch {
			set.Row(i, values[r*set.Features:(r+1)*set.Features])
		}
		probs, err := predict(c.Context(), values, len(batch))
		if err != nil {
			return err
		}
		classes := len(probs) / len(batch)
		for r, i := range batch {
			q := probs[r*classes : (r+1)*classes]
			best := nn.Argmax(q)
			if best == set.Labels[i] {
				correct++
			}
			if at+r < draw {
				fmt.Fprintln(out, beside(drawing(set, i), best, set.Labels[i], q[best]))
			}
		}
	}
	accuracy := float64(correct) / float64(count)
	if asJSON {
		return json.NewEncoder(out).Encode(map[string]any{"accuracy": accuracy, "correct": correct, "samples": count})
	}
	fmt.Fprintf(out, "accuracy %.4f on %d held-out samples\n", accuracy, count)
	return nil
}

// beside puts the verdict to the right of the drawing's middle line.
func beside(lines []string, got, want int, p float32) string {
	verdict := fmt.Sprintf("   %d  (%.1f %%, right)", got, 100*p)
	if got != want {
		verdict = fmt.Sprintf("   %d  (%.1f %%, wrong: it is %d)", got, 100*p, want)
	}
	if len(lines) == 0 {
		return strings.TrimSpace(verdict)
	}
	lines[len(lines)/2] += verdict
	return strings.Join(lines, "\n")
}

func local(m modelFlags, set *dataset.Set) (predictor, error) {
	network, err := m.load()
	if err != nil {
		return nil, err
	}
	if err := train.Fits(network, set); err != nil {
		return nil, err
	}
	pass := network.NewPass(predictBatch)
	return func(_ context.Context, values []float32, rows int) ([]float32, error) {
		copy(pass.Input(rows), values)
		return pass.Forward(), nil
	}, nil
}

func remote(server, name string) (predictor, error) {
	client := &http.Client{Timeout: 30 * time.Second}
	next := "Check that the server runs ('curl " + server + "/v2/health/ready') and that --name is the model's."
	return func(ctx context.Context, values []float32, rows int) ([]float32, error) {
		data, err := json.Marshal(values)
		if err != nil {
			return nil, fmt.Errorf("predict: %w", err)
		}
		body, err := json.Marshal(serve.Request{
			Inputs:  []serve.Tensor{{Name: "input", Datatype: "FP32", Shape: []int64{int64(rows), int64(len(values) / rows)}, Data: data}},
			Outputs: []serve.Output{{Name: "probabilities"}},
		})
		if err != nil {
			return nil, fmt.Errorf("predict: %w", err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(server, "/")+"/v2/models/"+name+"/infer", bytes.NewReader(body))
		if err != nil {
			return nil, usageError{hint.Errorf("Write --url as http://HOST:PORT.", "predict: %w", err)}
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			return nil, hint.Errorf(next, "predict: %w", err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
		if err != nil || res.StatusCode != http.StatusOK {
			return nil, hint.Errorf(next, "predict: server answers %s %.200s", res.Status, answer)
		}
		return probabilities(answer, rows)
	}, nil
}

func probabilities(answer []byte, rows int) ([]float32, error) {
	var r serve.Response
	if err := json.Unmarshal(answer, &r); err != nil {
		return nil, fmt.Errorf("predict: answer: %w", err)
	}
	var probs []float32
	if len(r.Outputs) != 1 {
		return nil, fmt.Errorf("predict: answer has %d outputs, want 1", len(r.Outputs))
	}
	if err := json.Unmarshal(r.Outputs[0].Data, &probs); err != nil || len(probs) == 0 || len(probs)%rows != 0 {
		return nil, fmt.Errorf("predict: answer is not the probabilities of %d samples", rows)
	}
	return probs, nil
}
