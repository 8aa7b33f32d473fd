package launch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// hooksOf are a spec's hooks. Prestart ones, which are deprecated, are run as
// those of createRuntime.
func hooksOf(s *specs.Spec) specs.Hooks {
	if s.Hooks == nil {
		return specs.Hooks{}
	}
	h := *s.Hooks
	//lint:ignore SA1019 vendors' CDI files still have them
	h.CreateRuntime = append(h.Prestart, h.CreateRuntime...)
	return h
}

// hookTime is how long a hook may take that does not say.
const hookTime = 30 * time.Second

// runHooks runs programs that the spec names, on this thread and so where it is,
// each with the container's state as its input (runtime-spec runtime.md, State).
func (c *Container) runHooks(hooks []specs.Hook, pid int, status specs.ContainerState) error {
	if len(hooks) == 0 {
		return nil
	}
	state, err := json.Marshal(specs.State{Version: c.opt.Spec.Version, ID: c.opt.ID, Status: status, Pid: pid,
		Bundle: c.opt.Bundle, Annotations: c.opt.Spec.Annotations})
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if err := runHook(h, state); err != nil {
			return fmt.Errorf("hook %s: %w", h.Path, err)
		}
	}
	return nil
}

func runHook(h specs.Hook, state []byte) error {
	limit := hookTime
	if h.Timeout != nil && *h.Timeout > 0 {
		limit = time.Duration(*h.Timeout) * time.Second
	}
	var out bytes.Buffer
	cmd := &exec.Cmd{Path: h.Path, Args: h.Args, Env: h.Env, Stdin: bytes.NewReader(state), Stdout: &out, Stderr: &out, WaitDelay: time.Second}
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() }) // fails if it has ended
	err := cmd.Wait()
	if !timer.Stop() {
		err = fmt.Errorf("it took longer than %v", limit)
	}
	if err != nil && out.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return err
}

// writeBundle writes the spec where hooks look for it.
func (c *Container) writeBundle() error {
	if c.opt.Spec.Hooks == nil {
		return nil
	}
	data, err := json.Marshal(c.opt.Spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.opt.Bundle, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.opt.Bundle, "config.json"), data, 0o600)
}
