// Package fault gives Ferry's errors a kind and a next step.
//
// A kind decides the exit code of a command and the status of an HTTP answer,
// in one table each. A hint tells the person what to do next; it is printed
// only at the top, by the command line or the API's error writer.
//
// Any package may import fault. It imports nothing of Ferry.
package fault

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
)

// Kind says what sort of failure an error is.
type Kind int

// The kinds, from the one that says least.
const (
	Internal    Kind = iota // a defect or an unforeseen failure
	Invalid                 // the caller's input is wrong; the same call fails again
	NotFound                // the named thing does not exist
	Conflict                // the thing exists already, or is in a state that forbids this
	Denied                  // the caller may not do this (not root, bad credential)
	Unavailable             // something needed is not running or not reachable now
	Unsupported             // Ferry, or this machine, cannot do this
)

// Exit codes of the ferry command; `ferry help exit-codes` prints them.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitDenied      = 4
	ExitNotFound    = 5
	ExitUnavailable = 6
)

var kinds = map[Kind]struct {
	name   string
	exit   int
	status int
}{
	Internal:    {"internal", ExitFailed, http.StatusInternalServerError},
	Invalid:     {"invalid", ExitUsage, http.StatusBadRequest},
	NotFound:    {"not_found", ExitNotFound, http.StatusNotFound},
	Conflict:    {"conflict", ExitFailed, http.StatusConflict},
	Denied:      {"denied", ExitDenied, http.StatusForbidden},
	Unavailable: {"unavailable", ExitUnavailable, http.StatusServiceUnavailable},
	Unsupported: {"unsupported", ExitFailed, http.StatusNotImplemented},
}

// String returns the kind's name as it appears in JSON output.
func (k Kind) String() string { return kinds[k].name }

// Error is an error with a kind and, where there is one, a next step.
type Error struct {
	kind Kind
	hint string
	err  error
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the wrapped error, so errors.Is and errors.As see through.
func (e *Error) Unwrap() error { return e.err }

// New returns an error of the given kind, formatted as by fmt.Errorf (%w wraps).
func New(kind Kind, format string, args ...any) *Error {
	return &Error{kind: kind, err: fmt.Errorf(format, args...)}
}

// Hint returns a copy of e that carries the next step for the person, a
// sentence that names a command or a setting where one helps.
func (e *Error) Hint(format string, args ...any) *Error {
	c := *e
	c.hint = fmt.Sprintf(format, args...)
	return &c
}

// full reports whether err comes of a full disk. That is the reason then,
// whatever the layers above make of it.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// KindOf returns the kind of the outermost *Error in err's chain, Unavailable
// if the disk is full, else Internal if there is none.
func KindOf(err error) Kind {
	if full(err) {
		return Unavailable
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.kind
	}
	return Internal
}

// Is reports whether err is of the given kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// HintOf returns the first hint in err's chain, or "". Where the system says
// that no room is left, that is the next step, whatever failed for it.
func HintOf(err error) string {
	if full(err) {
		return "is the disk full? `df` and `ferry doctor` tell; make room, or set dataDir in the configuration"
	}
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if e.hint != "" {
			return e.hint
		}
		err = e.err
	}
	return ""
}

// ExitCode maps err to the exit code of a command; nil is ExitOK.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	return kinds[KindOf(err)].exit
}

// HTTPStatus maps err to the status of an HTTP answer; nil is 200.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	return kinds[KindOf(err)].status
}
