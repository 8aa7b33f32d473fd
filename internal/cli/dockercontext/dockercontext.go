// Package dockercontext adds a context to those of the docker command, and takes
// it away again, as docker keeps them: a file
// DIR/contexts/meta/SHA256-OF-THE-NAME/meta.json each (docker/cli, cli/context/store).
//
// Only internal/cli imports it. It never changes which context is the current
// one, and leaves a context alone that somebody else made under the same name.
package dockercontext

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
	"github.com/ferryos/ferry/internal/fault"
)

// description tells our contexts from others'.
const description = "Ferry, made by `ferry up` and removed by `ferry down`"

type meta struct {
	Name      string
	Metadata  metadata
	Endpoints map[string]endpoint
}

type metadata struct {
	Description string `json:",omitempty"`
}

type endpoint struct {
	Host          string
	SkipTLSVerify bool
}

// Dir is the docker command's directory: DOCKER_CONFIG, or ~/.docker.
func Dir(getenv func(string) string) (string, error) {
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		return dir, nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", fault.New(fault.Invalid, "there is no home directory for docker's contexts").Hint("set HOME or DOCKER_CONFIG")
	}
	return filepath.Join(home, ".docker"), nil
}

func dirOf(dir, name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]))
}

// Has reports whether the context is there and is ours.
func Has(dir, name string) bool {
	m, err := read(dir, name)
	return err == nil && m.Metadata.Description == description
}

func read(dir, name string) (m meta, err error) {
	data, err := os.ReadFile(filepath.Join(dirOf(dir, name), "meta.json"))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(data, &m)
}

// Add makes the context, whose endpoint is a unix socket. A Conflict means that
// there is one of the name already, to which nothing is done.
func Add(dir, name, socket string) error {
	m, err := read(dir, name)
	if !errors.Is(err, fs.ErrNotExist) && (err != nil || m.Metadata.Description != description) {
		return fault.New(fault.Conflict, "docker has a context %s already, which is left as it is", name).
			Hint("use docker with DOCKER_HOST=unix://%s", socket)
	}
	data, err := json.Marshal(meta{Name: name, Metadata: metadata{description},
		Endpoints: map[string]endpoint{"docker": {Host: "unix://" + socket}}})
	if err != nil {
		return err
	}
	path := filepath.Join(dirOf(dir, name), "meta.json")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("docker context %s: %w", name, err)
	}
	if err := atomicfile.Write(path, data, 0o644); err != nil {
		return fmt.Errorf("docker context %s: %w", name, err)
	}
	return nil
}

// Remove takes the context away if it is ours. Idempotent.
func Remove(dir, name string) error {
	if !Has(dir, name) {
		return nil
	}
	if err := os.RemoveAll(dirOf(dir, name)); err != nil {
		return fmt.Errorf("docker context %s: %w", name, err)
	}
	return nil
}
