package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type part struct {
	name string
	fail error
	log  *[]string
}

func (p part) Name() string { return p.name }
func (p part) Start(context.Context) error {
	*p.log = append(*p.log, "start "+p.name)
	return p.fail
}
func (p part) Stop(context.Context) error {
	*p.log = append(*p.log, "stop "+p.name)
	return nil
}

func TestGroup(t *testing.T) {
	boom := errors.New("boom")
	tests := []struct {
		name string
		fail map[string]error
		want []string
	}{
		{"all start", nil, []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}},
		{"a failure stops what runs, in reverse", map[string]error{"c": boom},
			[]string{"start a", "start b", "start c", "stop b", "stop a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log []string
			var list []Component
			for _, n := range []string{"a", "b", "c"} {
				list = append(list, part{n, tt.fail[n], &log})
			}
			g := New(slog.New(slog.DiscardHandler), list...)
			err := g.Start(t.Context())
			if (err != nil) != (tt.fail != nil) {
				t.Fatalf("Start = %v", err)
			}
			if err != nil && !errors.Is(err, boom) {
				t.Errorf("Start lost the cause: %v", err)
			}
			if err := g.Stop(t.Context()); err != nil {
				t.Errorf("Stop = %v", err)
			}
			if d := cmp.Diff(tt.want, log); d != "" {
				t.Errorf("calls (-want +got):\n%s", d)
			}
		})
	}
}
