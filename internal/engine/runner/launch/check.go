package launch

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// check refuses what the specification has and this package does not, and what
// would change the machine and not the container.
func (c *Container) check() error {
	s := c.opt.Spec
	switch {
	case len(s.Process.Args) == 0:
		return fault.New(fault.Invalid, "the process has no program")
	case s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "":
		return fault.New(fault.Unsupported, "SELinux labels are not supported")
	case s.Linux.IntelRdt != nil || s.Linux.Personality != nil || len(s.Linux.TimeOffsets) > 0 || s.Process.Scheduler != nil || s.Process.IOPriority != nil:
		return fault.New(fault.Unsupported, "the spec asks for an Intel RDT class, a personality, time offsets, a scheduler or a priority of IO, which are not supported")
	}
	for _, n := range s.Linux.Namespaces {
		c.spaces[n.Type] = n.Path
	}
	if s.Hostname != "" || s.Domainname != "" {
		if err := c.needs("a host or domain name", specs.UTSNamespace); err != nil {
			return err
		}
	}
	for name := range s.Linux.Sysctl {
		if err := c.checkSysctl(name); err != nil {
			return err
		}
	}
	return nil
}

// needs is an error if a namespace is this machine's, which is not to be changed.
func (c *Container) needs(what string, kind specs.LinuxNamespaceType) error {
	at, has := c.spaces[kind]
	if has && at == "" {
		return nil
	}
	if has {
		file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}[kind]
		if file == "" {
			file = string(kind)
		}
		var ours, theirs unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+file, &ours); err != nil {
			return os.NewSyscallError("stat", err)
		}
		if err := unix.Stat(at, &theirs); err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if ours.Dev != theirs.Dev || ours.Ino != theirs.Ino {
			return nil
		}
	}
	return fault.New(fault.Invalid, "%s is not possible in the machine's %s namespace: it would be the machine's", what, kind)
}

// ipcSysctls are the settings of IPC namespaces; beside them, all of fs.mqueue.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// checkSysctl is an error if a setting is not one of the container's own
// namespaces. Who may choose which of those is for others to say.
func (c *Container) checkSysctl(name string) error {
	file := sysctlFile(name)
	what := fmt.Sprintf("sysctl %q", name)
	switch {
	case path.Clean("/"+file) != "/"+file:
	case slices.Contains(ipcSysctls, file), isBelow(file, "fs/mqueue"):
		return c.needs(what, specs.IPCNamespace)
	case isBelow(file, "net"):
		return c.needs(what, specs.NetworkNamespace)
	case file == "kernel/domainname":
		return c.needs(what, specs.UTSNamespace)
	case isBelow(file, "user"):
		return c.needs(what, specs.UserNamespace)
	}
	return fault.New(fault.Invalid, "sysctl %q is not in a separate kernel namespace", name).
		Hint("set it on the machine, or leave it out: it would change the machine, not the container")
}

// sysctlFile is a setting's path below /proc/sys. Its name may be written with
// either separator, and the other then stands for the first within a part, such
// as an interface's name; sysctl(8).
func sysctlFile(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// writeSysctls sets the kernel's settings of the namespaces that this thread is in.
func writeSysctls(values map[string]string) error {
	for name, value := range values {
		f, err := os.OpenFile(filepath.Join("/proc/sys", sysctlFile(name)), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(value)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return nil
}
