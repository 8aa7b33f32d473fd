package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// probeTime is how long a kernel gets to say its first word. An emulated one
// takes two seconds; some machines have a KVM on which none ever does.
const probeTime = 20 * time.Second

// accelerator is "kvm" if a kernel really boots with it.
func (b base) accelerator(ctx context.Context) string {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return "tcg"
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := qemu(ctx, "-accel", "kvm", "-cpu", "host", "-m", "512", "-kernel", b.kernel, "-append", "console=ttyS0 panic=-1", "-serial", "stdio")
	out, err := cmd.Output() // without a root file system it ends by itself
	if err == nil && strings.Contains(string(out), "Linux version") {
		return "kvm"
	}
	return "tcg"
}

// qemu is a machine that is gone with ctx, and with this process.
func qemu(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// boot runs a machine to its end and returns what its tests said. The result is
// valid, and has what there was, beside an error too.
func (b base) boot(ctx context.Context, opt options, name, payload, logs string) (*result, error) {
	r := &result{}
	ctx, cancel := context.WithTimeoutCause(ctx, opt.limit, fmt.Errorf("not done after %v", opt.limit))
	defer cancel()
	log, err := os.Create(filepath.Join(logs, name+".log"))
	if err != nil {
		return r, err
	}
	defer log.Close()
	kernel := "console=ttyS0 root=/dev/vda rw quiet panic=-1 net.ifnames=0 systemd.unified_cgroup_hierarchy=1 systemd.show_status=0"
	if name == bootPlain {
		kernel += " init=/usr/local/sbin/ferry-vm"
	}
	accel, cpu := "tcg,thread=multi", "max"
	if opt.accel == "kvm" {
		accel, cpu = "kvm", "host"
	}
	cmd := qemu(ctx, "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", strconv.Itoa(opt.memory),
		"-kernel", b.kernel, "-initrd", b.initrd, "-append", kernel,
		// What a machine writes to its disk is in a file without a name.
		"-drive", "if=virtio,format=raw,snapshot=on,file="+b.disk,
		"-drive", "if=virtio,format=raw,readonly=on,file="+payload,
		"-serial", "file:"+filepath.Join(logs, name+".console"),
		"-device", "virtio-serial", "-chardev", "file,id=results,path=/proc/self/fd/1", "-device", "virtserialport,chardev=results,name=ferry.results",
		"-device", "virtio-rng-pci")
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(payload))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	readErr := r.read(io.TeeReader(out, log), os.Stdout)
	waitErr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return r, context.Cause(ctx)
	case !r.done:
		return r, errors.Join(errors.New("the machine ended before its tests"), readErr, waitErr)
	}
	return r, nil
}

// suiteResult is what one suite's tests said.
type suiteResult struct {
	name                    string
	passed, failed, skipped []string
	code, seconds           int
	ended, empty            bool
}

// result is what a machine's suites said.
type result struct {
	machine string
	suites  []*suiteResult
	done    bool
}

// read takes the machine's output apart, and shows how it goes.
func (r *result) read(from io.Reader, show io.Writer) error {
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			r.line(line, show)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func (r *result) line(line string, show io.Writer) {
	if rest, ours := strings.CutPrefix(line, "##vm "); ours {
		kind, rest, _ := strings.Cut(rest, " ")
		switch kind {
		case "machine":
			r.machine = rest
			fmt.Fprintln(show, "  ", rest)
		case "begin":
			r.suites = append(r.suites, &suiteResult{name: rest})
		case "end":
			s := r.suites[len(r.suites)-1]
			_, err := fmt.Sscanf(rest, "%s %d %d", &s.name, &s.code, &s.seconds)
			s.ended = err == nil
			fmt.Fprintf(show, "   %-12s exit %d after %d s: %d passed, %d failed, %d skipped\n", s.name, s.code, s.seconds, len(s.passed), len(s.failed), len(s.skipped))
		case "done":
			r.done = true
		}
		return
	}
	if len(r.suites) == 0 {
		return
	}
	s := r.suites[len(r.suites)-1]
	// Where a pattern like Test/Sub matches no Sub, Test passes all the same.
	s.empty = s.empty || line == "testing: warning: no tests to run"
	for prefix, list := range map[string]*[]string{"--- PASS: ": &s.passed, "--- FAIL: ": &s.failed, "--- SKIP: ": &s.skipped} {
		if rest, found := strings.CutPrefix(strings.TrimLeft(line, " "), prefix); found {
			name, _, _ := strings.Cut(rest, " ")
			*list = append(*list, name)
			if list == &s.failed {
				fmt.Fprintf(show, "   %-12s FAIL %s\n", s.name, name)
			}
		}
	}
}

// print writes a table, in the form of docs/conformance.md.
func (r *result) print(w io.Writer) {
	if len(r.suites) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n\n| suite | passed | failed | skipped | seconds |\n|---|---|---|---|---|\n", r.machine)
	for _, s := range r.suites {
		fmt.Fprintf(w, "| %s | %d | %d | %d | %d |\n", s.name, len(s.passed), len(s.failed), len(s.skipped), s.seconds)
	}
	fmt.Fprintln(w)
	for _, s := range r.suites {
		for _, name := range s.skipped {
			fmt.Fprintf(w, "- skipped: %s %s\n", s.name, name)
		}
		for _, name := range s.failed {
			fmt.Fprintf(w, "- failed: %s %s\n", s.name, name)
		}
	}
}

// failures names the suites that did not pass: a suite that said
// nothing or ran nothing, too.
func (r *result) failures(boot string, want []job) []string {
	var list []string
	for _, w := range want {
		ok := false
		for _, s := range r.suites {
			ok = ok || s.name == w.name && s.ended && s.code == 0 && !s.empty && len(s.passed) > 0
		}
		if !ok {
			list = append(list, boot+"/"+w.name)
		}
	}
	return list
}
