package build

import (
	"context"
	"maps"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
)

// frontends are the languages that builds are written in: Dockerfiles, by the
// frontend that is linked in, and whatever an image brings.
func frontends(gateway, dockerfile frontend.Frontend) map[string]frontend.Frontend {
	return map[string]frontend.Frontend{"dockerfile.v0": dockerfile, "gateway.v0": gatewayOrBuiltin{gateway, dockerfile}}
}

// gatewayOrBuiltin runs a frontend from its image, but for Docker's own of
// Dockerfiles: the first line of most, "# syntax=docker/dockerfile:1", asks for
// an image that holds what is linked in here, and must not need a registry.
type gatewayOrBuiltin struct{ gateway, dockerfile frontend.Frontend }

// Solve implements frontend.Frontend.
func (f gatewayOrBuiltin) Solve(ctx context.Context, llb frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string,
	inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if !isBuiltin(opt[frontend.KeySource]) {
		return f.gateway.Solve(ctx, llb, exec, opt, inputs, sid, sm)
	}
	opt = maps.Clone(opt)
	delete(opt, frontend.KeySource)
	if _, asked := opt["cmdline"]; !asked { // else the first line would be followed again
		opt["cmdline"] = "docker/dockerfile"
	}
	return f.dockerfile.Solve(ctx, llb, exec, opt, inputs, sid, sm)
}

// isBuiltin reports whether an image is Docker's frontend of Dockerfiles. One
// named by digest is meant to be exactly that.
func isBuiltin(source string) bool {
	ref, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return false
	}
	if _, exact := ref.(reference.Digested); exact {
		return false
	}
	tag := ""
	if tagged, ok := ref.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	switch ref.Name() {
	case "docker.io/docker/dockerfile":
		return !strings.Contains(tag, "labs") // what the linked one does not know
	case "docker.io/docker/dockerfile-upstream":
		return tag == "" || tag == "master"
	}
	return false
}
