package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// suiteLimit is how long one suite may take on a machine of this one's speed.
const suiteLimit = 5 * time.Minute

// patience is how much slower than this machine the tests take an emulated one
// to be.
const patience = 20

// payloadImage makes a disk in dir with the programs under test, the tests, the
// sources whose files they read, and the list of what to run.
func payloadImage(ctx context.Context, opt options, jobs []job, dir string) (string, error) {
	stage := filepath.Join(dir, "payload")
	if err := os.MkdirAll(filepath.Join(stage, "tests"), 0o755); err != nil {
		return "", err
	}
	boot, err := guest.ReadFile("guest/boot")
	if err != nil {
		return "", err
	}
	factor, limit := 1, suiteLimit
	if opt.accel != "kvm" {
		factor, limit = patience, suiteLimit*patience/2
	}
	var list strings.Builder
	for _, s := range jobs {
		if err := compile(ctx, opt.source, s.pkg, filepath.Join(stage, "tests", s.name)); err != nil {
			return "", err
		}
		fmt.Fprintf(&list, "%s %s %d %s\n", s.name, s.pkg, int(limit.Seconds()), s.run)
	}
	for _, f := range []struct {
		name string
		data []byte
		mode fs.FileMode
	}{{"boot", boot, 0o755}, {"suites", []byte(list.String()), 0o644}, {"environment", []byte(environment(opt, factor)), 0o644}} {
		if err := os.WriteFile(filepath.Join(stage, f.name), f.data, f.mode); err != nil {
			return "", err
		}
	}
	if err := copySources(ctx, opt, filepath.Join(stage, "src")); err != nil {
		return "", err
	}
	if err := addPrograms(ctx, opt, filepath.Join(stage, "programs")); err != nil {
		return "", err
	}
	for from, name := range map[string]string{opt.clients: "clients", opt.critest: "critest"} {
		if from == "" {
			continue
		}
		if err := copyDir(from, filepath.Join(stage, name)); err != nil {
			return "", err
		}
	}
	image := filepath.Join(dir, "payload.ext4")
	if err := mkfs(ctx, image, stage, "4G"); err != nil {
		return "", err
	}
	return image, os.RemoveAll(stage)
}

// environment is what the tests are told of the machine, for the shell.
func environment(opt options, patience int) string {
	out := fmt.Sprintf("FERRY_TEST_PATIENCE=%d\nFERRY_TEST_PROGRAMS=/payload/programs\n", patience)
	if opt.clients != "" {
		out += "FERRY_CLIENTS=/payload/clients\n"
	}
	if opt.critest != "" {
		focus := "AppArmor" // what has not been seen on machines like this one
		if opt.all {
			focus = "."
		}
		out += "CRITEST=/payload/critest/critest\nCRITEST_ROOT=/payload/critest/root\nCRITEST_FOCUS=" + focus + "\n"
	}
	return out
}

// compile makes a package's tests into a program.
func compile(ctx context.Context, source, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags=-s -w", "-o", to, "./"+pkg)
	cmd.Dir, cmd.Stderr = source, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compile the tests of %s: %w", pkg, err)
	}
	return nil
}

// addPrograms adds what runnertest would build.
func addPrograms(ctx context.Context, opt options, to string) error {
	for _, name := range []string{"ferry-runner", "ferry-init"} {
		if err := copyFile(filepath.Join(opt.bin, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	for _, program := range []string{"./internal/engine/testdata/probe", "./internal/engine/runner/testdata/nosys", "./internal/engine/cri/testdata/standin"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(to, filepath.Base(program)), program)
		cmd.Dir, cmd.Stderr, cmd.Env = opt.source, os.Stderr, append(os.Environ(), "CGO_ENABLED=0")
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", program, err)
		}
	}
	return nil
}

// copySources copies what git knows or would add, and the programs.
func copySources(ctx context.Context, opt options, to string) error {
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir, cmd.Stderr = opt.source, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("list the sources: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		err := copyFile(filepath.Join(opt.source, name), filepath.Join(to, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // deleted, but not yet for git
			return err
		}
	}
	if err := copyDir(opt.bin, filepath.Join(to, "bin")); err != nil {
		return err
	}
	// Debian's is older than what the tests are written for.
	if docker, err := exec.LookPath("docker"); err == nil {
		if docker, err = filepath.EvalSymlinks(docker); err != nil {
			return err
		}
		return copyFile(docker, filepath.Join(to, "bin", "docker"))
	}
	return nil
}

func copyDir(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyFile(path, filepath.Join(to, name))
	})
}

// copyFile copies a file or a link, by a second name where that is possible.
func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	if os.Link(from, to) == nil {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}
