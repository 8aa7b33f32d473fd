package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Teardown removes everything the network made but for the Definitions, whose
// bridges the next Start makes again, and puts back what it changed,
// from the state directory alone, whether or not this Network was ever
// started; it must not be running. Containers still attached lose their
// network. Idempotent; it goes on past what fails and returns all errors.
func (n *Network) Teardown(ctx context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	defer n.close()
	if err := ctx.Err(); err != nil {
		return err
	}
	errs := []error{n.removeBridges()}
	if all, err := n.leases.load(); err != nil {
		errs = append(errs, err)
	} else {
		for _, a := range all {
			errs = append(errs, n.leases.remove(a.ID))
		}
	}
	for _, c := range n.changes.all() {
		if err := n.undo(c); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, n.changes.forget(c.Kind, c.Name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.removeState()
}

// removeBridges removes all bridges, and with them every namespace and interface of ours.
func (n *Network) removeBridges() error {
	defined, err := n.definitions.load()
	if err != nil {
		return err
	}
	n.mu.Lock()
	clear(n.segments)
	n.mu.Unlock()
	list := []string{n.o.Bridge}
	for _, d := range defined {
		list = append(list, d.Bridge)
	}
	_, err = n.removeStrays(nil) // namespaces
	errs := []error{err}
	for _, name := range list {
		errs = append(errs, n.dropBridge(name))
	}
	return errors.Join(errs...)
}

func (n *Network) undo(c Change) error {
	switch c.Kind {
	case ChangeNftables:
		if strings.HasPrefix(c.Name, "chain ") {
			return n.firewall.removeFromForeign("")
		}
		return n.firewall.remove()
	case ChangeSysctl:
		if user, err := n.firewall.forwardingUser(); err != nil {
			return err
		} else if user != "" {
			n.o.Log.Info("sysctl left as it is", "sysctl", c.Name, "value", c.New, "needed_by", user)
			return nil
		}
		return restoreSysctl(c)
	default: // interfaces have gone with removeBridges
		return nil
	}
}

// removeState removes our files, and the directories if nothing else is in them.
func (n *Network) removeState() error {
	var errs []error
	for _, path := range []string{
		n.changes.path, n.cursorPath(), filepath.Join(n.o.StateDir, "lock"), n.leases.dir, n.definitions.dir, n.o.NetnsDir, n.o.StateDir,
	} {
		err := os.Remove(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
