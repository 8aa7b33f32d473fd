package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ferryos/ferry/internal/fault"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, in, wantErr string
	}{
		{"empty is the default", "", ""},
		{"one field", "dataDir: /srv/ferry\n", ""},
		{"unknown field", "dataDri: /srv\n", `unknown field "dataDri"`},
		{"unknown nested field", "api: {prot: 1}\n", `unknown field "prot"`},
		{"broken yaml", "a: [\n", "yaml"},
		{"relative path", "runDir: run\n", "runDir"},
		{"root as data directory", "dataDir: /\n", "dataDir"},
		{"socket path too long", "runDir: /" + strings.Repeat("x", 70) + "\n", "too long"},
		{"bad level", "logLevel: loud\n", "logLevel"},
		{"long bridge", "network: {bridge: abcdefghijklmnopq}\n", "network.bridge"},
		{"pod range too small", "network: {podCIDR: 10.1.0.0/28}\n", "podCIDR"},
		{"ranges overlap", "network: {podCIDR: 10.86.0.0/16}\n", "overlap"},
		{"same port twice", "registry: {port: 6443}\n", "also api.port"},
		{"port out of range", "registry: {port: 70000}\n", "not a port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in))
			if tt.wantErr == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Fatalf("Parse = %v, want an error with %q", err, tt.wantErr)
			}
		})
	}
}

func TestDefaultsMergeIntoNested(t *testing.T) {
	c, err := Parse([]byte("network: {bridge: f1}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Network.Bridge != "f1" || c.Network.PodCIDR != Default().Network.PodCIDR {
		t.Errorf("nested defaults lost: %+v", c.Network)
	}
	if got := c.Gateway().String(); got != "10.85.0.1" {
		t.Errorf("Gateway = %s", got)
	}
	if c, err = Parse([]byte("network: {kubeProxy: }\n")); err != nil || c.Network.KubeProxy == nil {
		t.Errorf("an empty kubeProxy is not the default: %v", err)
	}
}

func TestLoadNamedFile(t *testing.T) {
	t.Setenv("FERRY_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	if _, err := Load(); fault.HintOf(err) == "" {
		t.Errorf("a named file that is missing must fail with a hint, got %v", err)
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("registry: {port: 5001}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("FERRY_CONFIG", file)
	c, err := Load()
	if err != nil || c.Registry.Port != 5001 {
		t.Errorf("Load = %+v, %v", c.Registry, err)
	}
}

func TestLibexecDir(t *testing.T) {
	prefix := t.TempDir()
	bin, libexec := filepath.Join(prefix, "bin"), filepath.Join(prefix, "libexec", "ferry")
	for _, step := range []struct{ make, want string }{{bin, bin}, {filepath.Join(libexec, "ferryd"), libexec}, {filepath.Join(bin, "ferryd"), bin}} {
		if err := os.MkdirAll(step.make, 0o755); err != nil {
			t.Fatal(err)
		}
		if got := libexecDir(bin); got != step.want {
			t.Errorf("with %s: %s, want %s", step.make, got, step.want)
		}
	}
}

func TestNodeName(t *testing.T) {
	for in, want := range map[string]string{"Box_1": "box-1", "-a.": "a", "___": "ferry", "n.example": "n.example"} {
		if got := nodeName(in); got != want {
			t.Errorf("nodeName(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestRegistries(t *testing.T) {
	c, err := Parse([]byte("registries:\n- host: docker.io\n  mirrors: [http://mirror.test:5000, https://other.test/hub]\n- host: mirror.test:5000\n  plainHTTP: true\n" +
		"images: {minAge: 1m, maxAge: 48h, highPercent: 90}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Registries) != 2 || len(c.Registries[0].Mirrors) != 2 || !c.Registries[1].PlainHTTP {
		t.Errorf("%+v", c.Registries)
	}
	if low, high := c.Images.Ages(); low != time.Minute || high != 48*time.Hour || c.Images.HighPercent != 90 || c.Images.LowPercent != 80 {
		t.Errorf("%+v", c.Images)
	}
	for text, says := range map[string]string{
		"registries: [{host: a/b}]":                                       "host or host:port",
		"registries: [{host: ''}]":                                        "host or host:port",
		"registries: [{host: a}, {host: a}]":                              "twice",
		"registries: [{host: a, mirrors: [mirror.test]}]":                 "registries[0].mirrors",
		"registries: [{host: a, mirrors: ['https://me:pw@mirror.test']}]": "registries[0].mirrors",
		"registries: [{host: a, clientCert: /x}]":                         "belong together",
		"registries: [{host: a, ca: x.pem}]":                              "absolute",
		"registries: [{host: a, plainHTTP: true, ca: /x.pem}]":            "no use",
		"registries: [{host: a, odd: true}]":                              "odd",
		"images: {highPercent: 50, lowPercent: 60}":                       "lowPercent",
		"images: {minAge: tomorrow}":                                      "minAge",
		"images: {maxAge: -1h}":                                           "maxAge",
		"images: {hostsDir: certs.d}":                                     "hostsDir",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
}
