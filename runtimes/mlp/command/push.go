package command

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/runtimes/mlp/atomicfile"
	"github.com/ferryos/ferry/runtimes/mlp/hint"
	"github.com/ferryos/ferry/runtimes/mlp/model"
	"github.com/ferryos/ferry/runtimes/mlp/nn"
	"github.com/ferryos/ferry/runtimes/mlp/push"
)

// pushFlags say where a model goes and what is said about it.
type pushFlags struct {
	ref, registryConfig, imageDigest, digestFile, terminationLog string
}

// add declares the flags; refFlag names the one that holds the reference, ""
// where it is an argument.
func (p *pushFlags) add(c *cobra.Command, refFlag string) {
	f := c.Flags()
	if refFlag != "" {
		f.StringVar(&p.ref, refFlag, "", "publish to this reference, HOST:PORT/REPOSITORY:TAG")
	}
	f.StringVar(&p.registryConfig, "registry-config", "", "dockerconfigjson file, or folder where such a Secret is mounted")
	f.StringVar(&p.imageDigest, "image-digest", os.Getenv("MLP_IMAGE_DIGEST"), "digest of the image that trained the model ($MLP_IMAGE_DIGEST)")
	f.StringVar(&p.digestFile, "digest-file", "", "write the artifact's digest to this file")
	f.StringVar(&p.terminationLog, "termination-log", "/dev/termination-log", "write the artifact's digest there, where the file exists")
}

func (p *pushFlags) check() error {
	if p.ref != "" {
		if _, err := push.ParseReference(p.ref); err != nil {
			return usageError{err}
		}
	}
	if p.imageDigest == "" {
		return nil
	}
	if _, err := digest.Parse(p.imageDigest); err != nil {
		return usageError{hint.Errorf("Write it as sha256: and 64 hexadecimal digits.", "image digest %.100q: %w", p.imageDigest, err)}
	}
	return nil
}

func pushCommand() *cobra.Command {
	var p pushFlags
	var dir string
	c := &cobra.Command{
		Use:     "push REFERENCE",
		Short:   "Publish a trained model to a registry as a ModelPack artifact",
		Example: "  mlp push --model /model --registry-config /var/run/registry localhost:5000/models/digits:v1",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{hint.Errorf("See 'mlp push --help'.", "want one reference, got %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			p.ref = args[0]
			if err := p.check(); err != nil {
				return err
			}
			return runPush(c, dir, p)
		},
	}
	c.Flags().StringVar(&dir, "model", "model", "folder that 'mlp train' wrote")
	p.add(c, "")
	return c
}

func runPush(c *cobra.Command, dir string, p pushFlags) error {
	ref, err := push.ParseReference(p.ref)
	if err != nil {
		return usageError{err}
	}
	m, err := model.LoadMetrics(dir)
	if err != nil {
		return err
	}
	net, err := model.Load(dir, nn.ReLU)
	if err != nil {
		return err
	}
	created, err := creationTime()
	if err != nil {
		return err
	}
	annotations := map[string]string{
		push.Annotation("accuracy"): strconv.FormatFloat(m.Accuracy, 'f', 4, 64),
		push.Annotation("loss"):     strconv.FormatFloat(m.Loss, 'f', 4, 64),
		push.Annotation("epochs"):   strconv.Itoa(m.Epochs),
		push.Annotation("seed"):     strconv.FormatUint(m.Seed, 10),
	}
	if p.imageDigest != "" {
		annotations[push.ImageDigest] = p.imageDigest
	}
	a, err := push.Pack(dir, []string{model.WeightsFile, model.MetricsFile}, push.Description{
		Name: ref.Repository, Version: ref.Tag, Created: created, Params: net.Params(), Annotations: annotations,
	})
	if err != nil {
		return err
	}
	client, err := push.NewClient(p.registryConfig)
	if err != nil {
		return err
	}
	if err := client.Send(c.Context(), ref, a); err != nil {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "pushed %s@%s\n", p.ref, a.Digest)
	return report(p, a.Digest.String())
}

// report writes the digest where a pod's owner can read it. The termination
// log is a mount and is written in place; it exists only in a pod.
func report(p pushFlags, dgst string) error {
	if p.digestFile != "" {
		if err := atomicfile.Write(p.digestFile, []byte(dgst+"\n")); err != nil {
			return err
		}
	}
	if _, err := os.Stat(p.terminationLog); err != nil {
		return nil
	}
	if err := os.WriteFile(p.terminationLog, []byte(dgst), 0o644); err != nil {
		return hint.Errorf("Name another file with --termination-log.", "report digest: %w", err)
	}
	return nil
}

// creationTime is now, or SOURCE_DATE_EPOCH where a reproducible artifact is
// wanted.
func creationTime() (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return time.Now(), nil
	}
	sec, err := strconv.ParseInt(s, 10, 64)
	if err != nil || sec < 0 {
		return time.Time{}, hint.Errorf("Set it to seconds since 1970, or unset it.", "SOURCE_DATE_EPOCH %.40q is not a time", s)
	}
	return time.Unix(sec, 0), nil
}
