// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead/e2e/build"
	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

var transition = flag.Duration("transition", time.Minute, "how long clients ask during each transition, at least")

// transitions is a cluster whose Service clients ask, while what makes the Service changes.
type transitions struct {
	*fixture
	clients load
	// ends ends kube-proxies.
	ends []func() error
	// program is the agent's, as an operator has it on the nodes.
	program string
}

// step does something while clients ask, and checks that they notice nothing.
func (x *transitions) step(ctx context.Context, what string, do ...func(context.Context)) {
	x.t.Helper()
	since := time.Now()
	for _, d := range do {
		d(ctx)
	}
	x.clients.check(ctx, x.t, what, since, *transition)
}

// TestKernelTransitions: clients at the cluster IP, the node port and host ports notice
// nothing of changes from kube-proxy, in either mode, to Fairlead, of a kill of agents, of
// their replacement, of an update of the DaemonSet, of changes of mode, and of a change
// back to kube-proxy; but they do of a flushed chain.
func TestKernelTransitions(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute+8**transition)
	defer cancel()
	program, err := build.Agent(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	x := &transitions{fixture: newFixture(ctx, t), program: program}
	x.startAll(ctx)
	svc := x.web(ctx)
	x.kubeProxy("nftables")(ctx)
	x.awaitAll(ctx, svc)

	x.clients.from = x.lab.Client
	asking, end := context.WithCancel(ctx)
	defer x.clients.done.Wait()
	defer end()
	x.clients.startAll(asking, addresses(x.lab.Nodes[0], svc))
	x.step(ctx, "from kube-proxy in nftables mode to Fairlead", x.endKubeProxy, x.fairlead("iptables"), x.without("kube-proxy"))
	stop := x.clients.start(asking, net.JoinHostPort(nodeAddr(x.lab.Nodes[1]), strconv.Itoa(hostPort)), perSecond/3)
	x.step(ctx, "a kill of all agents", x.kill)
	x.step(ctx, "a deletion of all agents' pods", x.replace)
	x.step(ctx, "an update of the DaemonSet", x.update)
	x.step(ctx, "from iptables to nftables mode", x.switchTo("nftables"))
	x.step(ctx, "from nftables to iptables mode", x.switchTo("iptables"), x.without("fairlead"))
	stop() // kube-proxy has no host ports
	x.step(ctx, "from Fairlead to kube-proxy in iptables mode", x.removeAgents, x.kubeProxy("iptables"), x.cleanUp("iptables"))
	x.step(ctx, "from kube-proxy in iptables mode to Fairlead", x.endKubeProxy, x.fairlead("iptables"))

	x.removeAgents(ctx) // which would repair it
	if err := x.lab.Nodes[0].Iptables(ctx, lab.NFT, model.IPv4, "-t", "nat", "-F", "KUBE-SERVICES"); err != nil {
		t.Fatal(err)
	}
	var made tally
	await(ctx, t, "failures after the chain KUBE-SERVICES was flushed", func() error {
		more := x.clients.take()
		made.asked, made.reset, made.failed = made.asked+more.asked, made.reset+more.reset, append(made.failed, more.failed...)
		made.slowest = max(made.slowest, more.slowest)
		if len(made.failed) < 100 {
			return errors.New(made.String())
		}
		return nil
	})
	t.Logf("control, the chain KUBE-SERVICES flushed: %s", made)
}

func nodeAddr(n *lab.Node) string { return n.Addr(model.IPv4).String() }

// addresses are what clients ask: a Service's cluster IP, its node port, and the pods' host
// port.
func addresses(n *lab.Node, svc *corev1.Service) []string {
	return []string{
		net.JoinHostPort(svc.Spec.ClusterIP, "80"),
		net.JoinHostPort(nodeAddr(n), strconv.Itoa(int(svc.Spec.Ports[0].NodePort))),
		net.JoinHostPort(nodeAddr(n), strconv.Itoa(hostPort)),
	}
}

// kubeProxy starts kube-proxy on all nodes, beside the kubelet.
func (x *transitions) kubeProxy(mode string) func(context.Context) {
	return func(ctx context.Context) {
		x.t.Helper()
		for _, n := range x.lab.Nodes {
			end, err := x.Launch(ctx, cluster.Program{
				Argv: []string{"kube-proxy", "--kubeconfig=" + x.Kubeconfig(), "--hostname-override=" + n.Label, "--cluster-cidr=10.244.0.0/16",
					"--proxy-mode=" + mode, "--conntrack-max-per-core=0", "--conntrack-min=0"},
				Prefix: []string{"nsenter", "--net=" + n.Path(), "--"},
				Dir:    n.Label,
				Ready:  func(ctx context.Context) error { return healthy(ctx, n) },
			})
			if err != nil {
				x.t.Fatal(err)
			}
			x.ends = append(x.ends, end)
		}
	}
}

// cleanUp removes from all nodes what Fairlead has left beside kube-proxy in a mode.
func (x *transitions) cleanUp(mode string) func(context.Context) {
	return func(ctx context.Context) {
		x.t.Helper()
		for _, n := range x.lab.Nodes {
			if out, err := n.Run(ctx, x.program, "cleanup", "--keep="+mode, "--force"); err != nil {
				x.t.Fatalf("cleanup on %s: %v\n%s", n.Label, err, out)
			}
		}
	}
}

func (x *transitions) endKubeProxy(context.Context) {
	x.t.Helper()
	for _, end := range x.ends {
		if err := end(); err != nil {
			x.t.Fatal(err)
		}
	}
	x.ends = nil
}

// fairlead deploys the DaemonSet.
func (x *transitions) fairlead(mode string) func(context.Context) {
	return func(ctx context.Context) { x.deploy(ctx, mode) }
}

// without waits until no node has a table of nf_tables of a name.
func (x *transitions) without(table string) func(context.Context) {
	return func(ctx context.Context) {
		x.t.Helper()
		for _, n := range x.lab.Nodes {
			await(ctx, x.t, "the end of the tables "+table, func() error {
				tables, err := n.Run(ctx, "nft", "list", "tables")
				if err == nil && strings.Contains(tables, table) {
					err = errors.New(tables)
				}
				return err
			})
		}
	}
}

// switchTo changes the mode in the ConfigMap, and waits until all agents have it.
func (x *transitions) switchTo(mode string) func(context.Context) {
	return func(ctx context.Context) {
		x.t.Helper()
		x.setMode(ctx, mode)
		for _, n := range x.lab.Nodes {
			await(ctx, x.t, mode+" mode on "+n.Label, func() error {
				got, err := get(ctx, n, "http://127.0.0.1:10249/proxyMode")
				if err == nil && got != mode {
					err = fmt.Errorf("it is in %s mode", got)
				}
				if err == nil {
					_, err = get(ctx, n, "http://127.0.0.1:10256/readyz")
				}
				return err
			})
		}
	}
}

// kill kills all agents' processes, and waits until kubelets have started others in the
// same pods.
func (x *transitions) kill(ctx context.Context) {
	x.t.Helper()
	for _, n := range x.lab.Nodes {
		for _, pid := range agentsOf(x.t, n) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				x.t.Fatal(err)
			}
		}
	}
	await(ctx, x.t, "restarts", func() error {
		pods, err := x.agentPods(ctx)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if s := p.Status.ContainerStatuses; len(s) != 1 || s[0].RestartCount == 0 || !s[0].Ready {
				return fmt.Errorf("%s: %+v", p.Name, s)
			}
		}
		return nil
	})
}

// agentsOf returns the agents' processes on a node.
func agentsOf(t *testing.T, n *lab.Node) (pids []int) {
	t.Helper()
	own, err := os.Stat(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, proc := range procs {
		exe, err := os.Readlink(filepath.Join(proc, "exe"))
		if err != nil || filepath.Base(exe) != "fairlead" {
			continue // or gone
		}
		if ns, err := os.Stat(filepath.Join(proc, "ns", "net")); err != nil || !os.SameFile(ns, own) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) != 1 {
		t.Fatalf("%s has the agents %v, want one", n.Label, pids)
	}
	return pids
}

// replace deletes all agents' pods and waits until there are others.
func (x *transitions) replace(ctx context.Context) {
	x.t.Helper()
	old, err := x.agentPods(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, p := range old {
		if err := x.Clientset().CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			x.t.Fatal(err)
		}
	}
	x.awaitOthers(ctx, old)
}

// update changes the DaemonSet, and waits until all of its pods are of the new version.
func (x *transitions) update(ctx context.Context) {
	x.t.Helper()
	old, err := x.agentPods(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"updated":%q}}}}}`, time.Now())
	if _, err := x.Clientset().AppsV1().DaemonSets("kube-system").Patch(ctx, "fairlead", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		x.t.Fatal(err)
	}
	x.awaitOthers(ctx, old)
}

// awaitOthers waits until the DaemonSet is ready without any of its former pods.
func (x *transitions) awaitOthers(ctx context.Context, old []corev1.Pod) {
	x.t.Helper()
	await(ctx, x.t, "other agents", func() error {
		now, err := x.agentPods(ctx)
		if err != nil {
			return err
		}
		for _, p := range now {
			for _, o := range old {
				if p.UID == o.UID {
					return fmt.Errorf("%s is still there", p.Name)
				}
			}
		}
		return x.agentsReady(ctx)
	})
}
