package arch

import "strings"

// modulePath is the path of this module. Tables name its packages without it
// and without internal/: engine/store is internal/engine/store.
const modulePath = "github.com/ferryos/ferry"

// layer is a package and, separated by blanks, the packages of this module that
// it imports.
type layer struct{ pkg, imports string }

// layers is the whole module from the top down: a row imports rows below it.
// Packages below test and those whose name ends in "test" are for tests alone,
// any test may import them; the other imports of a test point down too.
var layers = []layer{
	// The real programs, run as a person would; nothing of the module is linked in.
	{"test/e2e", ""},
	{"test/chaos", ""},
	{"test/bench", "test/machine"},
	{"test/machine", ""},
	{"test/vm", ""},

	// Programs.
	{"cmd/ferry", "cli"},
	{"cmd/ferry-build", "build/buildclient cli"},
	{"cmd/ferryd", "app"},
	{"cmd/ferry-runner", "engine/runner/proc"},
	{"cmd/ferry-init", "initproc"},

	// The command line is a client like any other; the composition root knows every part.
	{"cli", "build/contextkey cgroups cli/dockercontext config fault instance kube/kubeconfig term"},
	{"app", "build cgroups config dockerapi dockerconfig engine engine/cri engine/network engine/store fault instance kube lifecycle logfile registry"},

	// What others speak to us: the Docker API, BuildKit, Kubernetes, CRI, an OCI registry.
	{"dockerapi", "build build/dockerfile dockerapi/eventlog dockerapi/netconf dockerapi/supervise dockerapi/volume engine engine/crilog engine/files engine/network engine/store fault lifecycle"},
	{"dockerapi/netconf", "engine/network fault"},
	{"dockerapi/eventlog", ""},
	{"dockerapi/supervise", "atomicfile fault"},
	{"dockerapi/volume", "atomicfile fault"},
	{"build", "build/contextkey engine engine/store fault"},
	{"cli/dockercontext", "atomicfile fault"},
	{"build/buildclient", "build/contextkey fault"},
	{"build/dockerfile", "fault"},
	{"build/contextkey", ""},
	{"kube", "fault"},
	{"kube/kubeconfig", "fault"},
	{"registry", "atomicfile fault lifecycle"},
	{"engine/cri", "cgroups engine engine/network engine/store fault"},

	// Serving: above the line, with Kubernetes' API alone.
	{"serving/autoscale", ""},

	// The container engine.
	{"engine/enginetest", "engine engine/network engine/runner engine/runner/runnertest engine/store"},
	{"engine", "atomicfile cgroups engine/cdi engine/files engine/network engine/runner engine/store fault"},
	{"engine/store", "atomicfile engine/files fault"},
	{"engine/files", "fault"},
	{"engine/network", "atomicfile engine/network/names fault"},
	{"engine/network/names", ""},
	{"engine/runner/proc", "atomicfile engine/crilog engine/runner engine/runner/cgroup engine/runner/launch engine/runner/oom engine/runner/seccomp fault logfile"},
	{"engine/runner/launch", "engine/runner engine/runner/cgroup engine/runner/pidfd engine/runner/seccomp fault"},
	{"engine/runner/seccomp", "fault"},
	{"engine/runner/cgroup", "engine/runner engine/runner/oom fault"},
	{"engine/runner", "atomicfile cgroups engine/runner/pidfd fault"},
	{"engine/runner/pidfd", ""},
	{"engine/runner/runnertest", ""},
	{"engine/runner/oom", ""},
	{"engine/crilog", ""},
	{"engine/cdi", "fault"},
	{"initproc", ""},

	// Small, without a domain.
	{"term", "fault"},
	{"config", "fault"},
	{"dockerconfig", ""},
	{"lifecycle", ""},
	{"cgroups", ""},
	{"instance", ""},
	{"atomicfile", ""},
	{"logfile", ""},
	{"fault", ""},
	{"arch", ""},

	// The built-in model runtime: a payload in an image, which the platform does not know.
	{"runtimes/mlp", "runtimes/mlp/command"},
	{"runtimes/mlp/image", "runtimes/mlp/atomicfile runtimes/mlp/hint"},
	{"runtimes/mlp/command", "runtimes/mlp/atomicfile runtimes/mlp/dataset runtimes/mlp/glyph runtimes/mlp/hint " +
		"runtimes/mlp/model runtimes/mlp/nn runtimes/mlp/push runtimes/mlp/serve runtimes/mlp/train"},
	{"runtimes/mlp/train", "runtimes/mlp/dataset runtimes/mlp/hint runtimes/mlp/model runtimes/mlp/nn"},
	{"runtimes/mlp/serve", "runtimes/mlp/nn runtimes/mlp/oip"},
	{"runtimes/mlp/push", "runtimes/mlp/hint"},
	{"runtimes/mlp/glyph", "runtimes/mlp/dataset"},
	{"runtimes/mlp/model", "runtimes/mlp/atomicfile runtimes/mlp/hint runtimes/mlp/nn runtimes/mlp/pth runtimes/mlp/safetensors"},
	{"runtimes/mlp/dataset", "runtimes/mlp/atomicfile runtimes/mlp/hint"},
	{"runtimes/mlp/pth", "runtimes/mlp/safetensors"},
	{"runtimes/mlp/safetensors", ""},
	{"runtimes/mlp/nn", ""},
	{"runtimes/mlp/oip", ""},
	{"runtimes/mlp/atomicfile", "runtimes/mlp/hint"},
	{"runtimes/mlp/hint", ""},
}

// owner names the packages that may import a dependency. The longest path wins.
type owner struct{ dependencies, importers string }

// owners are the heavy dependencies. More than one importer is an exception:
// buildclient is BuildKit's client half, for ferry-build, and dockerfile its
// parser; build plugs BuildKit into the stores; cri implements Kubernetes' interface of a runtime.
var owners = []owner{
	{"github.com/containerd/containerd", "engine/store build"},
	{"go.etcd.io/bbolt", "engine/store build"},
	{"github.com/opencontainers/cgroups", "engine/runner/cgroup"},
	{"github.com/seccomp/libseccomp-golang", "engine/runner/seccomp"},
	{"github.com/vishvananda/netlink github.com/mdlayher/netlink github.com/google/nftables", "engine/network"},
	{"github.com/miekg/dns", "engine/network/names"},
	{"github.com/moby/buildkit", "build build/buildclient build/dockerfile"},
	{"tags.cncf.io/container-device-interface", "engine/cdi"},
	{"k8s.io go.etcd.io github.com/coredns go.uber.org/zap", "kube"},
	{"k8s.io/api k8s.io/apimachinery k8s.io/client-go", "kube test/bench"}, // as a client
	{"k8s.io/cri-api", "kube engine/cri test/bench"},
	{"k8s.io/cri-client k8s.io/cri-streaming k8s.io/utils", "engine/cri"},
	{"github.com/distribution/distribution", "registry"},
	{"github.com/moby/moby/api", "dockerapi dockerapi/eventlog dockerapi/netconf dockerapi/supervise cli build test/chaos"},
	{"github.com/moby/moby/client", "cli dockerapi test/chaos"}, // dockerapi in its tests
	{"github.com/moby/go-archive", "cli"},
	{"github.com/spf13/cobra", "cli runtimes/mlp/command"},
	{"golang.org/x/term", "term"},
	{"github.com/sirupsen/logrus", "app build"}, // to quieten what uses it, in tests of build
	{"google.golang.org/grpc", "build build/buildclient engine/cri kube runtimes/mlp/oip runtimes/mlp/serve test/bench"},
	{"github.com/prometheus", "runtimes/mlp/serve"},
	{"gonum.org", "runtimes/mlp/nn"},
	{"golang.org/x/image", "runtimes/mlp/glyph"},
}

// program is a program and what must not be linked into it, by any path.
type program struct {
	pkg       string
	tags      string
	forbidden string
	why       string
}

const kubernetes = "k8s.io/api k8s.io/apimachinery k8s.io/client-go k8s.io/kubernetes go.etcd.io github.com/coredns "

var programs = []program{
	{"cmd/ferry", "", kubernetes + "github.com/opencontainers/cgroups " +
		"github.com/vishvananda/netlink github.com/google/nftables github.com/distribution/distribution " +
		"github.com/containerd/containerd github.com/moby/buildkit google.golang.org/grpc google.golang.org/protobuf " +
		modulePath + "/internal/engine " + modulePath + "/internal/app",
		"the command line is a client and starts within milliseconds"},
	{"cmd/ferry-runner", "netgo osusergo", kubernetes + "github.com/containerd/containerd github.com/moby/buildkit " +
		"google.golang.org/grpc google.golang.org/protobuf github.com/spf13/cobra " +
		modulePath + "/internal/engine/store " + modulePath + "/internal/engine/network",
		"there is a runner for every pod, and every process of a container begins as a copy of it"},
	{"cmd/ferry-init", "", kubernetes + modulePath + "/internal/engine github.com/opencontainers github.com/moby github.com/spf13",
		"it is a process of every container that asks for it"},
	{"cmd/ferryd", "", modulePath + "/internal/engine/runner/proc " +
		modulePath + "/internal/cli " + modulePath + "/runtimes",
		"containers outlive the daemon, in a small program of their own; a runtime is a payload"},
	{"runtimes/mlp", "", kubernetes + "github.com/containerd/containerd github.com/moby " +
		modulePath + "/internal",
		"a runtime is a payload in an image, which runs on any platform"},
}

// Budgets. Generated files do not count.
const (
	maxFuncLines    = 100
	maxFileLines    = 600
	maxPackageFiles = 25 // without tests
	maxImports      = 20 // of this module, by one package
	maxMethods      = 7  // of an interface; an embedded one counts as one
	maxMainLines    = 40 // of a program below cmd, in all
)

// importBudgets are the packages whose nature it is to know many others.
var importBudgets = map[string]int{"app": 60, "cli": 40}

// exception is a place where a rule does not hold, and why. Places are written
// as the checks report them, without the line.
type exception struct{ place, why string }

// overBudget are the places that may be larger than the budgets.
var overBudget = []exception{}

// ends are the functions that may end the process.
var ends = []exception{
	{"cli.proxySignals: os.Exit", "the third Ctrl-C, while the command waits for a daemon that does not answer"},
}

// words splits a field of a table.
func words(s string) []string { return strings.Fields(s) }
