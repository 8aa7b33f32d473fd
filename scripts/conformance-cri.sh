#!/bin/bash
# Runs critest, the Kubernetes project's suite for container runtimes, which it builds from its Go module. Its images are made of
# Debian's packages, on Debian 12, as root: `make conformance-cri`. FOCUS is a regular expression of specs; UPDATE=1 writes
# docs/conformance.md.
#
#   scripts/conformance-cri.sh            all of that
#   scripts/conformance-cri.sh prepare    get the suite and the packages alone, which takes network, and print where they are
set -euo pipefail
cd "$(dirname "$0")/.."

version=v1.36.0
cache=${FERRY_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/ferry/tools}/critest-$version
critest=$cache/critest root=$cache/root
mkdir -p "$cache"

if [[ ! -x $critest ]]; then
	echo "building critest $version" >&2
	dir=$(cd / && go mod download -json "sigs.k8s.io/cri-tools@$version" | jq -r .Dir)
	(cd "$dir" && GOFLAGS=-buildvcs=false go test -c -trimpath -ldflags '-s -w' -o "$critest" ./cmd/critest)
fi

# busybox, not busybox-static: the shell of that one runs ls without looking for it, and a spec masks /bin/ls.
packages=(busybox libc6 nginx nginx-common libcrypt1 libpcre2-8-0 libssl3 zlib1g)
if [[ ! -e $root/complete ]]; then
	echo "fetching ${packages[*]}" >&2
	rm -rf "$root" && mkdir -p "$root/debs"
	apt-cache show nginx >/dev/null 2>&1 || apt-get update -qq
	(cd "$root/debs" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}")
	for deb in "$root"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
	rm -rf "$root/debs"
	touch "$root/complete"
fi

if [[ ${1:-} == prepare ]]; then
	echo "$cache"
	exit
fi
CRITEST=$critest CRITEST_ROOT=$root CRITEST_FOCUS=${FOCUS:-} CRITEST_UPDATE=${UPDATE:-} go test ./internal/engine/cri -run TestCritest -v -count=1 -timeout 20m
