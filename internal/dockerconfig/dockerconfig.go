// Package dockerconfig finds credentials of registries where docker keeps them:
// in its config.json, and with the helpers that this names.
//
// The composition root hands what it finds to the image store. It only reads;
// `docker login` writes.
package dockerconfig

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// file is what of config.json is about credentials.
type file struct {
	Auths       map[string]entry  `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

type entry struct {
	Auth          string `json:"auth"` // user:password in base64
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// tokenUser is the user name with which helpers give an identity token.
const tokenUser = "<token>"

// Credential returns what the config.json at path, which need not exist, or the
// helper it names for the registry, knows for a host. A token comes without a
// user name; "" and "" is nothing.
func Credential(path, host string) (user, secret string, err error) {
	if path == "" {
		return "", "", nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return "", "", fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range namesOf(host) {
		helper := f.CredHelpers[name]
		if helper == "" {
			helper = f.CredsStore
		}
		if helper != "" {
			user, secret, err := ask(helper, name)
			if err != nil || secret != "" {
				return user, secret, err
			}
		}
		for key, e := range f.Auths {
			if hostOf(key) == hostOf(name) {
				if user, secret, err := e.credential(); err != nil {
					return "", "", fmt.Errorf("%s: %s: %w", path, key, err)
				} else if secret != "" {
					return user, secret, nil
				}
			}
		}
	}
	return "", "", nil
}

// dockerHub is the key under which docker keeps Docker Hub's credential.
const dockerHub = "https://index.docker.io/v1/"

// namesOf are the keys under which docker keeps a host's credential.
func namesOf(host string) []string {
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return []string{dockerHub, "docker.io"}
	}
	return []string{host}
}

// hostOf is the host of a key, which may be an URL.
func hostOf(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, _, _ := strings.Cut(key, "/")
	return host
}

func ask(helper, server string) (user, secret string, err error) {
	got, err := client.Get(client.NewShellProgramFunc("docker-credential-"+helper), server)
	switch {
	case credentials.IsErrCredentialsNotFound(err):
		return "", "", nil
	case err != nil:
		return "", "", fmt.Errorf("docker-credential-%s: %w", helper, err)
	case got.Username == tokenUser:
		return "", got.Secret, nil
	}
	return got.Username, got.Secret, nil
}

func (e entry) credential() (user, secret string, err error) {
	if e.IdentityToken != "" {
		return "", e.IdentityToken, nil
	}
	if e.Auth == "" {
		return e.Username, e.Password, nil
	}
	plain, err := base64.StdEncoding.DecodeString(e.Auth)
	if err != nil {
		return "", "", err
	}
	user, secret, found := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
	if !found {
		return "", "", errors.New("auth is not of the form user:password")
	}
	return user, secret, nil
}
