package cli

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// nodeStatus is what `ferry status` tells.
type nodeStatus struct {
	Running    bool   `json:"running"`
	PID        int    `json:"pid,omitempty"`
	Version    string `json:"version,omitempty"`
	Since      string `json:"since,omitempty"` // RFC 3339
	Ready      bool   `json:"ready"`
	NotReady   string `json:"notReady,omitempty"`
	Node       string `json:"node"`
	Context    string `json:"context"`
	Docker     string `json:"dockerHost"`
	Data       string `json:"dataDir"`
	Log        string `json:"log"`
	Containers int    `json:"containers"`
	Pods       int    `json:"pods"`
	Images     int    `json:"images"`
}

func (e *env) statusCommand() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use: "status", Short: "Show whether the platform runs and is ready", Args: noArgs,
		Long:    "Exits with 0 if Ferry is ready and with 6 if it is not or does not run.",
		Example: "  ferry status\n  ferry status -o json",
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			st, err := e.status(ctx)
			if err != nil {
				return err
			}
			if err := output.show(e.term, st, func() error { return e.term.Rows(nil, st.rows()) }); err != nil {
				return err
			}
			if !st.Ready {
				return exitError{exitNotReady}
			}
			return nil
		}),
	}
	output.addFlags(cmd)
	return cmd
}

// exitNotReady is the exit code of fault.Unavailable.
const exitNotReady = 6

func (e *env) status(ctx context.Context) (nodeStatus, error) {
	cfg, err := e.config()
	if err != nil {
		return nodeStatus{}, err
	}
	st := nodeStatus{Node: cfg.NodeName, Context: cfg.API.Context, Docker: "unix://" + cfg.DockerSocket(), Data: cfg.DataDir, Log: cfg.LogFile()}
	if st.PID, err = daemonPID(cfg); err != nil {
		return st, err
	}
	st.Running = st.PID != 0
	if !st.Running {
		st.NotReady = "Ferry is not running; start it with `ferry up`"
		return st, nil
	}
	if info, err := os.Stat(cfg.PIDFile()); err == nil {
		st.Since = info.ModTime().Format(time.RFC3339)
	}
	if err := e.withDocker(func(c *client.Client) error {
		info, err := c.Info(ctx, client.InfoOptions{})
		if err == nil {
			st.Version, st.Containers, st.Images = info.Info.ServerVersion, info.Info.ContainersRunning, info.Info.Images
		}
		return err
	}); err != nil {
		st.NotReady = err.Error()
		return st, nil
	}
	st.Ready, st.NotReady = e.nodeReady(ctx, cfg)
	if st.Ready {
		st.NotReady = ""
		if k, err := e.kube(); err == nil {
			var pods struct{ Items []kubePod }
			if err := k.getJSON(ctx, "/api/v1/pods", nil, &pods); err != nil {
				return st, err
			}
			for _, p := range pods.Items {
				if p.Status.Phase == "Running" {
					st.Pods++
				}
			}
		}
	}
	return st, nil
}

func (s nodeStatus) rows() [][]string {
	state := "ready"
	if !s.Ready {
		state = "not ready: " + s.NotReady
	}
	rows := [][]string{{"ferry", state}}
	if s.Running {
		rows = append(rows, []string{"daemon", fmt.Sprintf("version %s, process %d, since %s", s.Version, s.PID, s.Since)},
			[]string{"running", strconv.Itoa(s.Containers) + " containers, " + strconv.Itoa(s.Pods) + " pods"}, []string{"images", strconv.Itoa(s.Images)})
	}
	return append(rows, []string{"node", s.Node}, []string{"kubectl", "--context " + s.Context}, []string{"docker", "DOCKER_HOST=" + s.Docker},
		[]string{"data", s.Data}, []string{"log", s.Log})
}
