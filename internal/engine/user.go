package engine

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/sys/user"

	"github.com/ferryos/ferry/internal/fault"
)

// resolvedUser is a container process's identity as numbers.
type resolvedUser struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// resolveUser looks spec ("user", "uid", "user:group", …; empty is root) up in
// the /etc/passwd and /etc/group of the mounted root. The files are opened
// below the root only: an image may make them links to the host's.
func resolveUser(rootfs, spec string, extra []uint32, strict bool) (resolvedUser, error) {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return resolvedUser{}, err
	}
	defer root.Close()
	passwd, err := openIfRegular(root, "etc/passwd")
	if err != nil {
		return resolvedUser{}, err
	}
	defer passwd.Close()
	group, err := openIfRegular(root, "etc/group")
	if err != nil {
		return resolvedUser{}, err
	}
	defer group.Close()
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return resolvedUser{}, fault.New(fault.Invalid, "user %q: %w", spec, err).
			Hint("use a user of the image's /etc/passwd, or a number")
	}
	out := resolvedUser{uid: uint32(u.Uid), gid: uint32(u.Gid), home: u.Home}
	// The user's own group is a supplementary one too, as Docker has it.
	seen := map[uint32]bool{out.gid: true}
	out.groups = append(out.groups, out.gid)
	if !strict {
		for _, g := range u.Sgids {
			extra = append(extra, uint32(g))
		}
	}
	for _, g := range extra {
		if !seen[g] {
			seen[g] = true
			out.groups = append(out.groups, g)
		}
	}
	if out.home == "" {
		out.home = "/"
	}
	return out, nil
}

// openIfRegular opens a file of the root, or nothing where there is none or a
// link leads out of the root.
func openIfRegular(root *os.Root, name string) (io.ReadCloser, error) {
	f, err := root.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "escapes") {
			return io.NopCloser(strings.NewReader("")), nil
		}
		return nil, err
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		f.Close()
		return io.NopCloser(strings.NewReader("")), err
	}
	return f, nil
}
