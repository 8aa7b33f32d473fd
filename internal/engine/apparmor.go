package engine

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/moby/profiles/apparmor"

	"github.com/ferryos/ferry/internal/fault"
)

// AppArmorUnconfined is the profile of a container without one.
const AppArmorUnconfined = "unconfined"

// defaultAppArmor is the name under which Docker's default profile is loaded.
const defaultAppArmor = "ferry-default"

// appArmor decides about profiles. The kernel has AppArmor or not; loading the
// default profile also takes the program apparmor_parser.
type appArmor struct {
	kernel bool
	parser bool
	loaded func(name string) (bool, error)
	load   func(name string) error

	mu sync.Mutex // held while the default is loaded
}

func inspectAppArmor() *appArmor {
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	_, parserErr := exec.LookPath("apparmor_parser")
	return &appArmor{
		kernel: err == nil && strings.HasPrefix(string(enabled), "Y"), parser: parserErr == nil,
		loaded: apparmor.IsLoaded, load: apparmor.InstallDefault,
	}
}

// name is the profile of a container; "" is none.
//
//	kernel parser privileged asked       profile
//	no     -      -          -           ""
//	yes    -      -          unconfined  unconfined
//	yes    -      -          NAME        NAME
//	yes    -      yes        ""          unconfined
//	yes    yes    no         ""          ferry-default
//	yes    no     no         ""          "", as with containerd: it cannot be loaded
func (a *appArmor) name(sec Security) string {
	switch {
	case !a.kernel:
		return ""
	case sec.AppArmor != "":
		return sec.AppArmor
	case sec.Privileged:
		return AppArmorUnconfined
	case a.parser:
		return defaultAppArmor
	}
	return ""
}

// profile is the name of a profile that is loaded: the default is, if it is not.
// To ask for one where there is no AppArmor is an error, and so is one that is
// not loaded.
func (a *appArmor) profile(sec Security) (string, error) {
	if name := sec.AppArmor; !a.kernel && name != "" && name != AppArmorUnconfined {
		return "", fault.New(fault.Unsupported, "AppArmor profile %s: this machine's kernel has no AppArmor", name).
			Hint("leave the profile out, or use seccomp")
	}
	name := a.name(sec)
	switch {
	case name == "", name == AppArmorUnconfined:
		return name, nil
	case sec.AppArmor == "":
		return name, a.loadDefault()
	}
	found, err := a.loaded(name)
	if err != nil {
		return "", fmt.Errorf("AppArmor profile %s: %w", name, err)
	}
	if !found {
		return "", fault.New(fault.Invalid, "AppArmor profile %s is not loaded", name).Hint("load it with `apparmor_parser -r FILE`")
	}
	return name, nil
}

func (a *appArmor) loadDefault() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Looked for each time: the machine's administrator may have unloaded it.
	found, err := a.loaded(defaultAppArmor)
	if err == nil && !found {
		err = a.load(defaultAppArmor)
	}
	if err != nil {
		return fmt.Errorf("AppArmor profile %s: %w", defaultAppArmor, err)
	}
	return nil
}

// AppArmor reports whether containers get an AppArmor profile by default.
func (e *Engine) AppArmor() bool { return e.apparmor.kernel && e.apparmor.parser }

// AppArmorProfile is the profile that a container with these settings runs
// under; "" is none.
func (e *Engine) AppArmorProfile(sec Security) string { return e.apparmor.name(sec) }

// DefaultAppArmor is the profile of what asks for none, loaded: for bundles,
// whose specs their callers make. "" is none.
func (e *Engine) DefaultAppArmor() (string, error) { return e.apparmor.profile(Security{}) }
