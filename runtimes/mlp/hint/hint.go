// Package hint attaches the next step for a person to an error.
//
// Every package of the mlp runtime may import it. It imports nothing of
// Ferry: the runtime is payload, built and shipped apart from the platform.
package hint

import (
	"errors"
	"fmt"
)

type hinted struct {
	err  error
	next string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Wrap returns err with the next step attached; nil stays nil. An error that
// carries a step already keeps it: the one closest to the cause knows best.
func Wrap(err error, next string) error {
	if err == nil || Of(err) != "" {
		return err
	}
	return &hinted{err: err, next: next}
}

// Errorf is Wrap(fmt.Errorf(format, args...), next).
func Errorf(next, format string, args ...any) error {
	return Wrap(fmt.Errorf(format, args...), next)
}

// Of returns the next step attached to err or to an error it wraps, or "".
func Of(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.next
	}
	return ""
}
