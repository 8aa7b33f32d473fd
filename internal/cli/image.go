package cli

import (
	"context"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

// imageCommand gathers what there is about images, as `docker image` does.
func (e *env) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Short: "Work with images", Args: noArgs,
		Example: "  ferry image ls\n  ferry image bootstrap debian:bookworm",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list, remove := e.imagesCommand(), e.rmiCommand()
	list.Use, list.Example = "ls", "  ferry image ls"
	remove.Use, remove.Example = "rm IMAGE…", "  ferry image rm digits:v1"
	cmd.AddCommand(list, remove, e.imageInspectCommand(), e.historyCommand(), e.imagePruneCommand(), e.tagCommand(), e.pullCommand(), e.pushCommand(),
		e.loadCommand(), e.saveCommand(), e.bootstrapCommand())
	return cmd
}

func (e *env) imageInspectCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "inspect IMAGE", Short: "Show everything about an image", Example: "  ferry image inspect digits:v1",
		Args: exactly(1, "IMAGE"), ValidArgsFunction: e.completeImages(false),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				img, err := c.ImageInspect(ctx, args[0])
				if err != nil {
					return err
				}
				return output.show(e.term, img.InspectResponse, func() error { return e.term.Value(term.JSON, img.InspectResponse) })
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) historyCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "history IMAGE", Short: "Show what an image was made by", Example: "  ferry image history digits:v1",
		Args: exactly(1, "IMAGE"), ValidArgsFunction: e.completeImages(false),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				list, err := c.ImageHistory(ctx, args[0])
				if err != nil {
					return err
				}
				return output.show(e.term, list.Items, func() error {
					var rows [][]string
					for _, item := range list.Items {
						rows = append(rows, []string{age(time.Unix(item.Created, 0)), units.HumanSize(float64(item.Size)), item.CreatedBy})
					}
					return e.term.Rows([]string{"AGE", "SIZE", "CREATED BY"}, rows)
				})
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) imagePruneCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove images that no container was made of", Args: noArgs,
		Example: "  ferry image prune        those without a name\n  ferry image prune --all  those with one too",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return e.withDocker(func(c *client.Client) error {
				filters := client.Filters{}
				if all {
					filters = filters.Add("dangling", "false")
				}
				res, err := c.ImagePrune(ctx, client.ImagePruneOptions{Filters: filters})
				if err != nil {
					return err
				}
				for _, gone := range res.Report.ImagesDeleted {
					if gone.Untagged != "" {
						e.term.Printf("untagged %s\n", gone.Untagged)
					} else {
						e.term.Printf("deleted %s\n", gone.Deleted)
					}
				}
				e.term.Notef("%s", units.HumanSize(float64(res.Report.SpaceReclaimed))+" freed")
				return nil
			})
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have a name")
	return cmd
}

// step is a line of a pull's or push's progress worth a line of output, "" for
// how far a blob is; an error is one of the stream.
func step(msg jsonstream.Message) (string, error) {
	switch {
	case msg.Error != nil:
		return "", fault.New(kindOfStatus(msg.Error.Code), "%s", msg.Error.Message)
	case msg.Progress != nil:
		return "", nil
	case msg.ID != "" && msg.Status != "":
		return msg.ID + ": " + msg.Status, nil
	}
	return msg.Status, nil
}

// kindOfStatus is the kind of an error that came in a stream, after its status
// could be that of the answer.
func kindOfStatus(status int) fault.Kind {
	for _, k := range []fault.Kind{fault.Invalid, fault.NotFound, fault.Conflict, fault.Denied, fault.Unavailable, fault.Unsupported} {
		if fault.HTTPStatus(fault.New(k, "")) == status {
			return k
		}
	}
	return fault.Internal
}
