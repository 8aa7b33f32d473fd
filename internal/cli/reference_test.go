package cli

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ferryos/ferry/internal/config"
	"github.com/ferryos/ferry/internal/fault"
	"github.com/ferryos/ferry/internal/term"
)

var updateReference = flag.Bool("update", false, "rewrite docs/reference/cli.md")

// docsDir is docs/ as this package's tests see it.
const docsDir = "../../docs"

// TestReference fails when docs/reference/cli.md is not what the commands say.
func TestReference(t *testing.T) {
	path := filepath.Join(docsDir, "reference", "cli.md")
	want := reference(documentedRoot())
	if *updateReference {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(have), string(want)); d != "" {
		t.Errorf("%s differs from the commands (-file +commands); rewrite it with: go test ./internal/cli -run TestReference -update\n%s", path, d)
	}
}

// TestCommandsAreDocumented asks every command for a text, an example and a
// text for each flag.
func TestCommandsAreDocumented(t *testing.T) {
	eachCommand(documentedRoot(), func(c *cobra.Command) {
		name := c.CommandPath()
		if c.Short == "" {
			t.Errorf("%s has no short text", name)
		}
		if c.Runnable() && c.Example == "" {
			t.Errorf("%s has no example", name)
		}
		if !c.Runnable() && c.Long == "" && !c.HasAvailableSubCommands() {
			t.Errorf("help topic %s has no text", name)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s has no text", name, f.Name)
			}
			if takes, _ := pflag.UnquoteUsage(f); takes == "string" || takes == "int" || takes == "strings" || takes == "stringArray" {
				t.Errorf("%s: the text of --%s does not name its value in back quotes", name, f.Name)
			}
		})
	})
}

// TestDocumentedCommandsParse runs the command lines in the documents and the
// examples as far as their flags and arguments.
func TestDocumentedCommandsParse(t *testing.T) {
	check := func(where, line string) {
		args := strings.Fields(line)[1:]
		cmd, rest, err := documentedRoot().Find(args)
		if err != nil || !cmd.HasParent() && !slices.Contains(args, "--help") {
			t.Errorf("%s: %q: no such command (%v)", where, line, err)
			return
		}
		cmd.InitDefaultHelpFlag()
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%s: %q: %v", where, line, err)
			return
		}
		if help, _ := cmd.Flags().GetBool("help"); help || cmd.Args == nil {
			return
		}
		if err := cmd.Args(cmd, cmd.Flags().Args()); err != nil {
			t.Errorf("%s: %q: %v", where, line, err)
		}
	}
	eachCommand(documentedRoot(), func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			if strings.HasPrefix(line, "  ferry ") {
				check(c.CommandPath(), commandOf(line))
			}
		}
	})
	files, err := filepath.Glob(filepath.Join(docsDir, "how-to", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join(docsDir, "..", "README.md")) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if line, ok := strings.CutPrefix(line, "    "); ok && documentedCommand.MatchString(line) {
				check(file, commandOf(documentedCommand.ReplaceAllString(line, "ferry ")))
			}
		}
	}
}

// documentedCommand is the beginning of a command line of ours in a document.
var documentedCommand = regexp.MustCompile(`^(sudo |[A-Z_]+=\S+ )*ferry `)

// commandOf takes the comment, the redirection and what follows off a line.
func commandOf(line string) string {
	line, _, _ = strings.Cut(strings.TrimSpace(line), "  ") // a comment stands apart
	for _, end := range []string{" #", " <", " >", " |", " ;", " &"} {
		line, _, _ = strings.Cut(line, end)
	}
	return strings.TrimSpace(line)
}

// TestCompletionScripts runs the commands that the reference tells to install.
func TestCompletionScripts(t *testing.T) {
	t.Setenv("FERRY_CONFIG", "")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out, errs bytes.Buffer
		if code := Main(t.Context(), []string{"completion", shell}, strings.NewReader(""), &out, &errs, os.Getenv); code != 0 || !strings.Contains(out.String(), "__complete") {
			t.Errorf("ferry completion %s: exit code %d, %d bytes, %s", shell, code, out.Len(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := Main(t.Context(), []string{"__complete", "do"}, strings.NewReader(""), &out, &errs, os.Getenv); code != 0 || !strings.Contains(out.String(), "doctor\t") {
		t.Errorf("completing `ferry do`: exit code %d, %q, %s", code, out.String(), errs.String())
	}
}

// TestLinks follows the links between the documents.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	root := filepath.Dir(docsDir)
	files := []string{filepath.Join(root, "README.md"), filepath.Join(root, "CONTRIBUTING.md")}
	if err := filepath.WalkDir(docsDir, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".md") {
			files = append(files, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(data), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}

// documentedRoot is the command tree as `ferry --help` shows it.
func documentedRoot() *cobra.Command {
	none := func(string) string { return "" }
	e := &env{term: term.New(strings.NewReader(""), io.Discard, io.Discard, none), getenv: none,
		config: func() (config.Config, error) { return config.Default(), nil }}
	root := e.root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// eachCommand calls f for the root and what is below it, but for cobra's own
// help and completion.
func eachCommand(root *cobra.Command, f func(*cobra.Command)) {
	f(root)
	for _, c := range root.Commands() {
		if c.Name() != "help" && c.Name() != "completion" {
			eachCommand(c, f)
		}
	}
}

const referenceHead = `# The ferry command

Written from the commands by ` + "`go test ./internal/cli -run TestReference -update`" + `; a test fails when it differs. Do not edit it.

Results go to standard output, progress and errors to standard error. A command that reads takes ` + "`-o json`" + ` and ` + "`-o yaml`" + `; an error
then comes as an object too, on standard output: ` + "`{\"error\": {\"code\": …, \"message\": …, \"hint\": …}}`" + `. The codes:

`

const referenceTail = `## Shell completion

    ferry completion bash > /etc/bash_completion.d/ferry          # needs the package bash-completion
    ferry completion zsh > /usr/local/share/zsh/site-functions/_ferry
    ferry completion fish > /etc/fish/completions/ferry.fish

and start a new shell. Names of containers and images are completed too where the Docker socket can be used: as root.
` + "`source <(ferry completion bash)`" + ` is for the shell at hand alone.
`

// reference is docs/reference/cli.md.
func reference(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString(referenceHead)
	b.WriteString("| code | exit code | HTTP status of the Docker API |\n|---|---|---|\n")
	for k := fault.Internal; k <= fault.Unsupported; k++ {
		err := fault.New(k, "")
		fmt.Fprintf(&b, "| %s | %d | %d |\n", k, fault.ExitCode(err), fault.HTTPStatus(err))
	}
	b.WriteString("\n## Commands\n\n" + root.Long + "\n")
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "\n%s\n\n", strings.TrimSuffix(group.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID == group.ID {
				fmt.Fprintf(&b, "- [%s](#ferry-%s): %s\n", c.Name(), c.Name(), lowerFirst(c.Short))
			}
		}
	}
	for _, group := range root.Groups() {
		for _, c := range root.Commands() {
			if c.GroupID == group.ID {
				command(&b, c)
			}
		}
	}
	eachCommand(root, func(c *cobra.Command) {
		if !c.Runnable() {
			fmt.Fprintf(&b, "\n## %s\n\n`ferry help %s`\n\n%s", c.Short, c.Name(), indented(c.Long))
		}
	})
	b.WriteString("\n" + referenceTail)
	return b.Bytes()
}

// command writes one command's section.
func command(b *bytes.Buffer, c *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n%s.\n", c.CommandPath(), strings.TrimSuffix(c.Short, "."))
	if c.Long != "" {
		fmt.Fprintf(b, "%s\n", c.Long)
	}
	fmt.Fprintf(b, "\n%s", indented(c.UseLine()))
	if flags := c.LocalFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(b, "\nFlags:\n\n%s", indented(strings.TrimRight(flags, "\n")))
	}
	fmt.Fprintf(b, "\nFor example:\n\n%s", indented(regexp.MustCompile(`(?m)^  `).ReplaceAllString(c.Example, "")))
}

// indented is text as a code block.
func indented(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		b.WriteString(strings.TrimRight("    "+line, " ") + "\n")
	}
	return b.String()
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
