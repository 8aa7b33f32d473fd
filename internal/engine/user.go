package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/ferryos/ferry/internal/fault"
)

// resolvedUser is a container process's identity as numbers.
type resolvedUser struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// resolveUser looks spec ("user", "uid", "user:group", …; empty is root) up in
// the /etc/passwd and /etc/group of the mounted root. The files are looked for
// below the root only: an image may make them links to the host's.
func resolveUser(rootfs, spec string, extra []uint32, strict bool) (resolvedUser, error) {
	passwd, err := readUserFile(rootfs, "etc/passwd")
	if err != nil {
		return resolvedUser{}, err
	}
	group, err := readUserFile(rootfs, "etc/group")
	if err != nil {
		return resolvedUser{}, err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return resolvedUser{}, fault.New(fault.Invalid, "user %q: %w", spec, err).
			Hint("use a user of the image's /etc/passwd, or a number")
	}
	// What the lists say is not looked at by the library: 2³² would become root.
	for _, id := range append([]int{u.Uid, u.Gid}, u.Sgids...) {
		if id < 0 || id > maxID {
			return resolvedUser{}, fault.New(fault.Invalid, "user %q: the image gives it the id %d", spec, id).
				Hint("correct the image's /etc/passwd or /etc/group, or name the user by number")
		}
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

// groupIDs looks groups up by name in the /etc/group of the mounted root.
func groupIDs(rootfs string, names []string) ([]uint32, error) {
	if len(names) == 0 {
		return nil, nil
	}
	group, err := readUserFile(rootfs, "etc/group")
	if err != nil {
		return nil, err
	}
	found, err := user.GetAdditionalGroups(names, group)
	if err != nil {
		return nil, fault.New(fault.Invalid, "groups %s: %w", strings.Join(names, ", "), err).Hint("use a group of the image's /etc/group, or a number")
	}
	var ids []uint32
	for _, id := range found {
		ids = append(ids, uint32(id))
	}
	return ids, nil
}

// ResolveUser looks a user ("user", "uid", "user:group", …; empty is root) up
// in a mounted root, for who makes the spec of a Bundle.
func ResolveUser(rootfs, spec string) (specs.User, error) {
	u, err := resolveUser(rootfs, spec, nil, false)
	return specs.User{UID: u.uid, GID: u.gid, AdditionalGids: u.groups}, err
}

// maxID is the highest user or group id, as Docker has it.
const maxID = 1<<31 - 1

// maxUserFile bounds what is read of an image's list of users.
const maxUserFile = 16 << 20

// readUserFile returns a file's content, found by name below the root as the
// container finds it; nothing where there is no regular file. The container may
// put anything in its place at any moment: a pipe that has no writer would be
// waited for, a device would do what it does when opened.
func readUserFile(rootfs, name string) (io.Reader, error) {
	found, err := pathrs.OpenInRoot(rootfs, name) // opens the path, not yet the file
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return strings.NewReader(""), nil
	case err != nil:
		return nil, fmt.Errorf("find the image's %s: %w", name, err)
	}
	defer found.Close()
	if st, err := found.Stat(); err != nil || !st.Mode().IsRegular() {
		return strings.NewReader(""), err
	}
	f, err := pathrs.Reopen(found, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open the image's %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err == nil && len(data) > maxUserFile {
		err = fault.New(fault.Invalid, "it has more than %d bytes", maxUserFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read the image's %s: %w", name, err)
	}
	return bytes.NewReader(data), nil
}
