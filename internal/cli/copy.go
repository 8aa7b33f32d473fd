package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/go-archive"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

func (e *env) cpCommand() *cobra.Command {
	var opts copyOptions
	cmd := &cobra.Command{
		Use: "cp CONTAINER:PATH PATH|-  or  PATH|- CONTAINER:PATH", Short: "Copy files out of a container, or into one",
		Example: "  ferry cp web:/var/log/app.log .\n  ferry cp ./conf web:/etc/app\n  tar -c data | ferry cp - web:/srv",
		Long:    "Copies a file or a directory between a container, running or not, and this machine.\nWith - in place of a path, a tar is written to standard output or read from standard input.\nA directory's content alone is named by DIRECTORY/. as source.",
		Args:    exactly(2, "source or destination"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			from, to := splitPlace(args[0]), splitPlace(args[1])
			return e.withDocker(func(c *client.Client) error {
				switch {
				case from.container != "" && to.container != "":
					return fault.New(fault.Unsupported, "cp: copying from one container to another is not supported").Hint("copy to this machine first")
				case from.container != "":
					return e.copyOut(ctx, c, from, to.path, opts)
				case to.container != "":
					return e.copyIn(ctx, c, from.path, to, opts)
				default:
					return fault.New(fault.Invalid, "cp: neither %s nor %s names a container", args[0], args[1]).Hint("write CONTAINER:PATH")
				}
			})
		}),
	}
	cmd.Flags().BoolVarP(&opts.follow, "follow-link", "L", false, "copy what a link as source leads to, not the link")
	cmd.Flags().BoolVarP(&opts.owner, "archive", "a", false, "give what is copied into a container to the container's user")
	return cmd
}

type copyOptions struct{ follow, owner bool }

// place is a path in a container, or of this machine if that is empty.
type place struct{ container, path string }

// splitPlace reads CONTAINER:PATH. What begins with a dot or a slash is a path of this machine.
func splitPlace(arg string) place {
	name, path, ok := strings.Cut(arg, ":")
	if !ok || filepath.IsAbs(arg) || strings.HasPrefix(name, ".") || name == "" {
		return place{path: arg}
	}
	return place{name, path}
}

// inContainer is a container's path, from its root, as the API wants it.
func inContainer(path string) string {
	return archive.PreserveTrailingDotOrSeparator(filepath.Join("/", path), path)
}

// onMachine is a path of this machine, absolute, its end kept as it was written.
func onMachine(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return archive.PreserveTrailingDotOrSeparator(abs, path), nil
}

// copyError gives what is wrong with a path on this machine its kind.
func copyError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "cp: %w", err)
	case errors.Is(err, archive.ErrCannotCopyDir), errors.Is(err, archive.ErrDirNotExists), errors.Is(err, archive.ErrNotDirectory):
		return fault.New(fault.Invalid, "cp: %w", err)
	}
	return err
}

func (e *env) copyOut(ctx context.Context, c *client.Client, from place, to string, opts copyOptions) error {
	source := inContainer(from.path)
	rebase := ""
	if opts.follow {
		stat, err := c.ContainerStatPath(ctx, from.container, client.ContainerStatPathOptions{Path: source})
		if err != nil {
			return err
		}
		if target := stat.Stat.LinkTarget; target != "" {
			source, rebase = archive.GetRebaseName(source, target)
		}
	}
	res, err := c.CopyFromContainer(ctx, from.container, client.CopyFromContainerOptions{SourcePath: source})
	if err != nil {
		return err
	}
	defer res.Content.Close()
	if to == "-" {
		if e.term.OutputFile() != nil {
			return fault.New(fault.Invalid, "cp: an archive does not belong on a terminal").Hint("give a path in place of -")
		}
		_, err := io.Copy(e.term.Out, res.Content)
		return err
	}
	destination, err := onMachine(to)
	if err != nil {
		return err
	}
	info := archive.CopyInfo{Path: source, Exists: true, IsDir: res.Stat.Mode.IsDir(), RebaseName: rebase}
	content := io.Reader(res.Content)
	if rebase != "" {
		_, base := archive.SplitPathDirEntry(info.Path)
		content = archive.RebaseArchiveEntries(content, base, rebase)
	}
	return copyError(archive.CopyTo(content, info, destination))
}

func (e *env) copyIn(ctx context.Context, c *client.Client, from string, to place, opts copyOptions) error {
	target := archive.CopyInfo{Path: inContainer(to.path)}
	stat, err := c.ContainerStatPath(ctx, to.container, client.ContainerStatPathOptions{Path: target.Path})
	if err == nil && stat.Stat.LinkTarget != "" {
		target.Path = stat.Stat.LinkTarget
		stat, err = c.ContainerStatPath(ctx, to.container, client.ContainerStatPathOptions{Path: target.Path})
	}
	if err == nil { // else the copying tells what is wrong, if anything
		target.Exists, target.IsDir = true, stat.Stat.Mode.IsDir()
	}
	put := client.CopyToContainerOptions{CopyUIDGID: opts.owner}
	if from == "-" {
		put.DestinationPath, put.Content = target.Path, e.term.In
		if target.Exists && !target.IsDir {
			return fault.New(fault.Invalid, "cp: %s:%s is no directory to unpack an archive in", to.container, to.path)
		}
		_, err := c.CopyToContainer(ctx, to.container, put)
		return err
	}
	source, err := onMachine(from)
	if err != nil {
		return err
	}
	info, err := archive.CopyInfoSourcePath(source, opts.follow)
	if err != nil {
		return copyError(err)
	}
	packed, err := archive.TarResource(info)
	if err != nil {
		return copyError(err)
	}
	defer packed.Close()
	dir, content, err := archive.PrepareArchiveCopy(packed, info, target)
	if err != nil {
		return copyError(err)
	}
	defer content.Close()
	put.DestinationPath, put.Content = dir, content
	_, err = c.CopyToContainer(ctx, to.container, put)
	return err
}

func (e *env) diffCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "diff CONTAINER", Short: "Show which files a container has changed", Example: "  ferry diff web",
		Long: "Lists what is changed (C), added (A) and deleted (D) against the container's image. What is mounted does not count.",
		Args: exactly(1, "CONTAINER"), ValidArgsFunction: e.completeContainers(true),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.withDocker(func(c *client.Client) error {
				res, err := c.ContainerDiff(ctx, args[0], client.ContainerDiffOptions{})
				if err != nil {
					return err
				}
				return output.show(e.term, res.Changes, func() error {
					for _, change := range res.Changes {
						e.term.Printf("%s %s\n", change.Kind, change.Path)
					}
					return nil
				})
			})
		}),
	}
	output.addFlags(cmd)
	return cmd
}

func (e *env) commitCommand() *cobra.Command {
	var opts client.ContainerCommitOptions
	cmd := &cobra.Command{
		Use: "commit CONTAINER [NAME]", Short: "Make an image of a container's files",
		Example: "  ferry commit web web:patched\n  ferry commit -m 'with tools' -c 'CMD [\"serve\"]' web web:v2",
		Args:    atLeast(1, "CONTAINER"), ValidArgsFunction: e.completeContainers(true),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if len(args) > 2 {
				return fault.New(fault.Invalid, "commit: unexpected argument %q", args[2])
			}
			if len(args) == 2 {
				if opts.Reference = args[1]; checkName(opts.Reference) != nil {
					return checkName(opts.Reference)
				}
			}
			return e.withDocker(func(c *client.Client) error {
				res, err := c.ContainerCommit(ctx, args[0], opts)
				if err == nil {
					e.term.Printf("%s\n", res.ID)
				}
				return err
			})
		}),
	}
	cmd.Flags().StringVarP(&opts.Comment, "message", "m", "", "`text` for the image's history")
	cmd.Flags().StringVarP(&opts.Author, "author", "a", "", "the image's `author`")
	cmd.Flags().StringArrayVarP(&opts.Changes, "change", "c", nil, "apply an `instruction` of a Dockerfile to the image's configuration")
	cmd.Flags().BoolVar(&opts.NoPause, "no-pause", false, "let the container run on meanwhile")
	return cmd
}

func (e *env) exportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "export CONTAINER", Short: "Write a container's files to an archive", Example: "  ferry export -o root.tar web",
		Args: exactly(1, "CONTAINER"), ValidArgsFunction: e.completeContainers(true),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			return e.writeArchive("export", output, func(c *client.Client) (io.ReadCloser, error) {
				return c.ContainerExport(ctx, args[0], client.ContainerExportOptions{})
			})
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to `file`")
	return cmd
}

func (e *env) importCommand() *cobra.Command {
	var opts client.ImageImportOptions
	cmd := &cobra.Command{
		Use: "import FILE|- NAME", Short: "Make an image of an archive of a root", Example: "  ferry import root.tar base:v1\n  ferry export web | ferry import -c 'CMD [\"sh\"]' - flat",
		Args: exactly(2, "FILE or NAME"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if err := checkName(args[1]); err != nil {
				return err
			}
			in := e.term.In
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fault.New(fault.NotFound, "import: %w", err)
				}
				defer f.Close()
				in = f
			}
			return e.withDocker(func(c *client.Client) error {
				res, err := c.ImageImport(ctx, client.ImageImportSource{Source: in, SourceName: "-"}, args[1], opts)
				if err != nil {
					return err
				}
				defer res.Close()
				return e.printMessages(res)
			})
		}),
	}
	cmd.Flags().StringVarP(&opts.Message, "message", "m", "", "`text` for the image's history")
	cmd.Flags().StringArrayVarP(&opts.Changes, "change", "c", nil, "apply an `instruction` of a Dockerfile to the image's configuration")
	return cmd
}
