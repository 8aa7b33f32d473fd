package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// release is the Debian that is booted. The programs under test are linked with
// the C library of the machine they are built on, which must not be newer.
const release = "bookworm"

// sources are where packages come from; without the second, the kernel is one
// without its security updates.
var sources = []string{
	"deb http://deb.debian.org/debian " + release + " main",
	"deb http://deb.debian.org/debian-security " + release + "-security main",
}

// packages are what is in the machine beside Debian's minimal system: a kernel,
// systemd, what Ferry needs (scripts/deps), and what tests call.
var packages = []string{
	"linux-image-cloud-amd64", "initramfs-tools", "zstd", "kmod",
	"systemd", "systemd-sysv", "dbus", "udev", "apparmor",
	"iproute2", "iptables", "nftables", "procps", "curl", "jq", "busybox-static", "ca-certificates", "docker.io", "python3-docker", "openssh-client", "e2fsprogs", "git",
	"sudo", // critest loads its AppArmor profiles with it
}

//go:embed guest
var guest embed.FS

// diskSize is the machine's disk: sparse here.
const diskSize = "24G"

// base is what every machine starts from.
type base struct{ disk, kernel, initrd string }

// baseImage makes the disk image, or takes the one that an earlier run made of
// the same.
func baseImage(ctx context.Context, cache string) (base, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, release, sources, packages, diskSize, customize)
	err := fs.WalkDir(guest, "guest/base", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := guest.ReadFile(path)
		fmt.Fprintln(sum, path, string(data))
		return err
	})
	if err != nil {
		return base{}, err
	}
	dir := filepath.Join(cache, fmt.Sprintf("debian-%x", sum.Sum(nil)[:6]))
	b := base{disk: filepath.Join(dir, "root.ext4"), kernel: filepath.Join(dir, "vmlinuz"), initrd: filepath.Join(dir, "initrd.img")}
	if _, err := os.Stat(dir); err == nil {
		return b, nil
	}
	old, err := filepath.Glob(filepath.Join(cache, "debian-*"))
	if err != nil {
		return b, err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return b, err
		}
	}
	begin := time.Now()
	fmt.Printf("== making the disk image of Debian %s\n", release)
	if err := makeBase(ctx, cache, dir); err != nil {
		return b, err
	}
	fmt.Printf("== made in %v: %s\n", time.Since(begin).Round(time.Second), dir)
	return b, nil
}

// customize starts what is ours and keeps Docker's daemon from starting: only
// its client is wanted.
var customize = []string{
	`chroot "$1" systemctl mask docker.service docker.socket containerd.service systemd-networkd-wait-online.service`,
	`chroot "$1" systemctl enable ferry-vm.service`,
	`chroot "$1" passwd -d root`,
	`echo ferry-vm > "$1/etc/hostname"`,
	`echo "127.0.0.1 localhost ferry-vm" > "$1/etc/hosts"`,
	`rm -f "$1/etc/resolv.conf"; echo "nameserver 127.0.0.1" > "$1/etc/resolv.conf"`,
	`chmod 755 "$1/usr/local/sbin/ferry-vm"; mkdir -p "$1/payload"`,
}

// makeBase makes the image's directory; it appears when it is complete.
func makeBase(ctx context.Context, cache, dir string) (err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "making-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	// Its users are not this machine's: none of these may look in.
	root, own, done := filepath.Join(tmp, "root"), filepath.Join(tmp, "own"), filepath.Join(tmp, "done")
	if err := os.Mkdir(done, 0o755); err != nil {
		return err
	}
	files, err := fs.Sub(guest, "guest/base")
	if err != nil {
		return err
	}
	if err := os.CopyFS(own, files); err != nil {
		return err
	}
	args := []string{"--quiet", "--mode=root", "--variant=minbase", "--include=" + strings.Join(packages, ","),
		`--aptopt=Acquire::Languages "none"`, "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", `--customize-hook=cp -rT ` + own + ` "$1"`}
	for _, c := range customize {
		args = append(args, "--customize-hook="+c)
	}
	args = append(args, release, root)
	if err := command(ctx, "mmdebstrap", append(args, sources...)...); err != nil {
		return err
	}
	for file, name := range map[string]string{"vmlinuz-*": "vmlinuz", "initrd.img-*": "initrd.img"} {
		found, err := filepath.Glob(filepath.Join(root, "boot", file))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("not one %s in the image but %d: %w", file, len(found), err)
		}
		if err := os.Rename(found[0], filepath.Join(done, name)); err != nil {
			return err
		}
	}
	// Nothing on it is worth a journal.
	if err := mkfs(ctx, filepath.Join(done, "root.ext4"), root, diskSize); err != nil {
		return err
	}
	return os.Rename(done, dir)
}

// mkfs makes a file system image with what is in a directory.
func mkfs(ctx context.Context, image, dir, size string) error {
	return command(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "nodiscard", "-m", "0", "-d", dir, image, size)
}

// command runs a program that says nothing unless it fails.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // lets it clean up
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
