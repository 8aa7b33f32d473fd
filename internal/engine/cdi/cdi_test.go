package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/fault"
)

const gpu = `cdiVersion: "0.6.0"
kind: example.com/gpu
devices:
- name: "0"
  containerEdits:
    env: [GPU=zero]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null}]
`

func TestInject(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gpu.yaml"), []byte(gpu), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if err := Inject(spec, []string{dir}, []string{"example.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(spec.Process.Env, []string{"GPU=zero"}) || len(spec.Linux.Devices) != 1 || spec.Linux.Devices[0].Path != "/dev/gpu0" || len(spec.Linux.Resources.Devices) != 1 {
		t.Errorf("%+v, %+v", spec.Process, spec.Linux)
	}
	err := Inject(spec, []string{dir}, []string{"example.com/gpu=1"})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "unresolvable CDI devices example.com/gpu=1") || !strings.Contains(fault.HintOf(err), "example.com/gpu=0") {
		t.Errorf("a device that is not there: %v, %s", err, fault.HintOf(err))
	}
	if err := Inject(spec, []string{t.TempDir()}, []string{"example.com/gpu=0"}); !strings.Contains(fault.HintOf(err), "no device is described") {
		t.Errorf("without files: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.yaml"), []byte("kind: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Inject(spec, []string{dir}, []string{"other.com/x=1"}); err == nil || !strings.Contains(err.Error(), "broken.yaml") {
		t.Errorf("beside a broken file: %v", err)
	}
}

func TestIsName(t *testing.T) {
	for name, want := range map[string]bool{"example.com/gpu=0": true, "nvidia.com/gpu=all": true, "/dev/null": false, "gpu=0": false, "": false} {
		if IsName(name) != want {
			t.Errorf("%q", name)
		}
	}
}
