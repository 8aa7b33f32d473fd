package cli

import (
	"context"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/ferryos/ferry/internal/fault"
)

type logsOptions struct {
	follow, timestamps           bool
	tail, since                  string
	namespace, containerOfThePod string
}

func (e *env) logsCommand() *cobra.Command {
	var opts logsOptions
	cmd := &cobra.Command{
		Use: "logs [flags] CONTAINER|POD|KIND/NAME", Short: "Show what a container or a pod has printed",
		Long: "Shows the log of a container, or of the pods of a Kubernetes workload. A plain name is that of a\n" +
			"container first and of a pod then; job/NAME, deployment/NAME and the like are workloads.",
		Example: "  ferry logs -f web\n  ferry logs -f job/digits-train\n  ferry logs --tail 20 deployment/digits",
		Args:    exactly(1, "CONTAINER, POD or KIND/NAME"), ValidArgsFunction: e.completeContainers(true),
		RunE: interruptible(func(ctx context.Context, args []string) error { return e.runLogs(ctx, opts, args[0]) }),
	}
	f := cmd.Flags()
	f.BoolVarP(&opts.follow, "follow", "f", false, "go on until it has ended")
	f.BoolVarP(&opts.timestamps, "timestamps", "t", false, "with the time of each line")
	f.StringVar(&opts.tail, "tail", "all", "the last so many `lines`")
	f.StringVar(&opts.since, "since", "", "since a `time` (RFC 3339) or a duration ago (10m)")
	f.StringVarP(&opts.namespace, "namespace", "n", "default", "`namespace` of the pod or workload")
	f.StringVarP(&opts.containerOfThePod, "container", "c", "", "`container` of the pod, if it has several")
	return cmd
}

func (e *env) runLogs(ctx context.Context, opts logsOptions, name string) error {
	query, err := opts.query()
	if err != nil {
		return err
	}
	if !strings.Contains(name, "/") {
		err := e.withDocker(func(c *client.Client) error { return e.containerLogs(ctx, c, opts, name) })
		if !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	err = e.podLogs(ctx, opts, query, name)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "no container and no pod or workload is called %s", name).
			Hint("see `ferry ps -a` and `kubectl get pods -A`")
	}
	return err
}

func (e *env) containerLogs(ctx context.Context, c *client.Client, opts logsOptions, name string) error {
	info, err := c.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	log, err := c.ContainerLogs(ctx, name, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Since: opts.since,
		Timestamps: opts.timestamps, Follow: opts.follow, Tail: opts.tail})
	if err != nil {
		return err
	}
	defer log.Close()
	if info.Container.Config != nil && info.Container.Config.Tty {
		return copyLines(e.term.Out, log, "")
	}
	_, err = stdcopy.StdCopy(e.term.Out, e.term.Err, log)
	return err
}

// podLogs shows the logs of all pods that name means, each line after its
// pod's name if there are several.
func (e *env) podLogs(ctx context.Context, opts logsOptions, query url.Values, name string) error {
	k, err := e.kube()
	if err != nil {
		return err
	}
	pods, err := e.podsToCome(ctx, k, opts, name)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	errs := make([]error, len(pods))
	var wg sync.WaitGroup
	for i, pod := range pods {
		wg.Go(func() {
			prefix := ""
			if len(pods) > 1 {
				prefix = pod.Metadata.Name + ": "
			}
			errs[i] = e.podLog(ctx, k, opts, query, pod, &lockedWriter{&mu, e}, prefix)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

type lockedWriter struct {
	mu *sync.Mutex
	e  *env
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.e.term.Out.Write(p)
}

// podWait is how often what is not there yet is looked for.
const podWait = 100 * time.Millisecond

// podsToCome returns the pods of name; with --follow it waits for the first.
func (e *env) podsToCome(ctx context.Context, k *kubeClient, opts logsOptions, name string) ([]kubePod, error) {
	for {
		pods, err := k.pods(ctx, opts.namespace, name)
		if err != nil || len(pods) > 0 || !opts.follow {
			return pods, err
		}
		select {
		case <-time.After(podWait):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// podLog shows one pod's log; with --follow it waits until the container has started.
func (e *env) podLog(ctx context.Context, k *kubeClient, opts logsOptions, query url.Values, pod kubePod, out *lockedWriter, prefix string) error {
	path := "/api/v1/namespaces/" + url.PathEscape(opts.namespace) + "/pods/" + url.PathEscape(pod.Metadata.Name) + "/log"
	for {
		body, err := k.get(ctx, path, query)
		if err == nil {
			defer body.Close()
			return copyLines(out, body, prefix)
		}
		waiting := fault.Is(err, fault.Conflict) && (strings.Contains(err.Error(), "ContainerCreating") || strings.Contains(err.Error(), "waiting to start") || strings.Contains(err.Error(), "host must be"))
		if !waiting || !opts.follow {
			return err
		}
		select {
		case <-time.After(podWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// query is the log request's, as the Kubernetes API has it.
func (o logsOptions) query() (url.Values, error) {
	q := url.Values{}
	if o.follow {
		q.Set("follow", "true")
	}
	if o.timestamps {
		q.Set("timestamps", "true")
	}
	if o.containerOfThePod != "" {
		q.Set("container", o.containerOfThePod)
	}
	if o.tail != "" && o.tail != "all" {
		if _, err := strconv.ParseUint(o.tail, 10, 31); err != nil {
			return nil, fault.New(fault.Invalid, "--tail %s: not a number of lines", o.tail)
		}
		q.Set("tailLines", o.tail)
	}
	switch d, err := time.ParseDuration(o.since); {
	case o.since == "":
	case err == nil:
		q.Set("sinceSeconds", strconv.Itoa(max(1, int(d.Seconds()))))
	default:
		if _, err := time.Parse(time.RFC3339, o.since); err != nil {
			return nil, fault.New(fault.Invalid, "--since %s: neither a duration nor a time", o.since).Hint("write 10m or 2026-01-02T15:04:05Z")
		}
		q.Set("sinceTime", o.since)
	}
	return q, nil
}
