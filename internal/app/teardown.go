package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ferryos/ferry/internal/cgroups"
	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/instance"
	"github.com/ferryos/ferry/internal/kube"
	"github.com/ferryos/ferry/internal/lifecycle"
)

// teardown ends what runs and puts the machine back, while ferryd does not run.
// Images, volumes, stopped containers and the cluster's objects are kept: the
// next start makes the cluster's pods anew.
func teardown(ctx context.Context, stderr io.Writer) error {
	cfg, log, err := setUp(stderr)
	if err != nil {
		return err
	}
	unlock, err := lockInstance(cfg)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := newEngineParts(cfg, 0, log)
	if err != nil {
		return err
	}
	group := lifecycle.New(log, p.list...)
	if err := group.Start(ctx); err != nil {
		// What is damaged or in the way must not keep the machine from being put back.
		return errors.Join(err, p.engine.KillAll(ctx), p.putBack(ctx, cfg, log))
	}
	return errors.Join(p.endPods(ctx), p.engine.Unmount(ctx), group.Stop(ctx), p.putBack(ctx, cfg, log))
}

// stopGrace is how long containers get at most to end by themselves.
const stopGrace = 10 * time.Second

// endPods stops all pods and removes the cluster's.
func (p *parts) endPods(ctx context.Context) error {
	errs := []error{p.engine.StopAll(ctx, stopGrace)}
	for _, pod := range p.engine.Pods(ctx, engine.OwnerCRI) {
		if err := p.engine.RemovePod(ctx, pod.ID); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", pod.Spec.Name, err))
		}
	}
	return errors.Join(errs...)
}

// putBack undoes what was changed on the machine, once no container runs and
// the parts have stopped.
func (p *parts) putBack(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	return errors.Join(p.network.Teardown(ctx), kube.Teardown(ctx, kubeOptions(cfg, log)), cgroups.Remove(cfg.CgroupParent),
		removeContent(cfg.RunDir, instance.LockName), clearTempDir(cfg))
}

// removeContent removes what is in a directory, but for the entry to keep. What
// still has a mount in it is left and reported: what is mounted, a stopped
// container's files say, is not ours to delete.
func removeContent(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Name() == keep:
		case strings.Contains(string(mounts), " "+path+"/"), strings.Contains(string(mounts), " "+path+" "):
			errs = append(errs, fmt.Errorf("something is still mounted in %s", path))
		default:
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}
