# Ferry. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := build

GO      ?= go
BIN     := bin
RUN     ?= .
PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)

# The version that the API server, kubectl and the node report.
KUBE        := $(shell sed -n 's/^\tk8s.io\/kubernetes v//p' go.mod)
KUBE_MINOR  := $(word 2,$(subst ., ,$(KUBE)))
KUBE_FLAGS  := $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,\
	-X $(p).gitVersion=v$(KUBE) -X $(p).gitMajor=1 -X $(p).gitMinor=$(KUBE_MINOR) -X $(p).gitTreeState=clean)
FERRY_FLAGS := -s -w -X github.com/ferryos/ferry/internal/app.Version=$(VERSION) -X github.com/ferryos/ferry/internal/cli.Version=$(VERSION)

RUNNER_TAGS  := netgo osusergo
RUNNER_FLAGS := -s -w -linkmode external -extldflags "-static"

# Linters, at versions that go.mod need not know.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
ERRCHECK    := github.com/kisielk/errcheck@v1.30.0
SCRIPTS     := .ci/run scripts/deps scripts/clients $(wildcard scripts/*.sh examples/*/*.sh test/*/*.sh) test/vm/guest/boot test/vm/guest/base/usr/local/sbin/ferry-vm

# Packages whose tests also run under the race detector: light ones with goroutines.
RACE := ./internal/lifecycle ./internal/term ./internal/engine/crilog ./internal/engine/runner ./internal/dockerapi/eventlog ./internal/dockerapi/supervise

.PHONY: help build deps demo kubectl clients test lint unit race e2e chaos conformance-cri test-vm bench clean install

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

build: deps ## build everything into bin/
	@mkdir -p $(BIN)/images
	CGO_ENABLED=1 $(GO) build -tags '$(RUNNER_TAGS)' -ldflags '$(RUNNER_FLAGS)' -o $(BIN)/ferry-runner ./cmd/ferry-runner
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/ferry-init ./cmd/ferry-init
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/mlp ./runtimes/mlp
	$(GO) run ./runtimes/mlp/image -binary $(BIN)/mlp -o $(BIN)/images/mlp.tar
	$(GO) build -ldflags '$(FERRY_FLAGS) $(KUBE_FLAGS)' -o $(BIN)/ferryd ./cmd/ferryd
	$(GO) build -ldflags '$(FERRY_FLAGS)' -o $(BIN)/ferry ./cmd/ferry
	$(GO) build -ldflags '$(FERRY_FLAGS)' -o $(BIN)/ferry-build ./cmd/ferry-build

deps: ## install the system packages that are missing (apt, as root)
	@scripts/deps

demo: build kubectl ## from a Dockerfile to a served model: examples/digits/demo.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/digits/demo.sh

kubectl:
	$(GO) build -ldflags '-s -w $(KUBE_FLAGS)' -o $(BIN)/kubectl k8s.io/kubernetes/cmd/kubectl

test: deps lint unit race e2e ## lint and all tests; those that run containers need root

lint: deps ## formatting, go.mod, go vet, staticcheck, unhandled errors, shellcheck
	@files=$$(git ls-files '*.go' | xargs gofmt -l); test -z "$$files" || { echo "not formatted: $$files"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) -checks all ./...
	$(GO) run $(ERRCHECK) -ignoretests -exclude scripts/errcheck.exclude ./...
	shellcheck -x $(SCRIPTS)

unit: ## all tests
	$(GO) test -p 2 -timeout 20m ./cmd/... ./internal/... ./runtimes/...

race: ## the tests of light packages under the race detector
	$(GO) test -race -timeout 10m $(RACE)

clients: ## build Docker's own clients buildx and compose, and install docker-py: e2e drives Ferry with them
	@scripts/clients

e2e: build kubectl ## the real programs: scripts of test/e2e, and test/chaos in its short form; RUN=Scripts/crash for one
	clients=$$(scripts/clients) && FERRY_CLIENTS="$$clients" $(GO) test ./test/e2e ./test/chaos -p 1 -count=1 -timeout 40m -v -run '$(RUN)'

chaos: build ## test/chaos in its long form: 200 kills, 500 containers at once, 5000 in a row; 45 minutes
	$(GO) test ./test/chaos -count=1 -timeout 3h -v -run '$(RUN)' -long
	$(GO) test ./internal/engine -count=1 -timeout 1h -v -run 'MountRace' -long

conformance-cri: deps ## run critest, the suite for container runtimes; FOCUS is a regular expression of specs, UPDATE=1 writes docs/conformance.md
	FOCUS='$(FOCUS)' UPDATE='$(UPDATE)' scripts/conformance-cri.sh

test-vm: build kubectl ## the tests on machines with cgroup v2, under QEMU: VM="-boots systemd -run engine", see test/vm
	@scripts/deps vm
	@$(GO) build -o $(BIN)/test-vm ./test/vm
	@clients=$$(scripts/clients) && critest=$$(scripts/conformance-cri.sh prepare) && \
		exec $(BIN)/test-vm -bin $(BIN) -clients "$$clients" -critest "$$critest" $(VM)

bench: build kubectl ## measure, beside Debian's docker, and write docs/benchmarks.md; COLD=-cold builds from nothing too
	$(GO) run ./test/bench -bin $(BIN) $(COLD)

install: build ## install below PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/ferry/images
	install -m 755 $(BIN)/ferry $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(BIN)/images/mlp.tar $(DESTDIR)$(PREFIX)/libexec/ferry/images/
	install -m 755 $(BIN)/ferryd $(BIN)/ferry-build $(BIN)/ferry-runner $(BIN)/ferry-init $(DESTDIR)$(PREFIX)/libexec/ferry/
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|^ExecStart=/usr/local/|ExecStart=$(PREFIX)/|' packaging/systemd/ferryd.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/ferryd.service

clean: ## remove what was built
	rm -rf $(BIN)
