package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBootstrapParse(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	for _, tt := range []struct{ name, epoch, image, args string }{
		{"debian:bookworm", "", "docker.io/library/debian:bookworm", "bookworm out"},
		{"docker.io/library/debian:trixie", "5", "docker.io/library/debian:trixie", "trixie out"},
		{"ubuntu:noble", "", "docker.io/library/ubuntu:noble", "noble out"},
		{"debian:bookworm-slim", "", "docker.io/library/debian:bookworm-slim", "--dpkgopt=path-include=/usr/share/doc/*/copyright bookworm out"},
	} {
		var b bootstrap
		if err := b.parse(tt.name, tt.epoch, now); err != nil || b.name() != tt.image {
			t.Errorf("%s: %s, %v", tt.name, b.name(), err)
		}
		cmd := b.command(t.Context(), "/bin/true", "out")
		epoch := "SOURCE_DATE_EPOCH=1777852800" // midnight
		if tt.epoch != "" {
			epoch = "SOURCE_DATE_EPOCH=" + tt.epoch
		}
		if line := strings.Join(cmd.Args, " "); !strings.HasSuffix(line, tt.args) || !slices.Contains(cmd.Env, epoch) {
			t.Errorf("%s: %q, %q", tt.name, line, cmd.Env[len(cmd.Env)-1])
		}
	}
	for _, bad := range []string{"", "debian", "debian:", "debian:-slim", "debian:a b", "debian:--help", "alpine:3"} {
		var b bootstrap
		if err := b.parse(bad, "", now); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
	var b bootstrap
	if err := b.parse("debian:sid", "yesterday", now); err == nil {
		t.Error("an epoch that is no number passes")
	}
}

// TestBootstrap: what mmdebstrap writes becomes the image, and its failure is
// told with its last words. The real one is run in the end-to-end tests.
func TestBootstrap(t *testing.T) {
	running(t)
	bin := t.TempDir()
	fake := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "mmdebstrap"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", bin)
	ferry(t, "image", "bootstrap", "debian:bookworm").wants(t, 6, "", "error: .*mmdebstrap is not installed\nhint: apt install mmdebstrap")
	t.Setenv("PATH", bin+":"+path)
	fake("echo working >&2; echo 'E: no such suite' >&2; exit 25")
	ferry(t, "image", "bootstrap", "debian:nosuch").wants(t, 6, "", "(?s)working.*error: bootstrap .*debian:nosuch.*E: no such suite\nhint: is the archive reachable")
	fake(`for last; do :; done; mkdir -p "$0.d/etc"; echo fake > "$0.d/etc/debian_version"; tar -C "$0.d" -cf "$last" etc`)
	ferry(t, "image", "bootstrap", "debian:bookworm").wants(t, 0, "Loaded image: debian:bookworm\n", "")
	ferry(t, "image", "history", "debian:bookworm").wants(t, 0, "(?s).*ferry image bootstrap docker.io/library/debian:bookworm\n", "")
}
