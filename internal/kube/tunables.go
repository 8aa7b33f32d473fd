package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tunableNames are the kernel settings that the kubelet's container manager
// writes when it starts, machine-wide and unasked (setupKernelTunables). A
// machine is not ours to make panic on an oops: they are put back once it has.
var tunableNames = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// tunables are the machine's settings as they were. The file exists from before
// the kubelet starts until they are put back, so that a crash between loses nothing.
type tunables struct{ file string }

func (t tunables) record() error {
	if _, err := os.Stat(t.file); err == nil {
		return nil // of a start that did not come to its end: older, and so the truth
	}
	was := map[string]string{}
	for _, name := range tunableNames {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return fmt.Errorf("kernel settings: %w", err)
		}
		was[name] = strings.TrimSpace(string(value))
	}
	data, err := json.Marshal(was)
	if err != nil {
		return err
	}
	return writeSecret(t.file, data)
}

// restore puts the settings back. Idempotent.
func (t tunables) restore() error {
	data, err := os.ReadFile(t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	was := map[string]string{}
	if err := json.Unmarshal(data, &was); err != nil {
		return fmt.Errorf("kernel settings in %s: %w", t.file, err)
	}
	var errs []error
	for name, value := range was {
		path := filepath.Join("/proc/sys", name)
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		errs = append(errs, os.WriteFile(path, []byte(value), 0))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("put kernel settings back: %w", err)
	}
	return os.Remove(t.file)
}
