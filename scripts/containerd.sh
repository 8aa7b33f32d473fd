#!/bin/bash
# Builds containerd, its shim, runc and the CNI plugins that a bridge needs from their Go modules, for test/bench to measure beside. It
# prints the directory of the programs.
set -euo pipefail

cache=${FERRY_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/ferry/tools}
mkdir -p "$cache"

build() { # MODULE@VERSION PACKAGE [FLAG…]
	local name=${2##*/} dir
	[[ $name == . ]] && name=runc
	[[ -x $cache/$name ]] && return
	echo "building $name of $1" >&2
	dir=$(cd / && go mod download -json "$1" | jq -r .Dir)
	(cd "$dir" && GOFLAGS=-buildvcs=false go build -trimpath -ldflags '-s -w' -o "$cache/$name" "${@:3}" "$2")
}

build github.com/containerd/containerd/v2@v2.4.2 ./cmd/containerd
build github.com/containerd/containerd/v2@v2.4.2 ./cmd/containerd-shim-runc-v2
build github.com/opencontainers/runc@v1.5.2 . -tags=seccomp
for plugin in main/bridge main/loopback ipam/host-local; do
	build github.com/containernetworking/plugins@v1.9.1 ./plugins/$plugin
done
echo "$cache"
