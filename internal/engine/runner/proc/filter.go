package proc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/seccomp"
)

// filterCache keeps compiled seccomp programs in files, by profile. Compiling
// Docker's default profile takes libseccomp 17 ms at each start, reading it back
// a fraction of one.
type filterCache struct{ dir string }

// open returns the program of a profile by its name, nil for no profile and
// for one that says nothing.
func (c filterCache) open(name string) (*seccomp.Program, error) {
	if name == "" {
		return nil, nil
	}
	// Another ferry-runner's program may have been compiled by another libseccomp.
	path := filepath.Join(c.dir, name+"-"+os.Getenv(runner.VersionEnv))
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c.compile(name, path)
	}
	p := new(seccomp.Program)
	if err == nil {
		err = p.UnmarshalBinary(data)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	return p, nil
}

// compile compiles a profile and keeps the program.
func (c filterCache) compile(name, path string) (*seccomp.Program, error) {
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	var profile specs.LinuxSeccomp
	if err == nil {
		err = json.Unmarshal(data, &profile)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	p, err := seccomp.Compile(&profile)
	if err != nil || p == nil {
		return nil, err
	}
	if data, err = p.MarshalBinary(); err == nil {
		err = atomicfile.WriteShared(path, data, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "keep a seccomp program:", err)
	}
	return p, nil
}
