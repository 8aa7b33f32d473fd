package engine

import (
	"errors"
	"testing"

	"github.com/ferryos/ferry/internal/fault"
)

// TestAppArmorProfile is the table above appArmor.name, and what is refused.
func TestAppArmorProfile(t *testing.T) {
	for _, c := range []struct {
		kernel, parser, privileged bool
		asked, want                string
		loads                      int
		kind                       fault.Kind
	}{
		{},
		{asked: "unconfined"}, // and so there is none
		{asked: "mine", kind: fault.Unsupported},
		{privileged: true},
		{kernel: true, parser: true, want: "ferry-default", loads: 1},
		{kernel: true, parser: true, privileged: true, want: "unconfined"},
		{kernel: true, parser: true, asked: "unconfined", want: "unconfined"},
		{kernel: true, parser: true, asked: "mine", want: "mine"},
		{kernel: true, parser: true, privileged: true, asked: "mine", want: "mine"},
		{kernel: true, parser: true, asked: "other", kind: fault.Invalid},
		{kernel: true},
		{kernel: true, asked: "mine", want: "mine"},
		{kernel: true, asked: "other", kind: fault.Invalid},
		{kernel: true, privileged: true, want: "unconfined"},
	} {
		loads, there := 0, map[string]bool{"mine": true}
		a := &appArmor{kernel: c.kernel, parser: c.parser, loaded: func(name string) (bool, error) { return there[name], nil },
			load: func(name string) error { loads++; there[name] = true; return nil }}
		for range 2 { // the second time nothing is to be loaded
			sec := Security{Privileged: c.privileged, AppArmor: c.asked}
			got, err := a.profile(sec)
			if got != c.want || fault.KindOf(err) != c.kind {
				t.Errorf("%+v: %q, %v", c, got, err)
			}
			if name := a.name(sec); err == nil && name != c.want {
				t.Errorf("%+v: named %q", c, name)
			}
		}
		if loads != c.loads {
			t.Errorf("%+v: loaded %d times", c, loads)
		}
	}
	broken := &appArmor{kernel: true, parser: true, loaded: func(string) (bool, error) { return false, nil }, load: func(string) error { return errors.New("syntax") }}
	if _, err := broken.profile(Security{}); err == nil {
		t.Error("a container starts without the profile that could not be loaded")
	}
}
