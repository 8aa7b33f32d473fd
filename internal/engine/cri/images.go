package cri

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// bundledHost is the registry name of images that Ferry brings along. There is
// no such registry.
const bundledHost = "ferry.local/"

// ListImages returns the images, or the one a filter names.
func (s *Service) ListImages(ctx context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if name := f.GetImage().GetImage(); name != "" {
		img, err := s.opt.Engine.Images().Image(ctx, name)
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, asStatus(err)
		}
		return []*runtimeapi.Image{imageOf(img, s.pinned(ctx)(img))}, nil
	}
	all, err := s.opt.Engine.Images().Images(ctx)
	if err != nil {
		return nil, asStatus(err)
	}
	out, pinned := make([]*runtimeapi.Image, 0, len(all)), s.pinned(ctx)
	for _, img := range all {
		out = append(out, imageOf(img, pinned(img)))
	}
	return out, nil
}

// pinned returns what tells the images that the kubelet, which removes those that
// its own containers do not use, is to leave alone: what comes with Ferry, and
// what containers of other owners were made of.
func (s *Service) pinned(ctx context.Context) func(store.Image) bool {
	others := s.opt.Engine.Containers(ctx, engine.OwnerDocker)
	return func(img store.Image) bool {
		return isBundled(img.Names) || slices.ContainsFunc(others, func(c engine.Container) bool { return c.ImageID == img.ID })
	}
}

func imageOf(img store.Image, pinned bool) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: img.ID, RepoTags: img.RepoTags(), RepoDigests: img.RepoDigests(), Size: uint64(img.Size),
		Spec: &runtimeapi.ImageSpec{Image: img.ID}, Pinned: pinned}
	name, _, _ := strings.Cut(img.Config.User, ":")
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = name
	}
	return out
}

func isBundled(names []string) bool {
	for _, n := range names {
		if strings.HasPrefix(n, bundledHost) {
			return true
		}
	}
	return false
}

// ImageStatus returns an image, or a response without one.
func (s *Service) ImageStatus(ctx context.Context, image *runtimeapi.ImageSpec, verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.opt.Engine.Images().Image(ctx, image.GetImage())
	if fault.Is(err, fault.NotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, asStatus(err)
	}
	r := &runtimeapi.ImageStatusResponse{Image: imageOf(img, s.pinned(ctx)(img))}
	if verbose {
		info, err := json.Marshal(map[string]any{"imageSpec": map[string]any{"config": img.Config}}) // as crictl looks for it
		if err != nil {
			return nil, asStatus(err)
		}
		r.Info = map[string]string{"info": string(info)}
	}
	return r, nil
}

// PullImage fetches an image or artifact and returns its ID.
func (s *Service) PullImage(ctx context.Context, image *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	leave, err := s.gate.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	name := image.GetImage()
	if strings.HasPrefix(name, bundledHost) {
		img, err := s.opt.Engine.Images().Image(ctx, name)
		return img.ID, asStatus(err)
	}
	cred, err := credential(auth)
	if err != nil {
		return "", asStatus(err)
	}
	img, err := s.opt.Engine.Images().Pull(ctx, name, store.TransferOptions{Auth: cred})
	return img.ID, asStatus(err)
}

func credential(a *runtimeapi.AuthConfig) (store.Auth, error) {
	switch {
	case a.GetIdentityToken() != "":
		return store.Auth{Password: a.IdentityToken}, nil // a token has no user
	case a.GetRegistryToken() != "":
		return store.Auth{}, fault.New(fault.Unsupported, "registry tokens are not supported").
			Hint("use a user name and password, or an identity token")
	case a.GetAuth() == "":
		return store.Auth{Username: a.GetUsername(), Password: a.GetPassword()}, nil
	}
	plain, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return store.Auth{}, fault.New(fault.Invalid, "registry credential: %w", err)
	}
	user, password, _ := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
	return store.Auth{Username: user, Password: password}, nil
}

// RemoveImage removes an image with all its names. Idempotent.
func (s *Service) RemoveImage(ctx context.Context, image *runtimeapi.ImageSpec) error {
	img, err := s.opt.Engine.Images().Image(ctx, image.GetImage())
	if err == nil {
		_, _, err = s.opt.Engine.Images().Remove(ctx, img.ID, true)
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return asStatus(err)
}

// ImageFsInfo is what images take of the disk.
func (s *Service) ImageFsInfo(ctx context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.opt.Engine.Images().FsInfo(ctx)
	if err != nil {
		return nil, asStatus(err)
	}
	usage := []*runtimeapi.FilesystemUsage{{Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: info.Path},
		UsedBytes: &runtimeapi.UInt64Value{Value: uint64(info.Bytes)}, InodesUsed: &runtimeapi.UInt64Value{Value: uint64(info.Inodes)}}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: usage, ContainerFilesystems: usage}, nil
}
