// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

const (
	target = 8080 // the pod's port
	port   = 80   // the Service's
)

// TestKernelImage runs the image's containers as the DaemonSet of the base says, with the
// configuration that kubeadm writes: the step before, and the agent, which uses the
// variant of iptables that the host uses, and has its capabilities and nothing more.
func TestKernelImage(t *testing.T) {
	for _, v := range lab.Variants() {
		t.Run(string(v), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			if err := lab.VariantSupported(ctx, v); err != nil {
				t.Skip(err)
			}
			testImage(ctx, t, v)
		})
	}
}

func testImage(ctx context.Context, t *testing.T, v lab.Variant) {
	l, err := lab.New(ctx, lab.Config{Nodes: 1, Pods: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	node := l.Nodes[0]
	if _, err := node.Pods[0].EchoPort(ctx, target); err != nil {
		t.Fatal(err)
	}
	hint(ctx, t, node, v)
	c := startCluster(ctx, t, l)
	vip := writeObjects(ctx, t, c, node)

	d := theDaemonSet(t, base(t))
	p := &pod{t: t, image: unpack(t), spec: &d.Spec.Template.Spec, node: node, volumes: volumes(t, c.Kubeconfig())}
	for _, step := range p.spec.InitContainers {
		if out, err := p.command(ctx, step).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", step.Name, err, out)
		}
	}
	if got := sysctl(t, node, "net/ipv4/conf/all/route_localnet"); got != "1" {
		t.Errorf("after the step before: route_localnet is %s, want 1, for node ports on 127.0.0.1", got)
	}

	agent := p.command(ctx, p.spec.Containers[0])
	var log strings.Builder
	agent.Stdout, agent.Stderr = &log, &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- agent.Wait() }()
	awaitReady(ctx, t, node, done, &log)

	if r := (lab.Probe{From: node.Pods[1], Network: "tcp", To: vip}).Once(ctx); r.Server != node.Pods[0].Label {
		t.Errorf("the Service: %s, want an answer of %s", r, node.Pods[0].Label)
	}
	for _, f := range model.Families() {
		rules, err := node.Save(ctx, v, f)
		if err != nil || !strings.Contains(rules, "-A KUBE-POSTROUTING") {
			t.Errorf("%s: the host's variant of iptables has no rules of the agent (%v):\n%s", f, err, rules)
		}
	}
	if _, err := os.Stat(filepath.Join(p.volumes["run"], "state.json")); err != nil {
		t.Error(err)
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	for _, bad := range []string{"permission denied", "read-only file system", "operation not permitted"} {
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, bad) && !strings.Contains(line, "nf_conntrack_max") && !strings.Contains(line, "hashsize") && !strings.Contains(line, "oom") {
				t.Errorf("the agent lacks a permission: %s", line)
			}
		}
	}
	if t.Failed() {
		t.Log(log.String())
	}
}

// hint makes what the kubelet leaves in the variant of iptables that the host uses.
func hint(ctx context.Context, t *testing.T, n *lab.Node, v lab.Variant) {
	t.Helper()
	for _, f := range model.Families() {
		if err := n.Iptables(ctx, v, f, "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"); err != nil {
			t.Fatal(err)
		}
	}
}

func startCluster(ctx context.Context, t *testing.T, l *lab.Lab) *cluster.Cluster {
	t.Helper()
	c, err := cluster.Start(ctx, cluster.Config{
		Address: l.Client.Addr(model.IPv4),
		Prefix:  []string{"nsenter", "--net=" + l.Client.Path()},
		Dial:    l.Client.Dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// writeObjects writes the Node, and a Service whose endpoint is its first pod, and
// returns the Service's address and port.
func writeObjects(ctx context.Context, t *testing.T, c *cluster.Cluster, node *lab.Node) netip.AddrPort {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Label}}
	n, err := c.Clientset().CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
	if err == nil {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: node.Addr(model.IPv4).String()}}
		_, err = c.Clientset().CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: port}}}}
	if svc, err = c.Clientset().CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	number, protocol, name := int32(target), corev1.ProtocolTCP, ""
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &protocol}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{node.Pods[0].Addr(model.IPv4).String()}, NodeName: &node.Label}},
	}
	if _, err := c.Clientset().DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(svc.Spec.ClusterIP), port)
}

// volumes makes what the DaemonSet mounts: kubeadm's configuration, and directories and
// files of the host.
func volumes(t *testing.T, kubeconfig string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	out := map[string]string{}
	for _, name := range []string{"kube-proxy", "ip-masq-agent", "cni", "run", "lib-modules"} {
		out[name] = filepath.Join(dir, name)
		if err := os.Mkdir(out[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A lock of its own: that of the legacy commands is one for all namespaces.
	out["xtables-lock"] = filepath.Join(dir, "xtables.lock")
	credentials, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		filepath.Join(out["kube-proxy"], "config.conf"):     kubeadmConfig,
		filepath.Join(out["kube-proxy"], "kubeconfig.conf"): string(credentials),
		out["xtables-lock"]: "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// kubeadmConfig is what kubeadm writes for --pod-network-cidr=10.244.0.0/16.
const kubeadmConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
kind: KubeProxyConfiguration
metricsBindAddress: ""
mode: ""
nodePortAddresses: null
oomScoreAdj: null
`

// awaitReady waits until the probe of the DaemonSet says that the agent is ready.
func awaitReady(ctx context.Context, t *testing.T, node *lab.Node, done chan error, log fmt.Stringer) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return node.Dial(ctx, network, addr)
	}}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+node.Addr(model.IPv4).String()+":10256/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case err := <-done:
			t.Fatalf("the agent ended before it was ready: %v\n%s", err, log)
		case <-ctx.Done():
			t.Fatalf("the agent is not ready: %v\n%s", err, log)
		}
	}
}

// sysctl reads a setting of the node's network namespace.
func sysctl(t *testing.T, n *lab.Node, name string) string {
	t.Helper()
	var text []byte
	err := n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/root/proc/sys/" + name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}
