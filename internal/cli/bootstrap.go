package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

// bootstrap makes a base image of a distribution's packages.
type bootstrap struct {
	distribution, suite string
	slim                bool
	mirror              string
	include             string
	epoch               time.Time
}

func (e *env) bootstrapCommand() *cobra.Command {
	var b bootstrap
	cmd := &cobra.Command{
		Use: "bootstrap NAME", Short: "Make Debian's or Ubuntu's base image from its packages, without a registry",
		Long: "bootstrap installs a distribution's essential packages and apt with mmdebstrap and loads them as the image\n" +
			"that a registry has under the name: debian:bookworm, debian:bookworm-slim (without manuals and locales),\n" +
			"ubuntu:noble. Packages come from the distribution's archive, or from --mirror. With SOURCE_DATE_EPOCH set\n" +
			"to the same time, and the same packages, the image is the same.",
		Example: "  ferry image bootstrap debian:bookworm\n  ferry image bootstrap --mirror http://mirror.example/debian debian:bookworm-slim",
		Args:    exactly(1, "NAME"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if err := b.parse(args[0], e.getenv("SOURCE_DATE_EPOCH"), time.Now()); err != nil {
				return err
			}
			return e.withDocker(func(c *client.Client) error {
				if _, err := c.Ping(ctx, client.PingOptions{}); err != nil { // before minutes of work
					return err
				}
				return e.bootstrap(ctx, c, b)
			})
		}),
	}
	cmd.Flags().StringVar(&b.mirror, "mirror", "", "take the packages from this `URL`, or line of sources.list")
	cmd.Flags().StringVar(&b.include, "include", "", "install these `packages` too, separated by commas")
	return cmd
}

// parse reads DISTRIBUTION:SUITE[-slim].
func (b *bootstrap) parse(name, epoch string, now time.Time) error {
	distribution, suite, _ := strings.Cut(strings.TrimPrefix(name, "docker.io/library/"), ":")
	b.suite, b.slim = strings.CutSuffix(suite, "-slim")
	b.distribution = distribution
	known := distribution == "debian" || distribution == "ubuntu"
	if !known || b.suite == "" || strings.Trim(b.suite, "abcdefghijklmnopqrstuvwxyz") != "" {
		return fault.New(fault.Invalid, "bootstrap %s: the name must be debian:SUITE, debian:SUITE-slim or ubuntu:SUITE", name).
			Hint("for example `ferry image bootstrap debian:bookworm`")
	}
	b.epoch = now.UTC().Truncate(24 * time.Hour)
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fault.New(fault.Invalid, "SOURCE_DATE_EPOCH: %q is no number of seconds", epoch)
		}
		b.epoch = time.Unix(seconds, 0).UTC()
	}
	return nil
}

// unneeded is what slim images leave out, as Debian's do.
var unneeded = []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*", "/usr/share/groff/*"}

// command is the mmdebstrap that writes the root file system as a tar to file.
func (b *bootstrap) command(ctx context.Context, program, file string) *exec.Cmd {
	args := []string{"--variant=minbase", "--format=tar"}
	if b.slim {
		for _, path := range unneeded {
			args = append(args, "--dpkgopt=path-exclude="+path)
		}
		args = append(args, "--dpkgopt=path-include=/usr/share/doc/*/copyright")
	}
	if b.include != "" {
		args = append(args, "--include="+b.include)
	}
	args = append(args, b.suite, file)
	if b.mirror != "" {
		args = append(args, b.mirror)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up
	cmd.WaitDelay = 30 * time.Second
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(b.epoch.Unix(), 10))
	return cmd
}

func (b *bootstrap) name() string {
	name := "docker.io/library/" + b.distribution + ":" + b.suite
	if b.slim {
		name += "-slim"
	}
	return name
}

func (e *env) bootstrap(ctx context.Context, c *client.Client, b bootstrap) (err error) {
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return fault.New(fault.Unavailable, "bootstrap %s: mmdebstrap is not installed", b.name()).Hint("apt install mmdebstrap")
	}
	dir, err := os.MkdirTemp("", "ferry-bootstrap-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	layer := filepath.Join(dir, "layer.tar")
	cmd := b.command(ctx, program, layer)
	var said bytes.Buffer
	out := io.MultiWriter(&said, e.term.Err) // one for both, so that it is written to by one goroutine
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Unavailable, "bootstrap %s: mmdebstrap: %w: %s", b.name(), err, lastLine(said.String())).
			Hint("is the archive reachable, and does it have the suite? name another with --mirror")
	}
	archive, err := b.archive(layer)
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", b.name(), err)
	}
	defer archive.Close()
	res, err := c.ImageLoad(ctx, archive)
	if err != nil {
		return err
	}
	defer res.Close()
	return e.printMessages(res)
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// archive is what `docker save` would write of an image with the one layer.
func (b *bootstrap) archive(layer string) (io.ReadCloser, error) {
	f, err := os.Open(layer)
	if err != nil {
		return nil, err
	}
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	config, err := json.Marshal(ocispec.Image{
		Created: &b.epoch, Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:  ocispec.ImageConfig{Cmd: []string{"bash"}, Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		RootFS:  ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(hash.Sum(nil)))}},
		History: []ocispec.History{{Created: &b.epoch, CreatedBy: "ferry image bootstrap " + b.name()}},
	})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{b.name()}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	var head, tail bytes.Buffer
	w := tar.NewWriter(&head)
	for name, data := range map[string][]byte{"config.json": config, "manifest.json": manifest} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if _, err := w.Write(data); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "layer.tar", Mode: 0o644, Size: size}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if pad := size % 512; pad > 0 {
		tail.Write(make([]byte, 512-pad))
	}
	tail.Write(make([]byte, 1024)) // the end of a tar
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(&head, f, &tail), f}, nil
}
