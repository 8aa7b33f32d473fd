package dockerapi

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/crilog"
	"github.com/ferryos/ferry/internal/fault"
)

// logOptions say what of a container's log is wanted.
type logOptions struct {
	stdout, stderr, timestamps, follow, details bool
	tail                                        int // negative: all
	since, until                                time.Time
}

func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	c, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	opt, err := parseLogOptions(r)
	if err != nil {
		return err
	}
	if c.LogPath == "" {
		return fault.New(fault.Unsupported, "container %s was created without a log", c.Spec.Name)
	}
	media := types.MediaTypeMultiplexedStream
	if c.Spec.TTY {
		media = types.MediaTypeRawStream
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return err
	}
	stdout, stderr := outputs(flushing{w, rc}, c.Spec.TTY)
	return s.copyLog(r.Context(), c, opt, stdout, stderr)
}

func parseLogOptions(r *http.Request) (opt logOptions, err error) {
	opt = logOptions{details: flag(r, "details"), stdout: flag(r, "stdout"), stderr: flag(r, "stderr"), timestamps: flag(r, "timestamps"), follow: flag(r, "follow"), tail: -1}
	if !opt.stdout && !opt.stderr {
		return opt, fault.New(fault.Invalid, "Bad parameters: you must choose at least one stream")
	}
	if t := param(r, "tail"); t != "" && t != "all" {
		if n, err := strconv.Atoi(t); err == nil && n >= 0 { // anything else is all, as Docker has it
			opt.tail = n
		}
	}
	if opt.since, err = parseTime(param(r, "since")); err != nil {
		return opt, err
	}
	opt.until, err = parseTime(param(r, "until"))
	return opt, err
}

// logDetails are the labels and variables of a container that its log options
// name, as Docker shows them before each line.
func logDetails(c engine.Container) string {
	set := settingsOf(c)
	details := map[string]string{}
	for name := range strings.SplitSeq(set.HostConfig.LogConfig.Config["labels"], ",") {
		if value, ok := c.Spec.Labels[name]; ok {
			details[name] = value
		}
	}
	wanted := strings.Split(set.HostConfig.LogConfig.Config["env"], ",")
	for _, kv := range set.Config.Env {
		if name, value, ok := strings.Cut(kv, "="); ok && slices.Contains(wanted, name) {
			details[name] = value
		}
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(details)) {
		pairs = append(pairs, url.QueryEscape(name)+"="+url.QueryEscape(details[name]))
	}
	return strings.Join(pairs, ",")
}

// flushing sends what is written at once: whoever follows a log waits for it.
type flushing struct {
	io.Writer
	rc *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	return n, errors.Join(err, f.rc.Flush())
}

// copyLog writes the container's log, and follows it until the container has
// ended if that is asked for.
func (s *Server) copyLog(ctx context.Context, c engine.Container, opt logOptions, stdout, stderr io.Writer) error {
	read := crilog.Options{Tail: opt.tail, Since: opt.since, Until: opt.until, Follow: opt.follow, Rotated: true}
	if opt.follow {
		ended := make(chan struct{})
		read.Ended = ended
		go func() { // ends with the container or the request
			defer close(ended)
			_, _ = s.opt.Engine.Wait(ctx, c.ID)
		}()
	}
	var line, details []byte
	if opt.details {
		details = []byte(logDetails(c) + " ")
	}
	return crilog.Read(ctx, c.LogPath, read, func(e crilog.Entry) error {
		to := stdout
		switch {
		case e.Stream == "stdout" && !opt.stdout, e.Stream == "stderr" && !opt.stderr:
			return nil
		case e.Stream == "stderr":
			to = stderr
		}
		line = line[:0]
		if opt.timestamps {
			line = e.Time.AppendFormat(line, "2006-01-02T15:04:05.000000000Z07:00 ")
		}
		line = append(line, details...)
		line = append(line, e.Content...)
		if !e.Partial {
			line = append(line, '\n')
		}
		_, err := to.Write(line)
		return err
	})
}
