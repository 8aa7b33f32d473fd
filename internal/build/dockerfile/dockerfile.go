// Package dockerfile applies single instructions of a Dockerfile to the
// configuration of an image, as `docker commit --change` and `docker import`
// ask for. BuildKit's parser reads them. It builds nothing: that is package build.
package dockerfile

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/fault"
)

// Config is the configuration of an image.
type Config = dockerspec.DockerOCIImageConfig

// Apply applies instructions, one or more a line, to a configuration. Those that
// would run or copy something are refused.
func Apply(config *Config, lines []string) error {
	cmdSet := false
	for _, line := range lines {
		if strings.TrimSpace(line) == "" {
			continue
		}
		parsed, err := parser.Parse(strings.NewReader(line))
		if err != nil {
			return fault.New(fault.Invalid, "change %q: %w", line, err)
		}
		for _, node := range parsed.AST.Children {
			command, err := instructions.ParseInstruction(node)
			if err != nil {
				return fault.New(fault.Invalid, "change %q: %w", line, err)
			}
			if err := apply(config, command, &cmdSet); err != nil {
				return fault.New(fault.Invalid, "change %q: %w", line, err)
			}
		}
	}
	return nil
}

func apply(c *Config, command any, cmdSet *bool) error {
	if e, ok := command.(instructions.SupportsSingleWordExpansion); ok {
		words, env := shell.NewLex('\\'), shell.EnvsFromSlice(c.Env)
		err := e.Expand(func(word string) (string, error) {
			out, _, err := words.ProcessWord(word, env)
			return out, err
		})
		if err != nil {
			return err
		}
	}
	switch i := command.(type) {
	case *instructions.CmdCommand:
		c.Cmd, *cmdSet = commandLine(c, i.ShellDependantCmdLine), true
	case *instructions.EntrypointCommand:
		c.Entrypoint = commandLine(c, i.ShellDependantCmdLine)
		if !*cmdSet { // what it was was an argument of another program
			c.Cmd = nil
		}
	case *instructions.EnvCommand:
		for _, kv := range i.Env {
			c.Env = slices.DeleteFunc(slices.Clone(c.Env), func(have string) bool { return strings.HasPrefix(have, kv.Key+"=") })
			c.Env = append(c.Env, kv.Key+"="+kv.Value)
		}
	case *instructions.LabelCommand:
		for _, kv := range i.Labels {
			put(&c.Labels, kv.Key, kv.Value)
		}
	case *instructions.ExposeCommand:
		return expose(c, i.Ports)
	case *instructions.VolumeCommand:
		for _, v := range i.Volumes {
			put(&c.Volumes, v, struct{}{})
		}
	case *instructions.WorkdirCommand:
		if c.WorkingDir = path.Join(c.WorkingDir, i.Path); path.IsAbs(i.Path) {
			c.WorkingDir = path.Clean(i.Path)
		}
		c.WorkingDir = path.Join("/", c.WorkingDir)
	case *instructions.UserCommand:
		c.User = i.User
	case *instructions.StopSignalCommand:
		c.StopSignal = i.Signal
	case *instructions.HealthCheckCommand:
		c.Healthcheck = i.Health
	case *instructions.OnbuildCommand:
		c.OnBuild = append(slices.Clone(c.OnBuild), i.Expression)
	case *instructions.ShellCommand:
		c.Shell = i.Shell
	default:
		name := "it"
		if named, ok := command.(instructions.Command); ok {
			name = strings.ToUpper(named.Name())
		}
		return fault.New(fault.Invalid, "%s is not a valid change", name).
			Hint("use CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR")
	}
	return nil
}

func put[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}

func commandLine(c *Config, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	sh := c.Shell
	if len(sh) == 0 {
		sh = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(sh), strings.Join(line.CmdLine, " "))
}

// expose adds ports: "80", "80/udp", "8000-8010/tcp".
func expose(c *Config, specs []string) error {
	for _, spec := range specs {
		ports, protocol, _ := strings.Cut(spec, "/")
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return err
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return err
		}
		switch protocol = strings.ToLower(protocol); protocol {
		case "":
			protocol = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return fault.New(fault.Invalid, "the protocol of port %s is none of tcp, udp and sctp", spec)
		}
		if from > to {
			return fault.New(fault.Invalid, "the range of ports %s ends before it begins", spec)
		}
		for port := from; port <= to; port++ {
			put(&c.ExposedPorts, strconv.FormatUint(port, 10)+"/"+protocol, struct{}{})
		}
	}
	return nil
}
