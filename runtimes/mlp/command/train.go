package command

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/runtimes/mlp/dataset"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/model"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/train"
)

func trainCommand() *cobra.Command {
	var d dataFlags
	var p pushFlags
	var config, out string
	flag := train.Default()
	c := &cobra.Command{
		Use:   "train",
		Short: "Train a network and save it with its metrics",
		Long:  "Train a network and save it with its metrics; with --push, publish it too.\nFlags given override the config file, which overrides the defaults. The same seed gives the same weights bit for bit.",
		Example: "  mlp train --data /data --out /model\n" +
			"  mlp train --data /data --out /model --config /etc/mlp/config.yaml --push localhost:5000/models/digits:v1",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg := train.Default()
			if config != "" {
				var err error
				if cfg, err = train.Load(config); err != nil {
					return err
				}
			}
			override(c, &cfg, flag)
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			if err := p.check(); err != nil {
				return err // before the work, not after
			}
			data, err := dataset.Load(d.path, d.seed, d.csv)
			if err != nil {
				return err
			}
			net, metrics, err := train.Run(c.Context(), cfg, data, c.OutOrStdout(), time.Now)
			if err != nil {
				return hint.Wrap(fmt.Errorf("train: %w", err), "Nothing was saved; run it again.")
			}
			if err := model.Save(out, net, metrics); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "saved %s: accuracy %.4f on %d held-out samples\n", out, metrics.Accuracy, metrics.TestSamples)
			if p.ref == "" {
				return nil
			}
			return runPush(c, out, p)
		},
	}
	d.add(c)
	p.add(c, "push")
	f := c.Flags()
	f.StringVar(&config, "config", "", "YAML file of hyperparameters")
	f.StringVarP(&out, "out", "o", "model", "folder to save to")
	f.IntSliceVar(&flag.Hidden, "hidden", flag.Hidden, "widths of the hidden layers")
	f.StringVar(&flag.Activation, "activation", flag.Activation, "relu, sigmoid, tanh or identity")
	f.Float32Var(&flag.LearningRate, "learning-rate", flag.LearningRate, "η")
	f.Float32Var(&flag.Momentum, "momentum", flag.Momentum, "μ")
	f.Float32Var(&flag.WeightDecay, "weight-decay", flag.WeightDecay, "λ")
	f.IntVar(&flag.BatchSize, "batch-size", flag.BatchSize, "samples in a step")
	f.IntVar(&flag.Epochs, "epochs", flag.Epochs, "passes over the data")
	f.Uint64Var(&flag.Seed, "seed", flag.Seed, "seed of weights and order")
	return c
}

// override copies the flags that were given into cfg.
func override(c *cobra.Command, cfg *train.Config, flag train.Config) {
	for name, set := range map[string]func(){
		"hidden":        func() { cfg.Hidden = flag.Hidden },
		"activation":    func() { cfg.Activation = flag.Activation },
		"learning-rate": func() { cfg.LearningRate = flag.LearningRate },
		"momentum":      func() { cfg.Momentum = flag.Momentum },
		"weight-decay":  func() { cfg.WeightDecay = flag.WeightDecay },
		"batch-size":    func() { cfg.BatchSize = flag.BatchSize },
		"epochs":        func() { cfg.Epochs = flag.Epochs },
		"seed":          func() { cfg.Seed = flag.Seed },
	} {
		if c.Flags().Changed(name) {
			set()
		}
	}
}

// modelFlags are those of every command that loads a model.
type modelFlags struct {
	path, activation string
}

func (m *modelFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&m.path, "model", "model", "folder or file: safetensors, or a PyTorch state_dict (.pth)")
	c.Flags().StringVar(&m.activation, "activation", string(nn.ReLU), "of hidden layers, where the file does not say")
}

func (m *modelFlags) load() (*nn.Network, error) {
	act, err := nn.ParseActivation(m.activation)
	if err != nil {
		return nil, usageError{hint.Wrap(err, "Correct --activation.")}
	}
	return model.Load(m.path, act)
}

func evalCommand() *cobra.Command {
	var d dataFlags
	var m modelFlags
	var asJSON bool
	c := &cobra.Command{
		Use:     "eval",
		Short:   "Score a model on held-out samples",
		Example: "  mlp eval --model /models --data /data --json",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			net, err := m.load()
			if err != nil {
				return err
			}
			set, err := dataset.LoadTest(d.path, d.seed, d.csv)
			if err != nil {
				return err
			}
			if err := train.Fits(net, set); err != nil {
				return err
			}
			s := train.Evaluate(net, set)
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(map[string]any{"accuracy": s.Accuracy(), "loss": s.Loss, "correct": s.Correct, "samples": s.Samples})
			}
			fmt.Fprintf(c.OutOrStdout(), "accuracy %.4f loss %.4f on %d held-out samples\n", s.Accuracy(), s.Loss, s.Samples)
			return nil
		},
	}
	d.add(c)
	m.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
