package dockerapi

import (
	"context"
	"maps"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
	"github.com/ferryos/ferry/internal/fault"
)

func (s *Server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Docker-Experimental", "false")
	h.Set("Swarm", "inactive")
	if s.opt.Builder != nil {
		h.Set("Builder-Version", "2")
	}
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := w.Write([]byte("OK"))
	return err
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Ferry"},
		Version:  s.opt.Version, APIVersion: maxAPIVersion, MinAPIVersion: minAPIVersion,
		Os: runtime.GOOS, Arch: runtime.GOARCH, GoVersion: runtime.Version(), KernelVersion: kernelVersion(),
	}
	v.Components = []system.ComponentVersion{{Name: "Engine", Version: v.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch,
		"GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "Experimental": "false"}}}
	return writeJSON(w, http.StatusOK, v)
}

func kernelVersion() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	images, err := s.opt.Engine.Images().Images(r.Context())
	if err != nil {
		return err
	}
	v := system.Info{
		ID: host, Name: host, Images: len(images), Driver: "overlayfs", LoggingDriver: "cri", CgroupDriver: "cgroupfs", CgroupVersion: "1",
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding: true, NCPU: runtime.NumCPU(), NGoroutines: runtime.NumGoroutine(), SystemTime: time.Now().Format(time.RFC3339Nano),
		KernelVersion: kernelVersion(), OperatingSystem: operatingSystem(), OSType: runtime.GOOS, Architecture: machine(),
		DockerRootDir: s.opt.Root, ServerVersion: s.opt.Version, DefaultRuntime: "ferry",
		Runtimes:        map[string]system.RuntimeWithStatus{"ferry": {}},
		SecurityOptions: s.securityOptions(), LiveRestoreEnabled: true,
		Plugins: system.PluginsInfo{Network: []string{"bridge", "host", "none"}, Log: []string{"cri"}},
	}
	v.Swarm.LocalNodeState = "inactive"
	if cgroupV2() {
		v.CgroupVersion = "2"
	}
	v.MemTotal = int64(memoryTotal())
	for _, c := range s.containers(r.Context()) {
		v.Containers++
		switch c.State {
		case engine.StateRunning, stateRestarting:
			v.ContainersRunning++
		case engine.StatePaused:
			v.ContainersPaused++
		case engine.StateCreated, engine.StateExited:
			v.ContainersStopped++
		}
	}
	return writeJSON(w, http.StatusOK, v)
}

// memoryTotal is this machine's memory in bytes; 0 if it cannot be found out.
func memoryTotal() uint64 {
	var mem unix.Sysinfo_t
	if unix.Sysinfo(&mem) != nil {
		return 0
	}
	return uint64(mem.Totalram) * uint64(mem.Unit)
}

// cgroupV2 reports whether limits are set through cgroups v2 alone.
func cgroupV2() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

func machine() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

func operatingSystem() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	return "Linux"
}

// diskUsage is the answer of GET /system/df before API version 1.52.
type diskUsage struct {
	LayersSize int64
	Images     []image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

// systemDF tells what images, containers, volumes and the build cache take of
// the disk, or those of them that "type" names.
func (s *Server) systemDF(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var out diskUsage
	parts := map[string]func() error{
		string(system.ImageObject):      func() error { return s.imageUsage(ctx, &out) },
		string(system.ContainerObject):  func() error { return s.containerUsage(ctx, &out) },
		string(system.VolumeObject):     func() error { return s.volumeUsage(ctx, &out) },
		string(system.BuildCacheObject): func() error { return s.cacheUsage(ctx, &out) },
	}
	wanted := r.URL.Query()["type"]
	if len(wanted) == 0 {
		wanted = slices.Sorted(maps.Keys(parts))
	}
	for _, part := range wanted {
		measure := parts[part]
		if measure == nil {
			return fault.New(fault.Invalid, "unknown object type: %s", part).Hint("use container, image, volume or build-cache")
		}
		if err := measure(); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) imageUsage(ctx context.Context, out *diskUsage) error {
	images, err := s.containerImages(ctx)
	if err != nil {
		return err
	}
	shared, total := sharedSizes(images)
	out.LayersSize, out.Images = total, s.imageSummaries(ctx, images)
	for i, img := range images {
		out.Images[i].SharedSize = shared[img.Target]
	}
	return nil
}

func (s *Server) containerUsage(ctx context.Context, out *diskUsage) error {
	out.Containers = []container.Summary{}
	for _, c := range s.opt.Engine.Containers(ctx, engine.OwnerDocker) {
		sum, err := s.summary(ctx, c, true)
		if fault.Is(err, fault.NotFound) {
			continue // removed since the listing
		}
		if err != nil {
			return err
		}
		out.Containers = append(out.Containers, sum)
	}
	return nil
}

func (s *Server) cacheUsage(ctx context.Context, out *diskUsage) (err error) {
	if s.opt.Builder != nil {
		out.BuildCache, err = s.opt.Builder.CacheUsage(ctx)
	}
	if out.BuildCache == nil {
		out.BuildCache = []build.CacheRecord{} // clients expect a list
	}
	return err
}

func (s *Server) volumeUsage(ctx context.Context, out *diskUsage) error {
	users := s.volumeUsers(ctx)
	out.Volumes = []volume.Volume{}
	for _, v := range s.volumes.List() {
		size, err := s.volumes.Size(ctx, v.Name)
		if err != nil {
			return err
		}
		view := s.volumeView(v)
		view.UsageData = &volume.UsageData{RefCount: int64(len(users[v.Name])), Size: size}
		out.Volumes = append(out.Volumes, view)
	}
	return nil
}
