package engine

import (
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/ferryos/ferry/internal/engine/files"
	"github.com/ferryos/ferry/internal/engine/runner"
	"github.com/ferryos/ferry/internal/engine/store"
	"github.com/ferryos/ferry/internal/fault"
)

// Users are the ids of a pod's user namespace.
type Users = store.Users

// IDMap is a range of ids of a user namespace, and where it lies among the host's.
type IDMap = store.IDMap

// Where AutoUsers takes ranges from: ids that systemd's list of them,
// https://systemd.io/UIDS-GIDS, leaves unused. The kubelet, which gives pods
// ranges from anywhere, may give out one of them: those of pods are left out.
const (
	usersFirst  = 0x70000000
	usersSize   = 1 << 16
	usersRanges = 0xfff
)

// userRanges are the ranges that pods have.
type userRanges struct {
	mu   sync.Mutex
	used map[uint32]int // pods by the first id of their range
	next uint32
}

// take returns a range that no pod has.
func (r *userRanges) take() (Users, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range usersRanges {
		first := usersFirst + r.next%usersRanges*usersSize
		r.next++ // what was used last is used again last
		if r.used[first] == 0 {
			r.used[first] = 1
			one := []IDMap{{Inside: 0, Host: first, Size: usersSize}}
			return Users{UIDs: one, GIDs: one}, nil
		}
	}
	return Users{}, fault.New(fault.Unavailable, "all %d ranges of user ids are in use", usersRanges).
		Hint("remove containers that have a user namespace of their own")
}

// claim takes the range that a pod was given.
func (r *userRanges) claim(spec PodSpec) {
	if spec.Users == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used[spec.Users.UIDs[0].Host&^(usersSize-1)]++
}

// giveUsers completes and checks what a pod's spec says of users.
func (e *Engine) giveUsers(spec *PodSpec) error {
	if spec.AutoUsers {
		users, err := e.users.take()
		if err != nil {
			return err
		}
		spec.Users = &users
	}
	if err := checkUsers(*spec); err != nil {
		if spec.AutoUsers {
			e.releaseUsers(*spec)
		}
		return err
	}
	if !spec.AutoUsers {
		e.users.claim(*spec)
	}
	return nil
}

// releaseUsers gives back the range that a pod was given.
func (e *Engine) releaseUsers(spec PodSpec) {
	if spec.Users == nil {
		return
	}
	e.users.mu.Lock()
	defer e.users.mu.Unlock()
	first := spec.Users.UIDs[0].Host &^ (usersSize - 1)
	if e.users.used[first]--; e.users.used[first] <= 0 {
		delete(e.users.used, first)
	}
}

// checkUsers refuses a user namespace that would not isolate, or that cannot be made.
func checkUsers(spec PodSpec) error {
	if spec.Users == nil {
		return nil
	}
	for what, list := range map[string][]IDMap{"user": spec.Users.UIDs, "group": spec.Users.GIDs} {
		if len(list) != 1 {
			return fault.New(fault.Invalid, "a user namespace has one range of %s ids, not %d", what, len(list))
		}
		switch m := list[0]; {
		case m.Inside != 0:
			return fault.New(fault.Invalid, "the %s ids of a user namespace begin at 0, not at %d", what, m.Inside)
		case m.Size == 0 || m.Host > 0-m.Size-1:
			return fault.New(fault.Invalid, "there are no %d %s ids from %d on", m.Size, what, m.Host)
		case m.Host == 0:
			return fault.New(fault.Invalid, "the root of a user namespace cannot be the host's")
		}
	}
	for what, mode := range map[string]NamespaceMode{"network": spec.Network, "PID": spec.PID, "IPC": spec.IPC} {
		if mode == ModeHost {
			return fault.New(fault.Invalid, "a pod with a user namespace cannot have the host's %s namespace", what).
				Hint("give it namespaces of its own, or run it without a user namespace")
		}
	}
	return nil
}

// runnerUsers is the form the runner takes.
func runnerUsers(u *Users) *runner.Users {
	if u == nil {
		return nil
	}
	return &runner.Users{UIDs: ociMappings(u.UIDs), GIDs: ociMappings(u.GIDs)}
}

func ociMappings(in []IDMap) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Inside, HostID: m.Host, Size: m.Size})
	}
	return out
}

// ownersOf translates the owners of a container's files.
func ownersOf(u Users) files.Owners {
	uids, gids := u.UIDs[0], u.GIDs[0]
	in := func(id int, m IDMap) int {
		if id >= int(m.Host) && id-int(m.Host) < int(m.Size) {
			return id - int(m.Host)
		}
		return id
	}
	out := func(id int, m IDMap) int {
		if id < int(m.Size) {
			return id + int(m.Host)
		}
		return id
	}
	return files.Owners{
		Inside:  func(uid, gid int) (int, int) { return in(uid, uids), in(gid, gids) },
		Outside: func(uid, gid int) (int, int) { return out(uid, uids), out(gid, gids) },
	}
}

// rootOf is who root of the user namespace is on the host.
func rootOf(u *Users) (uid, gid int) {
	if u == nil {
		return 0, 0
	}
	return int(u.UIDs[0].Host), int(u.GIDs[0].Host)
}

// containerDir is where a container's file systems are mounted.
func (e *Engine) containerDir(id string) string { return filepath.Join(e.opt.RunDir, "c", id[:12]) }
