#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what the demo and the kernel tests need of a Debian or Ubuntu
# machine: the packages that are missing, and Go if there is none. Silent when
# nothing is missing. With the argument "uml", what the tests in a second kernel
# need, too; with "image", what makes the agent's image and runs it by itself; with
# "cluster", what a node of a cluster needs.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
PATH=$PATH:/usr/sbin:/sbin # not in the PATH of every user

say() { echo "fairlead: $*"; }
die() {
	echo "fairlead: $*" >&2
	exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# missing_packages prints the packages whose command is not there.
missing_packages() {
	set -- iptables-nft:iptables iptables-legacy:iptables ipset:ipset \
		conntrack:conntrack nft:nftables ip:iproute2 nsenter:util-linux "$@"
	for pair; do
		has "${pair%%:*}" || echo "${pair#*:}"
	done | sort -u | tr '\n' ' ' | sed 's/ $//'
}

# apt_install installs packages, after a look at the archive only if need be,
# and says something only when that fails.
apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	if apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1 ||
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1; then
		rm -f "$log"
		return 0
	fi
	cat "$log" >&2
	rm -f "$log"
	return 1
}

# install_uml installs the second kernel where there is a package of it; its
# absence is no failure, but tests that need it are then skipped.
install_uml() {
	# The guest loads its modules by modprobe, of kmod.
	for pair in ipvsadm:ipvsadm modprobe:kmod; do
		if ! has "${pair%%:*}" && is_root; then
			say "installing ${pair#*:}"
			apt_install "${pair#*:}" || die "could not install: apt-get install ${pair#*:} (output above)"
		fi
	done
	has linux.uml && return 0
	if ! has apt-cache || ! is_root; then
		say "package user-mode-linux is not installed: tests in a second kernel cannot run"
		return 0
	fi
	apt-cache show user-mode-linux >/dev/null 2>&1 || apt-get update -qq >/dev/null 2>&1 || true
	if ! apt-cache show user-mode-linux >/dev/null 2>&1; then
		say "there is no package user-mode-linux for this machine: tests in a second kernel cannot run"
		return 0
	fi
	say "installing user-mode-linux"
	apt_install user-mode-linux || die "could not install: apt-get install user-mode-linux (output above)"
}

is_root() { [ "$(id -u)" = 0 ]; }

install_packages() {
	packages=$(missing_packages "$@")
	[ -n "$packages" ] || return 0
	command="apt-get install $packages"
	has apt-get || die "please install: $packages (this is no Debian or Ubuntu, so the names may differ)"
	is_root || die "please run as root: $command"
	say "installing $packages"
	# shellcheck disable=SC2086 # several words are several packages
	apt_install $packages || die "could not install: $command (output above)"
}

# at_least VERSION WANTED compares dotted versions.
at_least() {
	[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# go_version prints the version of the Go that is installed, without fetching
# another one; nothing if there is none.
go_version() {
	has go || return 0
	(cd / && GOTOOLCHAIN=local go env GOVERSION) 2>/dev/null | sed 's/^go//;s/ .*//'
}

# go_suffices tells whether the installed Go can build this module, by itself or
# with the toolchain it fetches.
go_suffices() {
	version=$(go_version)
	[ -n "$version" ] || return 1
	at_least "$version" "$wanted" && return 0
	at_least "$version" 1.21 || return 1
	case $(cd / && go env GOTOOLCHAIN) in
	*auto* | *path*) return 0 ;;
	esac
	return 1
}

check_go() {
	wanted=$(sed -n 's/^go //p' "$root/go.mod")
	go_suffices && return 0
	version=$(go_version)
	if [ -n "$version" ] && at_least "$version" 1.21; then
		die "Go $wanted is needed, and $version may not fetch it: run 'go env -w GOTOOLCHAIN=auto'"
	fi
	candidate=$(apt-cache policy golang-go 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}//p')
	if [ -n "$candidate" ] && at_least "$candidate" 1.21; then
		is_root || die "Go $wanted is needed: please run as root: apt-get install golang-go"
		say "installing golang-go"
		apt_install golang-go || die "could not install: apt-get install golang-go (output above)"
		go_suffices && return 0
		go env -w GOTOOLCHAIN=auto # Debian's Go does not fetch toolchains unless told
		go_suffices && return 0
	fi
	die "Go $wanted or newer is needed${version:+, not $version}: see https://go.dev/doc/install"
}

case ${1:-} in
image) install_packages mmdebstrap:mmdebstrap umoci:umoci jq:jq runc:runc ;;
cluster) install_packages containerd:containerd runc:runc umoci:umoci /usr/lib/cni/bridge:containernetworking-plugins ;;
*) install_packages ;;
esac
[ "${1:-}" != uml ] || install_uml
check_go
