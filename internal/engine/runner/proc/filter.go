package proc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/atomicfile"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/runner/seccomp"
	"github.com/ferryos/ferry/internal/fault"
)

// filterCache keeps compiled seccomp programs in files, by profile. Compiling
// Docker's default profile takes libseccomp 17 ms at each start, reading it back
// a fraction of one.
type filterCache struct{ dir string }

// open returns the program of a profile by its name, nil for no profile and
// for one that says nothing.
func (c filterCache) open(name string) (*seccomp.Program, error) {
	if name == "" {
		return nil, nil
	}
	// Another ferry-runner's program may have been compiled by another libseccomp.
	path := filepath.Join(c.dir, name+"-"+os.Getenv(runner.VersionEnv))
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c.compile(name, path)
	}
	p := new(seccomp.Program)
	if err == nil {
		err = p.UnmarshalBinary(data)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	return p, nil
}

// compile has a profile compiled and keeps the program.
func (c filterCache) compile(name, path string) (*seccomp.Program, error) {
	data, err := compileElsewhere(filepath.Join(c.dir, name))
	if err != nil || len(data) == 0 {
		return nil, err
	}
	p := new(seccomp.Program)
	if err := p.UnmarshalBinary(data); err != nil {
		return nil, fmt.Errorf("seccomp program: %w", err)
	}
	if err := atomicfile.WriteShared(path, data, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "keep a seccomp program:", err)
	}
	return p, nil
}

// compileSeconds is how much processor time a profile may take. Docker's takes a
// sixtieth of a second; rules that contradict each other under several
// conditions can have libseccomp 2.5 search for ever.
const compileSeconds = 5

// compileElsewhere compiles the profile in a file, in a process that can be
// ended. The result is empty for a profile that says nothing.
func compileElsewhere(file string) ([]byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "compile", file)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("compile the seccomp profile: %w", err)
	}
	kind, payload, err := runner.NewConn(r).Read()
	end := cmd.Wait()
	var exit *exec.ExitError
	switch { // the limit counts by the timer's ticks, which on a busy machine tell more time than was used
	case err == nil && kind == runner.FrameError:
		return nil, runner.AsError(payload)
	case err == nil && kind == runner.FrameResult:
		return payload, nil
	case errors.As(end, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL && exit.UserTime()+exit.SystemTime() > compileSeconds*time.Second/2:
		return nil, fault.New(fault.Invalid, "the seccomp profile takes more than %d s to compile", compileSeconds).
			Hint("shorten it: what takes long are rules for one system call that contradict each other, with conditions on several arguments")
	}
	return nil, fmt.Errorf("compile the seccomp profile: %w", errors.Join(err, end))
}

// compileProfile is the other side of compileElsewhere.
func compileProfile(file string) error {
	limit := unix.Rlimit{Cur: compileSeconds, Max: compileSeconds} // the kernel's answer to what is over both is SIGKILL
	if err := unix.Setrlimit(unix.RLIMIT_CPU, &limit); err != nil {
		return err
	}
	out := runner.NewConn(os.Stdout)
	program, err := compile(file)
	if err != nil {
		return out.WriteError(err)
	}
	return out.Write(runner.FrameResult, program)
}

func compile(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	var profile specs.LinuxSeccomp
	if err == nil {
		err = json.Unmarshal(data, &profile)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	p, err := seccomp.Compile(&profile)
	if err != nil || p == nil {
		return nil, err
	}
	return p.MarshalBinary()
}
