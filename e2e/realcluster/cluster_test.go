// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

// Package realcluster tests the DaemonSet of deploy/ in a cluster: API server, controller
// manager, scheduler, and two nodes with containerd and kubelet in namespaces. "make
// e2e-cluster" runs it.
package realcluster

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestKernelCluster: the DaemonSet as it is in deploy/base becomes ready on both nodes
// before there is a CNI or DNS. Then a Service whose pods are on both answers from the
// nodes, host ports lead to pods, and pods find Services by name. The agents are refused
// nothing.
func TestKernelCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	f := newFixture(ctx, t)
	f.startControllers(ctx)
	f.startNodes(ctx)
	f.deploy(ctx, "")
	f.wirePods(ctx)
	f.serves(ctx)

	requests, err := f.audit.Requests()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, r := range requests {
		if r.User != agentUser {
			continue
		}
		if seen++; r.Refused() {
			t.Errorf("the agents were refused: %s", r)
		}
	}
	if seen == 0 {
		t.Errorf("of %d requests none is of %s", len(requests), agentUser)
	}
}

// agentUser is whom the agents are to the API server.
const agentUser = "system:serviceaccount:kube-system:fairlead"

// serves checks that Services and host ports work on all nodes, and the cluster's DNS,
// which it starts, in all pods.
func (f *fixture) serves(ctx context.Context) {
	f.t.Helper()
	svc := f.web(ctx)
	f.awaitAll(ctx, svc)
	for _, n := range f.lab.Nodes {
		for _, m := range f.lab.Nodes {
			if n != m {
				at := fmt.Sprintf("http://%s:%d/", nodeAddr(m), hostPort)
				await(ctx, f.t, "an answer at "+at, func() error { _, err := get(ctx, n, at); return err })
			}
		}
	}
	f.startDNS(ctx)
	f.resolves(ctx, svc)
}

// resolves checks that every pod of web finds Services by name, over UDP and TCP.
func (f *fixture) resolves(ctx context.Context, web *corev1.Service) {
	f.t.Helper()
	for _, pod := range f.webPods(ctx) {
		for name, want := range map[string]string{
			"web":                    web.Spec.ClusterIP,
			"kubernetes.default.svc": "10.96.0.1",
			"kube-dns.kube-system.svc.cluster.local.": dnsAddr,
		} {
			for _, network := range []string{"udp", "tcp"} {
				url := fmt.Sprintf("http://%s/lookup?name=%s&network=%s", net.JoinHostPort(pod, resolverPort), name, network)
				await(ctx, f.t, fmt.Sprintf("the address of %s, over %s", name, network), func() error {
					got, err := get(ctx, f.lab.Nodes[0], url)
					if err == nil && got != want {
						err = fmt.Errorf("pod %s got %q, want %q", pod, got, want)
					}
					return err
				})
			}
		}
	}
}
