package dockerapi_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ferryos/ferry/internal/engine/enginetest"
)

// TestDocker drives the real docker command against the socket.
func TestDocker(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs the docker command, version 28 or so")
	}
	a := newAPI(t)
	image := enginetest.Busybox
	dir := t.TempDir()
	env := append(os.Environ(), "DOCKER_HOST=unix://"+a.socket, "DOCKER_CONFIG="+dir, "HOME="+dir)
	tar := filepath.Join(dir, "saved.tar")
	for _, tt := range []struct {
		args  string
		stdin string
		code  int
		out   string // a pattern that all of standard output matches
		err   string // a pattern found in standard error
	}{
		{"version --format {{.Server.APIVersion}}", "", 0, "1.51\n", ""},
		{"info --format {{.OSType}}/{{.Images}}/{{.ContainersRunning}}", "", 0, "linux/1/0\n", ""},
		{"run --rm " + image + " echo hi", "", 0, "hi\n", ""},
		{"run --rm -i " + image + " cat", strings.Repeat("x", 1<<20), 0, "x{1000}.*", ""},
		{"run --rm " + image + " sh -c 'echo out; echo err >&2; exit 7'", "", 7, "out\n", "^err\n$"},
		{"run --rm " + image + " no-such-program", "", 127, "", "executable file not found"},
		{"run --rm " + image + " /etc", "", 126, "", "is a directory"},
		{"run --rm --pull never nothing true", "", 125, "", "No such image: nothing:latest"},
		{"run --rm --restart always " + image + " true", "", 125, "", "onflicting options"},
		{"run --gpus all " + image + " true", "", 125, "", `unresolvable CDI devices nvidia.com/gpu=all`},
		{"run -d --name web --label app=x -e A=b -p 127.0.0.1::80 " + image + " sh -c 'trap \"exit 0\" TERM; echo started; sleep 1000 & wait'", "", 0, "[0-9a-f]{64}\n", ""},
		{"run -d --name web " + image, "", 125, "", `"/web" is already in use`},
		{"ps --format '{{.Names}} {{.Image}} {{.State}}' --filter name=^web$", "", 0, "web " + image + " running\n", ""},
		{"ps -aq --no-trunc --filter label=app=y", "", 0, "", ""},
		{"port web 80", "", 0, `127\.0\.0\.1:\d+\n`, ""},
		{"exec web sh -c 'echo $A; exit 3'", "", 3, "b\n", ""},
		{"exec -i web cat", "typed", 0, "typed", ""},
		{"exec -d web true", "", 0, "", ""},
		{"exec web no-such-program", "", 127, "", "exec failed: .*executable file not found"},
		{"top web", "", 0, "(?s)UID.*PID.*sleep 1000\n", ""},
		{"inspect -f '{{.State.Status}} {{.Config.Image}} {{index .Config.Labels \"app\"}}' web", "", 0, "running " + image + " x\n", ""},
		{"inspect nothing", "", 1, `\[\]\n`, "o such object"},
		{"logs web", "", 0, "started\n", ""},
		{"rm web", "", 1, "", "container is running"},
		{"pause web", "", 0, "web\n", ""},
		{"unpause web", "", 0, "web\n", ""},
		{"restart -t 0 web", "", 0, "web\n", ""},
		{"stop -t 0 web", "", 0, "web\n", ""},
		{"wait web", "", 0, "137\n", ""},
		{"logs --tail 1 web", "", 0, "started\n", ""},
		{"rm web", "", 0, "web\n", ""},
		{"run --name once " + image + " echo again", "", 0, "again\n", ""},
		{"start -a once", "", 0, "again\n", ""},
		{"images --format '{{.Repository}}:{{.Tag}}'", "", 0, image + "\n", ""},
		{"rmi " + image, "", 1, "", "uses the image"},
		{"rm -f once", "", 0, "once\n", ""},
		{"tag " + image + " other:v1", "", 0, "", ""},
		{"image inspect -f '{{len .RepoTags}} {{index .Config.Cmd 0}}' other:v1", "", 0, "2 sh\n", ""},
		{"save -o " + tar + " other:v1", "", 0, "", ""},
		{"rmi other:v1", "", 0, "Untagged: other:v1\n", ""},
		{"load -i " + tar, "", 0, "Loaded image: other:v1\n", ""},
		{"history other:v1", "", 0, "IMAGE.*\n", ""},
		{"container prune -f", "", 0, "(?s).*Total reclaimed space.*", ""},
		{"events --since 1h --until $(date +%s.%N) --filter container=once --format '{{.Action}}'", "", 0,
			"create\nattach\nstart\ndie\nattach\nstart\ndie\ndestroy\n", ""},
		{"events --since 1h --until $(date +%s.%N) --filter type=image --format '{{.Action}}'", "", 0, "tag\nsave\nuntag\nload\n", ""},
		{"volume create data", "", 0, "data\n", ""},
		{"volume ls -q", "", 0, "data\n", ""},
		{"volume rm data", "", 0, "data\n", ""},
		{"network ls --format '{{.Name}}'", "", 0, "bridge\nhost\nnone\n", ""},
	} {
		t.Run(tt.args, func(t *testing.T) {
			// The shell takes the quotes of the table apart.
			cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec "$0" `+tt.args, docker)
			cmd.Env = env
			var out, errs bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tt.stdin), &out, &errs
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if cmd.ProcessState.ExitCode() != tt.code || !regexp.MustCompile(`^(?:`+tt.out+`)$`).Match(out.Bytes()) ||
				!regexp.MustCompile(tt.err).Match(errs.Bytes()) {
				t.Errorf("code %d\n%.500s\n%.500s", cmd.ProcessState.ExitCode(), out.String(), errs.String())
			}
		})
	}
}

// TestDockerDetails is what scripts around the real docker command rely upon.
func TestDockerDetails(t *testing.T) {
	a := newAPI(t)
	docker := dockerCommand(t, a)
	docker("run -d --name web IMAGE"+wait, ".*", 0)
	docker("run --rm IMAGE ''", ".*executable file not found.*", 127)
	docker("run --rm --cpuset-cpus 0,4095 IMAGE true", ".*Requested CPUs are not available - requested 0,4095, available: 0.*", 125)
	docker("create --cpuset-cpus 1-0 IMAGE true", ".*Invalid value 1-0 for cpuset cpus.*", 1)
	docker("create --cpuset-mems 4095 IMAGE true", ".*Requested memory nodes are not available.*", 1)
	docker("update --cpuset-cpus 4095 web", ".*Requested CPUs are not available.*", 1)
	docker("exec -u nobody2 web true", ".*unable to find user nobody2: no matching entries in passwd file.*", 126)

	docker("run -dt --name term -u 1000 IMAGE sleep 1001", ".*", 0)
	docker("top term -o pid,args", `PID +COMMAND\n\d+ +sleep 1001\n`, 0)
	docker("top term -o ppid=PID,pid", `.*specifying "ppid=PID,pid" is not allowed.*`, 1)
	docker("top term m -o pid,args", `PID +COMMAND\n\d+ +sleep 1001\n- +-\n`, 0)

	// A name is free once what had it was ended, or has ended.
	docker("run -d --rm --name brief IMAGE sleep 1000", ".*", 0)
	docker("kill brief", "brief\n", 0)
	docker("run -d --rm --name brief IMAGE sleep 1000", "[0-9a-f]*\n", 0)
	docker("stop -t 0 brief", "brief\n", 0)
	docker("run --rm --name brief IMAGE true", "", 0)
	docker("create --name brief IMAGE", "[0-9a-f]*\n", 0)

	docker("tag IMAGE app", "", 0)
	docker("events --since 1h --until $(date +%s.%N) --filter event=tag --format '{{.Actor.Attributes.name}}'", "app:latest\n", 0)
}
