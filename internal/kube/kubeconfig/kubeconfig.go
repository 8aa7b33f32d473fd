// Package kubeconfig puts one context into a person's kubeconfig file and takes
// it out again, and leaves everything else in it as it was.
//
// The ferry command imports it, so it reads the file as plain YAML: client-go's
// reader would double that program's size. Format: the kubectl reference,
// "kubeconfig (v1)".
package kubeconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/ferryos/ferry/internal/fault"
)

// lists are the parts of a kubeconfig that hold named entries.
var lists = []string{"clusters", "contexts", "users"}

// Path is the file that kubectl would write to: the first of KUBECONFIG, or
// ~/.kube/config.
func Path(getenv func(string) string) (string, error) {
	for _, path := range filepath.SplitList(getenv("KUBECONFIG")) {
		if path != "" {
			return path, nil
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fault.New(fault.Invalid, "find the kubeconfig: %w", err).Hint("set KUBECONFIG or HOME")
	}
	return filepath.Join(home, ".kube", "config"), nil
}

// Merge copies the entries called name from the kubeconfig in from into the
// file at path, replacing those of the same name. It becomes the current
// context only where there is none. The file is made if missing, mode 0600.
func Merge(path, name, from string) error {
	source, err := read(from)
	if err != nil {
		return err
	}
	return edit(path, func(config map[string]any) error {
		config["apiVersion"], config["kind"] = "v1", "Config"
		for _, list := range lists {
			entry := find(source, list, name)
			if entry == nil {
				return fault.New(fault.Invalid, "kubeconfig %s has no entry %s in %s", from, name, list)
			}
			without(config, list, name)
			have, _ := config[list].([]any)
			config[list] = append(have, entry)
		}
		if current, _ := config["current-context"].(string); current == "" {
			config["current-context"] = name
		}
		return nil
	})
}

// Remove takes the entries called name out of the file at path. A file that
// holds nothing else is removed. Idempotent.
func Remove(path, name string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	empty := true
	err := edit(path, func(config map[string]any) error {
		for _, list := range lists {
			without(config, list, name)
			left, _ := config[list].([]any)
			empty = empty && len(left) == 0
		}
		if config["current-context"] == name {
			config["current-context"] = ""
		}
		return nil
	})
	if err != nil || !empty {
		return err
	}
	return os.Remove(path)
}

// Has reports whether the file at path has a context called name.
func Has(path, name string) bool {
	config, err := read(path)
	return err == nil && find(config, "contexts", name) != nil
}

func read(path string) (map[string]any, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config := map[string]any{}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, fault.New(fault.Invalid, "kubeconfig %s: %w", path, err).Hint("correct or move the file; it was left as it is")
	}
	if config == nil {
		config = map[string]any{}
	}
	for _, list := range lists {
		if _, ok := config[list].([]any); !ok && config[list] != nil {
			return nil, fault.New(fault.Invalid, "kubeconfig %s: %s is no list", path, list).Hint("correct or move the file; it was left as it is")
		}
	}
	return config, nil
}

func named(entry any, name string) bool {
	m, ok := entry.(map[string]any)
	return ok && m["name"] == name
}

func find(config map[string]any, list, name string) any {
	entries, _ := config[list].([]any)
	if i := slices.IndexFunc(entries, func(e any) bool { return named(e, name) }); i >= 0 {
		return entries[i]
	}
	return nil
}

func without(config map[string]any, list, name string) {
	entries, _ := config[list].([]any)
	config[list] = slices.DeleteFunc(entries, func(e any) bool { return named(e, name) })
}

// edit changes the file at path as a whole, under a lock, following a link. The
// file keeps its owner and mode; a new one is its directory's owner's: with
// `sudo -E` it is somebody else's home that root works in.
func edit(path string, change func(map[string]any) error) error {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	// The directory is locked, as the file itself is replaced.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock kubeconfig: %w", err)
	}
	owner, err := dir.Stat()
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	config, mode := map[string]any{}, fs.FileMode(0o600)
	if st, err := os.Stat(path); err == nil {
		owner, mode = st, st.Mode().Perm()
		if config, err = read(path); err != nil {
			return err
		}
	}
	if err := change(config); err != nil {
		return err
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	if err := replace(path, data, mode, owner); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	return nil
}

// replace writes a new file of that mode and of owner's owner in path's place.
func replace(path string, data []byte, mode fs.FileMode, owner fs.FileInfo) error {
	tmp := path + ".ferry-new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a run that was killed
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, giveTo(f, owner), f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// makeDir makes dir and what is missing above it, for the owner of what is there.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	above, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(giveTo(f, above), f.Close())
}

// giveTo makes f, which this process has just made, the owner's of another file.
// It goes by the open file: the path is in a directory of somebody less powerful.
func giveTo(f *os.File, other fs.FileInfo) error {
	now, err := f.Stat()
	if err != nil {
		return err
	}
	have, want := now.Sys().(*syscall.Stat_t), other.Sys().(*syscall.Stat_t)
	if have.Uid == want.Uid && have.Gid == want.Gid {
		return nil // nobody but root may ask
	}
	return f.Chown(int(want.Uid), int(want.Gid))
}
