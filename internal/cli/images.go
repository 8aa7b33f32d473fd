package cli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/containerd/platforms"
	imageref "github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

func (e *env) imagesCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "images", Short: "List images", Args: noArgs,
		Example: "  ferry images\n  ferry images -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				list, err := c.ImageList(ctx, client.ImageListOptions{})
				if err != nil {
					return err
				}
				return output.show(e.term, list.Items, func() error {
					var rows [][]string
					for _, img := range list.Items {
						tags := img.RepoTags
						if len(tags) == 0 {
							tags = []string{"<none>"}
						}
						for _, tag := range tags {
							rows = append(rows, []string{tag, shortID(img.ID), age(time.Unix(img.Created, 0)), units.HumanSize(float64(img.Size))})
						}
					}
					return e.term.Rows([]string{"NAME", "ID", "AGE", "SIZE"}, rows)
				})
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give an image another name", Example: "  ferry tag digits:v1 localhost:5000/digits:v1",
		Args: exactly(2, "IMAGE or NAME"), ValidArgsFunction: e.completeImages(false),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				if err := checkName(args[1]); err != nil {
					return err
				}
				_, err := c.ImageTag(ctx, client.ImageTagOptions{Source: args[0], Target: args[1]})
				return err
			})
		}),
	}
}

// checkName refuses what is no image's name before the client library does,
// whose error tells less.
func checkName(name string) error {
	if _, err := imageref.ParseNormalizedNamed(name); err != nil {
		return fault.New(fault.Invalid, "image name %s: %w", name, err).Hint("names look like registry:port/path/name:tag, in lower case")
	}
	return nil
}

func (e *env) rmiCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rmi IMAGE…", Short: "Remove images", Example: "  ferry rmi digits:v1",
		Args: atLeast(1, "IMAGE"), ValidArgsFunction: e.completeImages(true),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				return e.each(args, func(name string) error {
					res, err := c.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: force})
					for _, item := range res.Items {
						if item.Untagged != "" {
							e.term.Printf("untagged %s\n", item.Untagged)
						} else {
							e.term.Printf("deleted %s\n", item.Deleted)
						}
					}
					return err
				})
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also with several names, or used by a stopped container")
	return cmd
}

func (e *env) pullCommand() *cobra.Command {
	var platform string
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Fetch an image from a registry",
		Example: "  ferry pull localhost:5000/digits:v1\n  ferry pull --platform linux/arm64 debian:bookworm",
		Args:    exactly(1, "IMAGE"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error { return e.pull(ctx, c, args[0], platform, false) })
		}),
	}
	cmd.Flags().StringVar(&platform, "platform", "", "fetch the variant for this `OS/ARCH`")
	return cmd
}

// pull fetches an image and shows the registry's answer on standard error, or
// on standard output if it is what was asked for.
func (e *env) pull(ctx context.Context, c *client.Client, name, platform string, beside bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	var opt client.ImagePullOptions
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return fault.New(fault.Invalid, "platform %q: %w", platform, err).Hint("platforms look like linux/arm64")
		}
		opt.Platforms = append(opt.Platforms, p)
	}
	res, err := c.ImagePull(ctx, name, opt)
	if err != nil {
		return err
	}
	defer res.Close()
	show := func(line string) { e.term.Printf("%s\n", line) }
	if beside {
		show = func(line string) { e.term.Notef("%s", line) }
	}
	return showSteps(res.JSONMessages(ctx), show)
}

// showSteps shows the progress of a pull or push, without how far each blob is.
func showSteps(messages iter.Seq2[jsonstream.Message, error], show func(line string)) error {
	for msg, err := range messages {
		if err != nil {
			return err
		}
		line, err := step(msg)
		if err != nil {
			return err
		}
		if line != "" {
			show(line)
		}
	}
	return nil
}

func (e *env) pushCommand() *cobra.Command {
	return &cobra.Command{
		Use: "push IMAGE", Short: "Send an image to the registry in its name", Example: "  ferry push localhost:5000/digits:v1",
		Args: exactly(1, "IMAGE"), ValidArgsFunction: e.completeImages(false),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				if err := checkName(args[0]); err != nil {
					return err
				}
				// The daemon knows its own registry's credential; the client's is empty.
				res, err := c.ImagePush(ctx, args[0], client.ImagePushOptions{RegistryAuth: "e30="})
				if err != nil {
					return err
				}
				defer res.Close()
				return showSteps(res.JSONMessages(ctx), func(line string) { e.term.Printf("%s\n", line) })
			})
		}),
	}
}

func (e *env) loadCommand() *cobra.Command {
	var input string
	cmd := &cobra.Command{
		Use: "load", Short: "Load images from an archive", Args: noArgs,
		Example: "  ferry load -i app.tar\n  ferry load < app.tar",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			in := e.term.In
			if input != "" {
				f, err := os.Open(input)
				if err != nil {
					return fault.New(fault.NotFound, "load: %w", err)
				}
				defer f.Close()
				in = f
			} else if e.term.InputFile() != nil {
				return fault.New(fault.Invalid, "load: standard input is a terminal").Hint("name the archive with -i FILE")
			}
			return e.withDocker(func(c *client.Client) error {
				res, err := c.ImageLoad(ctx, bufio.NewReader(in))
				if err != nil {
					return err
				}
				defer res.Close()
				return e.printMessages(res)
			})
		}),
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "read from `file`")
	return cmd
}

func (e *env) saveCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "save IMAGE…", Short: "Write images to an archive", Args: atLeast(1, "IMAGE"),
		Example: "  ferry save -o app.tar app:v1", ValidArgsFunction: e.completeImages(true),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.writeArchive("save", output, func(c *client.Client) (io.ReadCloser, error) { return c.ImageSave(ctx, args) })
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to `file`")
	return cmd
}

// writeArchive writes what the daemon answers to a file, or to standard output,
// which must not be a terminal.
func (e *env) writeArchive(verb, output string, get func(*client.Client) (io.ReadCloser, error)) error {
	if output == "" && e.term.OutputFile() != nil {
		return fault.New(fault.Invalid, "%s: an archive does not belong on a terminal", verb).Hint("name a file with -o FILE")
	}
	return e.withDocker(func(c *client.Client) error {
		res, err := get(c)
		if err != nil {
			return err
		}
		defer res.Close()
		if output == "" {
			_, err = io.Copy(e.term.Out, res)
			return err
		}
		return writeWhole(output, res)
	})
}

// writeWhole writes a file that is there as a whole or not at all.
func writeWhole(path string, in io.Reader) error {
	f, err := os.Create(path + ".partial")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// printMessages prints the stream of progress that some requests answer with.
func (e *env) printMessages(in io.Reader) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var msg struct {
			Stream      string                    `json:"stream"`
			Status      string                    `json:"status"`
			ErrorDetail *struct{ Message string } `json:"errorDetail"`
		}
		if err := decodeJSON(lines.Bytes(), &msg); err != nil {
			return err
		}
		if msg.ErrorDetail != nil {
			return fault.New(fault.Internal, "%s", msg.ErrorDetail.Message)
		}
		e.term.Printf("%s\n", strings.TrimSpace(msg.Stream+msg.Status))
	}
	return lines.Err()
}
