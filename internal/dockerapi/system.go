package dockerapi

import (
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/engine"
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
		SecurityOptions: []string{"name=seccomp,profile=builtin"}, LiveRestoreEnabled: true,
		Plugins: system.PluginsInfo{Network: []string{"bridge", "host", "none"}, Log: []string{"cri"}},
	}
	v.Swarm.LocalNodeState = "inactive"
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		v.CgroupVersion = "2"
	}
	var mem unix.Sysinfo_t
	if unix.Sysinfo(&mem) == nil {
		v.MemTotal = int64(mem.Totalram) * int64(mem.Unit)
	}
	for _, c := range s.opt.Engine.Containers(r.Context(), engine.OwnerDocker) {
		v.Containers++
		switch c.State {
		case engine.StateRunning:
			v.ContainersRunning++
		case engine.StatePaused:
			v.ContainersPaused++
		case engine.StateCreated, engine.StateExited:
			v.ContainersStopped++
		}
	}
	return writeJSON(w, http.StatusOK, v)
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
