package command

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/runtimes/mlp/dataset"
	"github.com/ferryos/ferry/runtimes/mlp/glyph"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
)

func dataCommand() *cobra.Command {
	c := &cobra.Command{Use: "data", Short: "Make or look at a data set"}
	c.AddCommand(generateCommand(), inspectCommand())
	return c
}

func generateCommand() *cobra.Command {
	var out string
	var train, test int
	var seed uint64
	c := &cobra.Command{
		Use:     "generate",
		Short:   "Draw 28x28 digits from the Go fonts into MNIST's four IDX files",
		Example: "  mlp data generate --out /data --train 12000 --test 2000",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if train < 1 || test < 1 || train > 1<<20 || test > 1<<20 {
				return usageError{hint.Errorf("Choose --train and --test between 1 and 1048576.", "cannot draw %d training and %d test digits", train, test)}
			}
			d, err := glyph.New(glyph.Default)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(out, 0o755); err != nil {
				return hint.Errorf("Name a writable folder with --out.", "data: %w", err)
			}
			// Held-out digits come from a stream of their own.
			if err := dataset.WriteIDX(out, "train", d.Set(train, seed)); err != nil {
				return err
			}
			if err := dataset.WriteIDX(out, "t10k", d.Set(test, ^seed)); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "drew %d training and %d held-out digits into %s\n", train, test, out)
			return nil
		},
	}
	c.Flags().StringVarP(&out, "out", "o", "data", "folder to write to")
	c.Flags().IntVar(&train, "train", 12000, "number of training digits")
	c.Flags().IntVar(&test, "test", 2000, "number of held-out digits")
	c.Flags().Uint64Var(&seed, "seed", 1, "seed; the same gives the same bytes")
	return c
}

func inspectCommand() *cobra.Command {
	var d dataFlags
	var show int
	c := &cobra.Command{
		Use:     "inspect",
		Short:   "Say what a data set holds and draw some of it",
		Example: "  mlp data inspect --data /data --show 3",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			data, err := dataset.Load(d.path, d.seed, d.csv)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			fmt.Fprintf(out, "%d training and %d held-out samples of %d values, %d classes\n",
				data.Train.Len(), data.Test.Len(), data.Train.Features, data.Train.Classes())
			for i := range min(show, data.Train.Len()) {
				fmt.Fprintf(out, "sample %d is %d\n", i, data.Train.Labels[i])
				if lines := drawing(data.Train, i); lines != nil {
					fmt.Fprintln(out, strings.Join(lines, "\n"))
				}
			}
			return nil
		},
	}
	d.add(c)
	c.Flags().IntVar(&show, "show", 1, "number of samples to draw")
	return c
}

// dataFlags are those of every command that reads samples.
type dataFlags struct {
	path string
	seed uint64
	csv  dataset.CSVOptions
}

func (d *dataFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&d.path, "data", "data", "folder with MNIST's IDX files or train.csv, or a CSV file")
	c.Flags().Uint64Var(&d.seed, "split-seed", 1, "seed of the split where the data has no test set")
	c.Flags().StringVar(&d.csv.Label, "csv-label", "first", "CSV column of the label: first or last")
	c.Flags().StringVar(&d.csv.Header, "csv-header", "auto", "CSV header row: auto, yes or no")
	c.Flags().Float32Var(&d.csv.Scale, "csv-scale", 1, "divide CSV values by this; must be the same in training and prediction")
}

// drawing returns sample i as lines of characters, nil when it is no image.
func drawing(s *dataset.Set, i int) []string {
	if s.Width == 0 {
		return nil
	}
	row := make([]float32, s.Features)
	s.Row(i, row)
	pixels := make([]byte, len(row))
	for j, v := range row {
		pixels[j] = byte(v*255 + 0.5)
	}
	return glyph.Text(pixels, s.Width)
}
