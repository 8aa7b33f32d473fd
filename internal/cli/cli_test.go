package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ferryos/ferry/internal/dockerapi"
	"github.com/ferryos/ferry/internal/engine/enginetest"
	"github.com/ferryos/ferry/internal/engine/runner/runnertest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	runnertest.Clean()
	os.Exit(code)
}

// limit bounds what a test waits for.
const limit = 20 * time.Second

// result is what a command did.
type result struct {
	code     int
	out, err string
}

// ferry runs the command.
func ferry(t *testing.T, args ...string) result {
	t.Helper()
	return ferryIn(t, strings.NewReader(""), args...)
}

func ferryIn(t *testing.T, in io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	var out, errs bytes.Buffer
	getenv := func(name string) string { // nothing of the user's own is touched
		return map[string]string{"KUBECONFIG": filepath.Join(filepath.Dir(os.Getenv("FERRY_CONFIG")), "kubeconfig")}[name]
	}
	code := Main(ctx, args, in, &out, &errs, getenv)
	return result{code, out.String(), errs.String()}
}

// wants compares with an exit code and patterns: out must match the whole of
// standard output, err some of standard error.
func (r result) wants(t *testing.T, code int, out, err string) {
	t.Helper()
	if r.code != code || !regexp.MustCompile(`^(?:`+out+`)$`).MatchString(r.out) || !regexp.MustCompile(err).MatchString(r.err) || err == "" && r.err != "" {
		t.Errorf("code %d, want %d\n--- standard output, want %s\n%.2000s--- standard error, want %s\n%.2000s", r.code, code, out, r.out, err, r.err)
	}
}

// configure writes a configuration whose directories are the test's.
func configure(t *testing.T, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "config.yaml"), "runDir: "+dir+"\ndataDir: "+dir+"/data\nlibexecDir: "+dir+"/libexec\n")
	t.Setenv("FERRY_CONFIG", filepath.Join(dir, "config.yaml"))
}

// notRunning is a configuration of a Ferry that does not run.
func notRunning(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	configure(t, dir)
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// running starts an engine with the Docker API where ferry looks for it.
func running(t *testing.T) *enginetest.Machine {
	t.Helper()
	m := enginetest.New(t)
	configure(t, m.Dir())
	s := dockerapi.New(dockerapi.Options{Engine: m.Engine, Socket: filepath.Join(m.Dir(), "docker.sock"), LogDir: filepath.Join(m.Dir(), "logs"),
		Root: m.Dir(), Version: "0.0.0-test", Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

// eventually waits until ok, looking often.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not true: %s", what)
		}
	}
}

func TestHelp(t *testing.T) {
	notRunning(t)
	for _, args := range [][]string{{}, {"--help"}, {"help"}} {
		ferry(t, args...).wants(t, 0, `(?s)Ferry builds AI applications.*The platform:.*Containers:.*Images:.*ferry \[command\] --help.*`, "")
	}
	commands := regexp.MustCompile(`(?m)^  ([a-z]+) `)
	for _, m := range commands.FindAllStringSubmatch(ferry(t).out, -1) {
		name := m[1]
		if name == "ferry" || name == "kubectl" { // of the examples
			continue
		}
		r := ferry(t, name, "--help")
		if r.code != 0 || r.err != "" || !strings.Contains(r.out, "Usage:\n  ferry "+name) || name != "help" && name != "completion" && !strings.Contains(r.out, "Examples:\n  ferry "+name) {
			t.Errorf("ferry %s --help: code %d\n%s%s", name, r.code, r.out, r.err)
		}
	}
	ferry(t, "help", "exit-codes").wants(t, 0, `(?s).*125   Ferry could not.*`, "")
	ferry(t, "help", "environment").wants(t, 0, `(?s).*FERRY_CONFIG.*`, "")
}

func TestWrongUsage(t *testing.T) {
	notRunning(t)
	for _, tt := range []struct {
		args string
		err  string
	}{
		{"nothing", "error: unknown command \"nothing\"\nhint: `ferry --help` lists the commands\n"},
		{"imagse", "error: unknown command \"imagse\"\nhint: did you mean `ferry image`\\? `ferry --help` lists the commands\n"},
		{"strat", "did you mean `ferry start`"},
		{"--nothing", "error: unknown flag: --nothing\nhint: `ferry --help` lists the flags\n"},
		{"ps --nothing", "hint: `ferry ps --help` lists the flags\n"},
		{"ps extra", "error: ferry ps: unexpected argument \"extra\"\nhint: usage: ferry ps \\[flags\\]\n"},
		{"run", "error: ferry run: IMAGE missing\nhint: usage: ferry run \\[flags\\] IMAGE"},
		{"exec web", "ferry exec: CONTAINER or COMMAND missing"},
		{"logs", "CONTAINER, POD or KIND/NAME missing"},
		{"logs a b", "unexpected argument \"b\""},
		{"tag a", "IMAGE or NAME missing"},
		{"rm", "CONTAINER missing"},
		{"rmi", "IMAGE missing"},
		{"inspect", "CONTAINER or IMAGE missing"},
		{"stop -t soon web", "invalid argument \"soon\" for \"-t, --time\" flag: not a number of seconds"},
		{"stop -t -2 web", "not a number of seconds"},
		{"run --memory lots app", "error: --memory lots: .*\nhint: `ferry run --help` shows how to write it\n"},
		{"run --pull sometimes app", "error: --pull sometimes is not known\nhint: use missing, always or never"},
		{"run --env-file /nothing app", "--env-file /nothing: .*no such file"},
		{"exec -e =x web true", "--env =x: the name is empty"},
		{"save app", "Ferry is not running"}, // the archive goes to standard output
	} {
		code := 2
		if strings.HasPrefix(tt.args, "save") {
			code = 6
		}
		ferry(t, strings.Fields(tt.args)...).wants(t, code, "", tt.err)
	}
	// Docker's codes where the program in the container could have been meant.
	ferry(t, "run", "-it", "app", "sh").wants(t, 125, "", "error: -it needs a terminal, and standard input is none\nhint: leave out -t")
	ferry(t, "load", "-i", "/nothing").wants(t, 5, "", "load: open /nothing: no such file")
}

// TestNotRunning: every command that needs the daemon says how to start it.
func TestNotRunning(t *testing.T) {
	dir := notRunning(t)
	for args, code := range map[string]int{
		"ps": 6, "images": 6, "start a": 6, "stop a": 6, "restart a": 6, "kill a": 6, "rm a b": 6, "inspect a": 6, "logs a": 6, "tag a b": 6, "rmi a b": 6, "pull a": 6,
		"push a": 6, "load": 6, "save a": 6, "run a": 125, "run -d a": 125, "exec a b": 125,
	} {
		ferry(t, strings.Fields(args)...).wants(t, code, "", "^error: Ferry is not running\nhint: start it with `ferry up`\n$")
	}
	ferry(t, "version").wants(t, 0, `ferry +dev \(go.*\)\nferryd +not running\n`, "")
	ferry(t, "status").wants(t, 6, `(?s)ferry +not ready: Ferry is not running; start it with .ferry up.\nnode .*`, "")
	// A socket that nobody serves is no daemon either.
	write(t, filepath.Join(dir, "docker.sock"), "")
	ferry(t, "ps").wants(t, 6, "", "Ferry is not running")
	if os.Geteuid() == 0 {
		return // may use every socket
	}
	if err := os.Chmod(filepath.Join(dir, "docker.sock"), 0); err != nil {
		t.Fatal(err)
	}
	ferry(t, "ps").wants(t, 4, "", "error: no permission to use Ferry's socket .*\nhint: run the command as root")
}

// TestErrorsAsData: with -o json and yaml a program reads errors where it reads results.
func TestErrorsAsData(t *testing.T) {
	notRunning(t)
	type failure struct {
		Error struct{ Code, Message, Hint string }
	}
	for _, tt := range []struct {
		args string
		want failure
		code int
	}{
		{"ps -o json", failure{struct{ Code, Message, Hint string }{"unavailable", "Ferry is not running", "start it with `ferry up`"}}, 6},
		{"images -o json extra", failure{struct{ Code, Message, Hint string }{"invalid", "ferry images: unexpected argument \"extra\"", "usage: ferry images [flags]"}}, 2},
		{"inspect -o json a", failure{struct{ Code, Message, Hint string }{"unavailable", "Ferry is not running", "start it with `ferry up`"}}, 6},
		{"ps -o yaml", failure{struct{ Code, Message, Hint string }{"unavailable", "Ferry is not running", "start it with `ferry up`"}}, 6},
	} {
		r := ferry(t, strings.Fields(tt.args)...)
		var got failure
		err := json.Unmarshal([]byte(r.out), &got)
		if strings.HasSuffix(tt.args, "yaml") {
			err = yaml.UnmarshalStrict([]byte(r.out), &got)
		}
		if r.code != tt.code || err != nil || got != tt.want || r.err != "" {
			t.Errorf("%s: %d, %v, %q, %q", tt.args, r.code, err, r.out, r.err)
		}
	}
	// The --output of others is a file, whatever its name.
	ferry(t, "save", "-o", "json", "app").wants(t, 6, "", "error: Ferry is not running")
}

func TestUnknownFormat(t *testing.T) {
	notRunning(t)
	ferry(t, "version", "-o", "xml").wants(t, 2, "", "error: output format \"xml\" is not known\nhint: use one of table, json, yaml")
	r := ferry(t, "version", "-o", "json")
	var v struct {
		Client struct{ Version, Go, Arch string }
		Server any
	}
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || r.code != 0 || v.Client.Version != "dev" || v.Server != nil {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestConfiguration: a broken file is named, with what is wrong in it.
func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	t.Setenv("FERRY_CONFIG", path)
	for text, says := range map[string]string{
		"runDir: [":             "configuration " + path,
		"nothing: 1":            `unknown field "nothing"`,
		"runDir: here":          `runDir: "here" must be an absolute path`,
		"api: {port: 0}":        "api.port: 0 is not a port",
		"logLevel: loud":        `logLevel: "loud" is none of`,
		"network: {podCIDR: x}": `network.podCIDR: "x"`,
	} {
		write(t, path, text)
		for args, code := range map[string]int{"ps": 2, "status": 2, "doctor": 2, "version": 2, "down": 2, "up": 2, "run a": 125} {
			ferry(t, strings.Fields(args)...).wants(t, code, "", `(?s)error: .*`+regexp.QuoteMeta(says)+`.*\nhint: correct the file`)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	ferry(t, "ps").wants(t, 2, "", "(?s)error: read configuration: .*no such file.*hint: set FERRY_CONFIG to a readable file")
	ferry(t, "help").wants(t, 0, "(?s).*", "") // needs none
}
