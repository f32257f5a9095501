#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes the agent's image as an OCI archive, without a registry and without a daemon:
#
#   build.sh AGENT REFERENCE ARCHIVE
#
# AGENT is the static program, REFERENCE the image's name and tag, ARCHIVE the file to
# write. The image has two layers: of Debian what the commands of iptables, both variants,
# and modprobe need, and the agent. The same Debian packages and agent give the same
# archive.
#
# In the environment, all optional: SUITE and MIRROR of Debian, ARCH as Debian has it,
# and SOURCE_DATE_EPOCH.
set -eu

[ $# = 3 ] || {
	echo "usage: $0 AGENT REFERENCE ARCHIVE" >&2
	exit 2
}
agent=$1 reference=$2 archive=$3
suite=${SUITE:-bookworm}
arch=${ARCH:-$(dpkg --print-architecture)}
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)

tag=${reference##*:}
case $reference in
*/*:*) ;;
*:*) reference=docker.io/library/$reference ;; # as container runtimes complete it
*)
	echo "$0: $reference has no tag; write it like fairlead:v1" >&2
	exit 2
	;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout=$work/layout root=$work/agent

# slim takes away, in the current directory, what neither a command of iptables nor
# modprobe reads. Licences stay.
slim() {
	find usr/share/doc -type f ! -name copyright -delete
	rm -rf etc var usr/bin lib/systemd
	for what in bash-completion bug doc-base initramfs-tools iptables lintian man; do
		rm -rf usr/share/"$what"
	done
	for what in audit engines-3 gconv ossl-modules; do
		rm -rf usr/lib/*/"$what"
	done
	rm -f usr/lib/*/libssl.so.*
	for lib in BrokenLocale anl c_malloc_debug memusage mvec nsl nss_ pcprofile resolv rt thread_db util; do
		rm -f lib/*/lib"$lib"*.so*
	done
	find . -depth -type d -empty -delete
}

# link makes the plain names, as the scripts of packages, which would, do not run. The
# agent takes the commands of a variant by their own names, and asks a plain one only
# where neither variant is in use on the host.
link() {
	for command in iptables ip6tables; do
		for suffix in "" -save -restore; do
			ln -s "$command-nft$suffix" "usr/sbin/$command$suffix"
		done
	done
}

# pack CONTENTS... makes a tar archive of what is in the current directory on standard
# output, the same for the same files.
pack() {
	tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -c "$@"
}

# shellcheck disable=SC2086 # no mirror is no argument
mmdebstrap --quiet --variant=extract --architectures="$arch" --include=iptables,kmod "$suite" "$work/debian.tar" ${MIRROR:-}
mkdir "$work/base"
tar -C "$work/base" --exclude=./dev -xf "$work/debian.tar"
(cd "$work/base" && slim && link && pack -- *) >"$work/base.tar"

install -D -m 755 "$agent" "$root/usr/local/bin/fairlead"
(cd "$root" && pack usr) >"$work/agent.tar"

{
	umoci init --layout "$layout"
	umoci new --image "$layout:$tag"
	for layer in base agent; do
		umoci raw add-layer --image "$layout:$tag" --history.created "$created" --history.created_by "$layer" "$work/$layer.tar"
	done
	umoci config --image "$layout:$tag" --no-history --created "$created" --architecture "$arch" \
		--config.entrypoint /usr/local/bin/fairlead --config.env PATH=/usr/local/bin:/usr/sbin:/sbin:/bin \
		--config.label org.opencontainers.image.title=fairlead --config.label org.opencontainers.image.licenses=Apache-2.0
	umoci gc --layout "$layout"
} >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
# The full name, by which containerd imports it.
jq -c --arg name "$reference" '.manifests[].annotations["io.containerd.image.name"] = $name' \
	"$layout/index.json" >"$work/index.json"
mv "$work/index.json" "$layout/index.json"

mkdir -p "$(dirname "$archive")"
(cd "$layout" && pack -- *) >"$archive.new"
mv "$archive.new" "$archive"

size() { du -b --apparent-size "$1" | cut -f1 | numfmt --to=iec; }
echo "$archive: $reference, $(size "$archive") compressed; unpacked Debian's part $(size "$work/base.tar"), the agent $(size "$agent")"
