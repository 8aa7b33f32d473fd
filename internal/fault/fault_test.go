package fault

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

func TestKindHintAndMappings(t *testing.T) {
	base := New(NotFound, "image %s: %w", "digits:v1", io.EOF).Hint("run `ferry images`")
	tests := []struct {
		name   string
		err    error
		kind   Kind
		hint   string
		exit   int
		status int
	}{
		{"nil", nil, Internal, "", ExitOK, http.StatusOK},
		{"plain", io.EOF, Internal, "", ExitFailed, http.StatusInternalServerError},
		{"direct", base, NotFound, "run `ferry images`", ExitNotFound, http.StatusNotFound},
		{"wrapped", fmt.Errorf("run: %w", base), NotFound, "run `ferry images`", ExitNotFound, http.StatusNotFound},
		{"outer kind wins, inner hint stays", New(Invalid, "spec: %w", base), Invalid, "run `ferry images`", ExitUsage, http.StatusBadRequest},
		{"denied", New(Denied, "not root"), Denied, "", ExitDenied, http.StatusForbidden},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.err != nil && KindOf(tt.err) != tt.kind {
				t.Errorf("KindOf = %v, want %v", KindOf(tt.err), tt.kind)
			}
			if got := HintOf(tt.err); got != tt.hint {
				t.Errorf("HintOf = %q, want %q", got, tt.hint)
			}
			if got := ExitCode(tt.err); got != tt.exit {
				t.Errorf("ExitCode = %d, want %d", got, tt.exit)
			}
			if got := HTTPStatus(tt.err); got != tt.status {
				t.Errorf("HTTPStatus = %d, want %d", got, tt.status)
			}
		})
	}
	full := New(Invalid, "load: %w", &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}).Hint("the file must be an archive")
	if got := HintOf(fmt.Errorf("run: %w", full)); !strings.Contains(got, "disk full") {
		t.Errorf("HintOf a full disk = %q", got)
	}
	if !errors.Is(base, io.EOF) {
		t.Error("the wrapped error is lost")
	}
}

func TestEveryKindIsMapped(t *testing.T) {
	for k := Internal; k <= Unsupported; k++ {
		if kinds[k].name == "" || kinds[k].status == 0 {
			t.Errorf("kind %d has no row in the table", k)
		}
	}
}
