package volume_test

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/dockerapi/volume"
	"github.com/ferryos/ferry/internal/fault"
)

func open(t *testing.T, root string) *volume.Store {
	t.Helper()
	s, err := volume.Open(root, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func names(s *volume.Store) string {
	var out []string
	for _, v := range s.List() {
		out = append(out, v.Name)
	}
	return strings.Join(out, " ")
}

func TestStore(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	labels := map[string]string{"a": "b"}
	made, isNew, err := s.Create(volume.Volume{Name: "data", Labels: labels})
	if err != nil || !isNew || made.CreatedAt.IsZero() {
		t.Fatalf("%+v, %v, %v", made, isNew, err)
	}
	if again, isNew, err := s.Create(volume.Volume{Name: "data"}); err != nil || isNew || !maps.Equal(again.Labels, labels) {
		t.Errorf("%+v, %v, %v", again, isNew, err)
	}
	if _, _, err := s.Create(volume.Volume{Name: "data", Options: map[string]string{"type": "tmpfs"}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("with other options: %v", err)
	}
	for _, name := range []string{"", "x", "../x", ".gone-x", "a/b", "a b", strings.Repeat("x", 255)} {
		if _, _, err := s.Create(volume.Volume{Name: name}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	big := filepath.Join(s.Path("data"), "big")
	if err := os.WriteFile(big, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(big, big+"2"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Size(t.Context(), "data"); err != nil || n != 1000 {
		t.Errorf("%d, %v", n, err)
	}
	if err := s.Update("data", func(v *volume.Volume) { v.Doomed = true }); err != nil {
		t.Error(err)
	}
	again, err := open(t, root).Get("data")
	if err != nil || !again.Doomed || !maps.Equal(again.Labels, labels) || !again.CreatedAt.Equal(made.CreatedAt) {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
	if err := s.Remove("data"); err != nil {
		t.Error(err)
	}
	if err := s.Remove("data"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := s.Update("data", func(*volume.Volume) {}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestInterrupted opens what a killed process left.
func TestInterrupted(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	for _, name := range []string{"whole", "damaged", "bare"} {
		if _, _, err := s.Create(volume.Volume{Name: name, Labels: map[string]string{"a": "b"}}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.Path(name), "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{".new-half/_data", ".gone-old/_data/deep"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(root, "damaged/volume.json"), 5); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "bare/volume.json")); err != nil {
		t.Fatal(err)
	}
	s = open(t, root)
	if got := names(s); got != "bare damaged whole" {
		t.Errorf("%s", got)
	}
	for _, v := range s.List() {
		if _, err := os.Stat(filepath.Join(s.Path(v.Name), "f")); err != nil || v.CreatedAt.IsZero() || (len(v.Labels) == 1) != (v.Name == "whole") {
			t.Errorf("%+v, %v", v, err)
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 3 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestParseOptions(t *testing.T) {
	for _, tt := range []struct {
		options string // type, o, device
		want    volume.Options
		kind    fault.Kind
	}{
		{"none|bind|/srv/data/", volume.Options{Bind: "/srv/data"}, 0},
		{"|rbind,ro|/srv", volume.Options{Bind: "/srv", ReadOnly: true}, 0},
		{"tmpfs|size=1m,uid=5|tmpfs", volume.Options{Tmpfs: true, Mount: []string{"size=1m", "uid=5"}}, 0},
		{"none|bind|", volume.Options{}, fault.Invalid},
		{"none|bind|srv", volume.Options{}, fault.Invalid},
		{"nfs|addr=1.2.3.4|:/x", volume.Options{}, fault.Unsupported},
		{"ext4||/dev/sda1", volume.Options{}, fault.Unsupported},
		{"none|bind,noatime|/srv", volume.Options{}, fault.Unsupported},
	} {
		f := strings.Split(tt.options, "|")
		got, err := volume.ParseOptions(map[string]string{"type": f[0], "o": f[1], "device": f[2]})
		if tt.kind != 0 {
			if !fault.Is(err, tt.kind) {
				t.Errorf("%s: %v", tt.options, err)
			}
			continue
		}
		if err != nil || got.Bind != tt.want.Bind || got.ReadOnly != tt.want.ReadOnly || got.Tmpfs != tt.want.Tmpfs || strings.Join(got.Mount, ",") != strings.Join(tt.want.Mount, ",") {
			t.Errorf("%s: %+v, %v", tt.options, got, err)
		}
	}
	if _, err := volume.ParseOptions(map[string]string{"size": "1G"}); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}
