// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

func (f *fixture) nodeDir(n *lab.Node) string { return filepath.Join(f.Dir(), n.Label) }

// cniDir is the node's /etc/cni/net.d, empty until wirePods.
func (f *fixture) cniDir(n *lab.Node) string { return filepath.Join(f.nodeDir(n), "cni") }

// startNodes starts containerd and kubelet in all nodes, and waits until kubelets have
// said so. There is no CNI yet.
func (f *fixture) startNodes(ctx context.Context) {
	f.t.Helper()
	images := []string{fairleadArchive(f.t), podArchive(f.t),
		archive(f.t, webImage, filepath.Join(tools(), "agnhost")), archive(f.t, dnsImage, filepath.Join(tools(), "coredns"))}
	for _, n := range f.lab.Nodes {
		f.startNode(ctx, n, images)
	}
}

func (f *fixture) startNode(ctx context.Context, n *lab.Node, images []string) {
	f.t.Helper()
	dir := f.nodeDir(n)
	for _, d := range []string{f.cniDir(n), filepath.Join(dir, "pods")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"containerd.toml": containerdConfig, "kubelet.yaml": kubeletConfig} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
	admin, err := os.ReadFile(f.Kubeconfig())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "kubeconfig"), admin, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	script, err := filepath.Abs("node.sh")
	if err != nil {
		f.t.Fatal(err)
	}
	_, err = f.Launch(ctx, cluster.Program{
		Argv: append([]string{script, dir, filepath.Join(tools(), "kubelet")}, images...),
		Prefix: []string{
			"nsenter", "--net=" + n.Path(), "--", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
			"env", "NODE_NAME=" + n.Label, "NODE_IP=" + n.Addr(model.IPv4).String(),
		},
		Dir: n.Label,
		Ready: func(ctx context.Context) error {
			_, err := f.Clientset().CoreV1().Nodes().Get(ctx, n.Label, metav1.GetOptions{})
			return err
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// wirePods brings CNI's configuration to all nodes, and waits until they are ready. The
// first node has the portmap plugin, and makes pods' host ports by it; on the others
// they are Fairlead's.
func (f *fixture) wirePods(ctx context.Context) {
	f.t.Helper()
	for i, n := range f.lab.Nodes {
		file := filepath.Join(f.cniDir(n), "10-pods.conflist")
		if err := os.WriteFile(file+".new", cniConfig(n, i == 0), 0o644); err != nil {
			f.t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, n := range f.lab.Nodes {
		await(ctx, f.t, "the Node "+n.Label, func() error {
			node, err := f.Clientset().CoreV1().Nodes().Get(ctx, n.Label, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, cond := range node.Status.Conditions {
				if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
					return nil
				}
			}
			return fmt.Errorf("it is not ready: %+v", node.Status.Conditions)
		})
	}
}

// cniConfig wires pods to the bridge that the lab has made for the node's pods.
func cniConfig(n *lab.Node, portmap bool) []byte {
	plugins := []any{map[string]any{
		"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": "/run/cni",
			"ranges": []any{[]any{map[string]any{"subnet": n.PodCIDR(model.IPv4).String()}}},
			"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
		},
	}}
	if portmap {
		plugins = append(plugins, map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}})
	}
	text, err := json.Marshal(map[string]any{"cniVersion": "0.4.0", "name": "pods", "plugins": plugins})
	if err != nil {
		panic(err) // it is text alone
	}
	return text
}

// The machine's root is an overlay already, and a layer of containerd's cannot be on
// one, so images are in memory. Nobody here may lower oom_score_adj.
const containerdConfig = `version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + podImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failCgroupV1: false
cgroupsPerQOS: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 10Mi, nodefs.available: 1%, imagefs.available: 1%}
syncFrequency: 5s
clusterDomain: cluster.local
clusterDNS: [` + dnsAddr + `]
`
