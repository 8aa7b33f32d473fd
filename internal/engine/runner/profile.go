package runner

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ferryos/ferry/internal/atomicfile"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ProfileDir is where the runners of one daemon share seccomp profiles, by name,
// and what was computed of them. dir is the directory of any of the runners.
func ProfileDir(dir string) string { return filepath.Join(dir, "..", "..", "seccomp") }

// keepProfile writes a seccomp profile to a file, unless it is there, and
// returns the name. Docker's default one is 25 KB of JSON, which a request would
// carry to the runner, the runner to its record and to the container's first step.
func keepProfile(dir string, profile *specs.LinuxSeccomp) (name string, err error) {
	data, err := json.Marshal(profile)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	name = hex.EncodeToString(sum[:])
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return name, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("seccomp profiles: %w", err)
	}
	return name, atomicfile.WriteShared(path, data, 0o600)
}

// withoutProfile is the request with its seccomp profile in a file. In place of
// it is one that refuses everything, for a runner that would not look there.
func (r CreateRequest) withoutProfile(dir string) (CreateRequest, error) {
	if r.Spec == nil || r.Spec.Linux == nil || r.Spec.Linux.Seccomp == nil {
		return r, nil
	}
	name, err := keepProfile(ProfileDir(dir), r.Spec.Linux.Seccomp)
	if err != nil {
		return r, err
	}
	spec, linux := *r.Spec, *r.Spec.Linux
	linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	spec.Linux = &linux
	r.Spec, r.Profile = &spec, name
	return r, nil
}
