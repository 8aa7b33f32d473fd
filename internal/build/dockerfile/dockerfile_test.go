package dockerfile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ferryos/ferry/internal/build/dockerfile"
	"github.com/ferryos/ferry/internal/fault"
)

func TestApply(t *testing.T) {
	config := dockerfile.Config{ImageConfig: ocispec.ImageConfig{Env: []string{"PATH=/bin", "A=old"}, Cmd: []string{"sh"}, WorkingDir: "/srv"}}
	err := dockerfile.Apply(&config, []string{
		"ENV A=new B=$PATH", "LABEL a=b \"c d\"='e f'", "EXPOSE 80 90-91/UDP", "VOLUME /data", "WORKDIR sub", "USER 5:6", "STOPSIGNAL SIGINT", "",
		`ENTRYPOINT ["/x", "y"]`, "HEALTHCHECK --retries=3 --interval=5s CMD true", "ONBUILD RUN make", `SHELL ["/bin/busybox", "sh", "-c"]`, "CMD echo $HOME\nWORKDIR deep",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := dockerfile.Config{
		ImageConfig: ocispec.ImageConfig{Env: []string{"PATH=/bin", "A=new", "B=/bin"}, Entrypoint: []string{"/x", "y"}, Cmd: []string{"/bin/busybox", "sh", "-c", "echo $HOME"},
			WorkingDir: "/srv/sub/deep", User: "5:6", StopSignal: "SIGINT", Labels: map[string]string{"a": "b", "c d": "e f"}, Volumes: map[string]struct{}{"/data": {}},
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "90/udp": {}, "91/udp": {}}},
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{Shell: []string{"/bin/busybox", "sh", "-c"}, OnBuild: []string{"RUN make"},
			Healthcheck: &dockerspec.HealthcheckConfig{Test: []string{"CMD-SHELL", "true"}, Interval: 5 * time.Second, Retries: 3}},
	}
	if diff := cmp.Diff(want, config); diff != "" {
		t.Error(diff)
	}
}

func TestApplyEntrypoint(t *testing.T) {
	for changes, cmd := range map[string]string{`ENTRYPOINT ["x"]`: "", "CMD [\"y\"]\nENTRYPOINT [\"x\"]": "y", `USER x`: "old"} {
		config := dockerfile.Config{ImageConfig: ocispec.ImageConfig{Cmd: []string{"old"}}}
		if err := dockerfile.Apply(&config, []string{changes}); err != nil || strings.Join(config.Cmd, " ") != cmd {
			t.Errorf("%s: %v, %v", changes, config.Cmd, err)
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	for _, change := range []string{"RUN true", "COPY a b", "FROM x", "ARG x", "nonsense", "EXPOSE x", "EXPOSE 9-8", "EXPOSE 1/x", "ENV", "EXPOSE 99999"} {
		if err := dockerfile.Apply(&dockerfile.Config{}, []string{change}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), change) {
			t.Errorf("%s: %v", change, err)
		}
	}
}
