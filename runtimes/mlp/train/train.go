// Package train runs stochastic gradient descent over a data set and says how
// it goes, epoch by epoch.
//
// It reads hyperparameters from YAML, decides nothing about files of data or
// models, and gives the same weights bit for bit for the same data, config and
// seed. The commands of the mlp runtime import it.
package train

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ferryos/ferry/runtimes/mlp/dataset"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/model"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
)

// Config holds the hyperparameters of a run.
type Config struct {
	Hidden       []int   `json:"hidden"`       // widths of the hidden layers; empty for none
	Activation   string  `json:"activation"`   // relu, sigmoid, tanh or identity
	LearningRate float32 `json:"learningRate"` // η
	Momentum     float32 `json:"momentum"`     // μ
	WeightDecay  float32 `json:"weightDecay"`  // λ
	BatchSize    int     `json:"batchSize"`
	Epochs       int     `json:"epochs"`
	Seed         uint64  `json:"seed"`
}

// Default returns the hyperparameters of the mission's network, 784-500-10
// with η 0.01 for five epochs. Momentum 0.9 and batches of 16 are what lets
// five epochs at that rate suffice on a set of 12,000: 0.98 within 7 s of two cores
// (BenchmarkDefault); batches of 64 would need more epochs.
func Default() Config {
	return Config{Hidden: []int{500}, Activation: string(nn.ReLU), LearningRate: 0.01, Momentum: 0.9, BatchSize: 16, Epochs: 5, Seed: 1}
}

// Load returns Default changed by the YAML file at path. A key that it does
// not know is an error, for a misspelt hyperparameter must not pass unnoticed.
func Load(path string) (Config, error) {
	c := Default()
	b, err := os.ReadFile(path)
	if err != nil {
		return c, hint.Errorf("Mount the ConfigMap there, or leave out --config for the defaults.", "config: %w", err)
	}
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		return c, hint.Errorf("Known keys: hidden, activation, learningRate, momentum, weightDecay, batchSize, epochs, seed.", "config %s: %w", path, err)
	}
	return c, nil
}

// Validate returns an error that names the value out of range.
func (c Config) Validate() error {
	act, err := nn.ParseActivation(c.Activation)
	if err == nil {
		err = c.sgd().Validate()
	}
	switch {
	case err != nil:
	case c.BatchSize < 1 || c.BatchSize > 1<<16:
		err = fmt.Errorf("batch size %d is not between 1 and %d", c.BatchSize, 1<<16)
	case c.Epochs < 1 || c.Epochs > 100000:
		err = fmt.Errorf("%d epochs is not between 1 and 100000", c.Epochs)
	case act != nn.Activation(c.Activation):
		err = fmt.Errorf("activation %q: write it %q", c.Activation, act)
	}
	return hint.Wrap(err, "Correct the flag or the key of the config file; 'mlp train --help' shows the defaults.")
}

func (c Config) sgd() nn.SGD {
	return nn.SGD{Rate: c.LearningRate, Momentum: c.Momentum, WeightDecay: c.WeightDecay}
}

// Run trains a network on data.Train and judges it on data.Test after every
// epoch, with one line to out for each. It ends early with ctx's error between
// two batches when ctx is done, and with an error when the loss is no longer a
// number. now gives the time that the lines and metrics report.
func Run(ctx context.Context, c Config, data *dataset.Data, out io.Writer, now func() time.Time) (*nn.Network, model.Metrics, error) {
	var m model.Metrics
	if err := c.Validate(); err != nil {
		return nil, m, err
	}
	classes := max(data.Train.Classes(), data.Test.Classes(), 2)
	sizes := append(append([]int{data.Train.Features}, c.Hidden...), classes)
	net, err := nn.New(sizes, nn.Activation(c.Activation), c.Seed)
	if err != nil {
		return nil, m, hint.Wrap(fmt.Errorf("make network: %w", err), "Choose hidden widths from 1.")
	}
	fmt.Fprintf(out, "network %v %s, %d parameters, %d training and %d held-out samples, η %v μ %v batch %d seed %d\n",
		sizes, c.Activation, net.Params(), data.Train.Len(), data.Test.Len(), c.LearningRate, c.Momentum, c.BatchSize, c.Seed)
	start := now()
	trainer := nn.NewTrainer(net, c.sgd(), min(c.BatchSize, data.Train.Len()))
	rng := rand.New(rand.NewPCG(c.Seed, 0x5eed))
	var held nn.Score
	for epoch := 1; epoch <= c.Epochs; epoch++ {
		begin := now()
		score, err := epochOf(ctx, trainer, data.Train, rng.Perm(data.Train.Len()))
		if err != nil {
			return nil, m, fmt.Errorf("epoch %d: %w", epoch, err)
		}
		if score.Loss-score.Loss != 0 || net.CheckFinite() != nil {
			return nil, m, hint.Errorf("Lower learningRate or momentum.", "training diverged in epoch %d: the loss is not a number", epoch)
		}
		held = Evaluate(net, data.Test)
		fmt.Fprintf(out, "epoch %d/%d loss %.4f accuracy %.4f held-out loss %.4f accuracy %.4f %.1fs\n",
			epoch, c.Epochs, score.Loss, score.Accuracy(), held.Loss, held.Accuracy(), now().Sub(begin).Seconds())
	}
	m = model.Metrics{
		Accuracy: held.Accuracy(), Loss: held.Loss, Epochs: c.Epochs, Seed: c.Seed, Layers: sizes, Activation: c.Activation,
		LearningRate: c.LearningRate, Momentum: c.Momentum, BatchSize: c.BatchSize,
		TrainSamples: data.Train.Len(), TestSamples: data.Test.Len(), TrainSeconds: now().Sub(start).Seconds(),
	}
	return net, m, nil
}

// epochOf takes one step for each batch of the samples in the given order.
func epochOf(ctx context.Context, t *nn.Trainer, set *dataset.Set, order []int) (nn.Score, error) {
	var total nn.Score
	labels := make([]int, 0, t.Rows())
	for len(order) > 0 {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		batch := order[:min(t.Rows(), len(order))]
		order = order[len(batch):]
		in := t.Input(len(batch))
		labels = labels[:0]
		for r, i := range batch {
			set.Row(i, in[r*set.Features:(r+1)*set.Features])
			labels = append(labels, set.Labels[i])
		}
		total.Add(t.Step(labels))
	}
	return total, nil
}

// Evaluate scores net on every sample of set, whose width and classes must be
// those of the network.
func Evaluate(net *nn.Network, set *dataset.Set) nn.Score {
	var total nn.Score
	pass := net.NewPass(min(256, set.Len()))
	for at := 0; at < set.Len(); at += pass.Rows() {
		rows := min(pass.Rows(), set.Len()-at)
		in := pass.Input(rows)
		for r := range rows {
			set.Row(at+r, in[r*set.Features:(r+1)*set.Features])
		}
		pass.Forward()
		total.Add(pass.Score(set.Labels[at : at+rows]))
	}
	return total
}

// Fits returns an error when set's samples cannot be given to net.
func Fits(net *nn.Network, set *dataset.Set) error {
	if set.Features != net.Inputs() || set.Classes() > net.Classes() {
		return hint.Errorf("Use the data the model was made for.", "data has %d values and %d classes, the model takes %d and knows %d",
			set.Features, set.Classes(), net.Inputs(), net.Classes())
	}
	return nil
}
