#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A node: containerd and kubelet, in a network namespace that is there, and in mount and
# PID namespaces that unshare(1) has made. Everything that they write outside of DIR is in
# memory and goes with them, and so do all containers.
#
#   node.sh DIR KUBELET IMAGE...
#
# DIR has containerd.toml, kubelet.yaml, kubeconfig, and the directories cni, which becomes
# /etc/cni/net.d, and pods, for logs; images are archives.
set -eu
dir=$1 kubelet=$2
shift 2

mount --make-rprivate /
mount -t tmpfs tmpfs /run
for d in /etc /usr/lib; do
	mkdir -p "/run/over$d/upper" "/run/over$d/work"
	mount -t overlay overlay -o "lowerdir=$d,upperdir=/run/over$d/upper,workdir=/run/over$d/work" "$d"
done
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/log
mkdir -p /etc/cni/net.d /run/kubelet /usr/lib/modules /var/log/pods
mount -t tmpfs tmpfs /run/kubelet
mount --make-shared /run/kubelet
mount --bind "$dir/cni" /etc/cni/net.d # what comes there later, too
mount --bind "$dir/pods" /var/log/pods # which outlast the node, so that a test can show them

containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
until ctr --address /run/containerd/containerd.sock version >/dev/null 2>&1; do
	kill -0 $! || exit 1
	sleep 0.1
done
for image; do
	ctr --address /run/containerd/containerd.sock --namespace k8s.io images import "$image"
done
exec "$kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubeconfig" --root-dir=/run/kubelet "--hostname-override=$NODE_NAME" "--node-ip=$NODE_IP"
