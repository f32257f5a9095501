// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// pauseImage is the image that holds pods' namespaces.
const pauseImage = "fairlead.test/pause:v1"

// startNode starts containerd and kubelet in a node of a lab, and waits until the Node is
// ready.
func startNode(ctx context.Context, t *testing.T, c *cluster.Cluster, n *lab.Node, kubelet string, images ...string) {
	t.Helper()
	dir := filepath.Join(c.Dir(), n.Label)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"containerd.toml": containerdConfig, "kubelet.yaml": kubeletConfig, "cni.conflist": cniConfig(t, n),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := os.ReadFile(c.Kubeconfig())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "kubeconfig"), admin, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("node.sh")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Launch(ctx, cluster.Program{
		Argv: append([]string{script, dir, kubelet}, images...),
		Prefix: []string{
			"nsenter", "--net=" + n.Path(), "--", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
			"env", "NODE_NAME=" + n.Label, "NODE_IP=" + n.Addr(model.IPv4).String(),
		},
		Dir: n.Label,
		Ready: func(ctx context.Context) error {
			node, err := c.Clientset().CoreV1().Nodes().Get(ctx, n.Label, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, cond := range node.Status.Conditions {
				if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
					return nil
				}
			}
			return fmt.Errorf("the Node is not ready: %+v", node.Status.Conditions)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// cniConfig wires pods to the bridge that the lab has made for the node's pods.
func cniConfig(t *testing.T, n *lab.Node) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"cniVersion": "0.4.0", "name": "pods",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
			"ipam": map[string]any{
				"type": "host-local", "dataDir": "/run/cni",
				"ranges": []any{[]any{map[string]any{"subnet": n.PodCIDR(model.IPv4).String()}}},
				"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
			},
		}, map[string]any{
			"type": "portmap", "capabilities": map[string]any{"portMappings": true},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The machine's root is an overlay already, and a layer of containerd's cannot be on
// one, so images are in memory. Nobody here may lower oom_score_adj.
const containerdConfig = `version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
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
`
