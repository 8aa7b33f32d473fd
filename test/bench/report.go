package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

const head = `# Benchmarks

What ` + "`make bench`" + ` measured, which writes this file. Each figure is the median, with the range, of whole commands or of what a client
sees, on the real programs. Timing fails no test. Machines differ and are noisy: compare ratios, and figures of one run.

`

// write writes the report.
func (b *bench) write(path string) error {
	var out bytes.Buffer
	out.WriteString(head)
	commit, _ := exec.Command("git", "describe", "--tags", "--always", "--dirty").Output()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Fprintf(&out, "Machine: %d processors, %s, kernel %s, %s. Ferry %s, %s.\n\n", runtime.NumCPU(), memory(), strings.TrimSpace(string(kernel)),
		system(), strings.TrimSpace(string(commit)), time.Now().UTC().Format(time.DateOnly))
	out.WriteString("| what | bar | measured | beside |\n|---|---|---|---|\n")
	for _, r := range b.rows {
		fmt.Fprintf(&out, "| %s | %s | %s | %s |\n", r.what, r.bar, r.measured, r.beside)
	}
	for _, d := range b.details {
		fmt.Fprintf(&out, "\n%s\n", d)
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

func memory() string {
	data, _ := os.ReadFile("/proc/meminfo")
	var kb int
	_, _ = fmt.Sscanf(string(data), "MemTotal: %d kB", &kb) // the kernel's own format
	return fmt.Sprintf("%d GB of memory", (kb+1<<19)>>20)
}

func system() string {
	data, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return runtime.GOOS
}
