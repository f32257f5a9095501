// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelServiceCIDRs: no Service has an external address that is inside a
// ServiceCIDR of a real API server, which makes one of its own. One that comes or
// goes has its effect on the Services that are there, and permissions without
// ServiceCIDRs, as an older agent's, take nothing else away.
func TestKernelServiceCIDRs(t *testing.T) {
	ctx, l, c, kubeconfig := clusterLab(t)
	node := l.Nodes[0]
	api := c.Clientset()
	createPermissions(ctx, t, api, filepath.Join("..", "deploy", "base", "rbac.yaml"))
	setServiceCIDRRule(ctx, t, api, false)
	objs := web(l, node.Pods[0])
	svc := objs[0].(*corev1.Service)
	svc.Spec.ExternalIPs = []string{"10.96.77.77", "203.0.113.5"} // one inside the API server's own range
	create(ctx, t, api, append(objs, nodeObject(node))...)
	events := watchEvents(ctx, t, api, "FairleadRefused")

	a := startAgent(ctx, t, node, oneVariant(), "--kubeconfig", impersonating(t, kubeconfig, "system:serviceaccount:kube-system:fairlead"))
	a.waitSynced(ctx, 0)
	at := func(addr string) lab.Probe {
		return lab.Probe{From: node.Pods[1], Network: "tcp", To: netip.AddrPortFrom(netip.MustParseAddr(addr), httpPort)}
	}
	reached := func(r lab.Result) bool { return r.Server == node.Pods[0].Label }
	notReached := func(r lab.Result) bool { return r.Outcome != lab.Answered }
	wait := func(when, addr string, condition func(lab.Result) bool) {
		t.Helper()
		if _, _, err := at(addr).WaitFor(ctx, condition); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	wait("without permission", "10.96.77.77", reached)
	if n := strings.Count(strings.Join(a.log(), "\n"), "Cannot read"); n != 1 {
		t.Errorf("the log has %d lines of what cannot be read, want 1", n)
	}

	setServiceCIDRRule(ctx, t, api, true)
	a.waitLog(ctx, 0, 1, "shows the resource now", "servicecidrs")
	wait("with permission", "10.96.77.77", notReached)
	awaitRefusal(ctx, t, events, "web", "10.96.77.77 is inside a ServiceCIDR")
	wait("with permission", "203.0.113.5", reached)

	extra := &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "extra"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"203.0.113.0/24"}},
	}
	if _, err := api.NetworkingV1().ServiceCIDRs().Create(ctx, extra, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait("a ServiceCIDR comes", "203.0.113.5", notReached)
	awaitRefusal(ctx, t, events, "web", "203.0.113.5 is inside a ServiceCIDR")
	if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); !reached(r) {
		t.Errorf("the cluster IP of a Service without its external addresses: %s", r)
	}
	if err := api.NetworkingV1().ServiceCIDRs().Delete(ctx, "extra", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wait("the ServiceCIDR goes", "203.0.113.5", reached)
}

// setServiceCIDRRule gives the agent the permission to read ServiceCIDRs, or
// takes it.
func setServiceCIDRRule(ctx context.Context, t *testing.T, c kubernetes.Interface, allowed bool) {
	t.Helper()
	role, err := c.RbacV1().ClusterRoles().Get(ctx, "fairlead", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range role.Rules {
		if r := &role.Rules[i]; r.APIGroups[0] == "networking.k8s.io" {
			r.Verbs = map[bool][]string{true: {"list", "watch"}, false: {"get"}}[allowed]
		}
	}
	if _, err := c.RbacV1().ClusterRoles().Update(ctx, role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// awaitRefusal waits for an Event about a Service that has the words.
func awaitRefusal(ctx context.Context, t *testing.T, events watch.Interface, service, words string) {
	t.Helper()
	for {
		if e := nextEvent(ctx, t, events); e.Regarding.Name == service && strings.Contains(e.Note, words) {
			return
		}
	}
}
