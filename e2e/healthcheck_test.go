// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// TestKernelHealthCheckPortTaken: a health check node port that somebody else
// has is an Event on its Service in a real API server, harms neither the Service
// nor others, and answers once it is free.
func TestKernelHealthCheckPortTaken(t *testing.T) {
	ctx, l, c, kubeconfig := clusterLab(t)
	node := l.Nodes[0]
	createPermissions(ctx, t, c.Clientset(), filepath.Join("..", "deploy", "base", "rbac.yaml"))
	objs := exposed(l, node.Pods[0])
	svc := objs[0].(*corev1.Service)
	svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, healthPort
	create(ctx, t, c.Clientset(), append(append(objs, healthChecked(l, "other", 20, healthPort+1)...), nodeObject(node))...)
	events := watchEvents(ctx, t, c.Clientset(), "FailedToStartServiceHealthcheck")
	taken, err := node.Echo(ctx, "squatter", netip.AddrPortFrom(node.Addr(model.IPv4), healthPort))
	if err != nil {
		t.Fatal(err)
	}

	a := startAgent(ctx, t, node, oneVariant(), "--kubeconfig", impersonating(t, kubeconfig, "system:serviceaccount:kube-system:fairlead"))
	a.waitSynced(ctx, 0)
	e := nextEvent(ctx, t, events)
	if e.Regarding.Kind != "Service" || e.Regarding.Name != "web" || e.Regarding.UID == "" || e.Type != corev1.EventTypeWarning ||
		!strings.Contains(e.Note, fmt.Sprint(healthPort)) || !strings.Contains(e.Note, "address already in use") {
		t.Errorf("got the Event %+v", e)
	}
	checks := []struct {
		service string
		family  model.Family
		port    uint16
	}{
		{"web", model.IPv6, healthPort}, // of which only the IPv4 port is taken
		{"other", model.IPv4, healthPort + 1},
		{"other", model.IPv6, healthPort + 1},
	}
	for _, check := range checks {
		a.waitHealthCheck(ctx, netip.AddrPortFrom(node.Addr(check.family), check.port), check.service)
	}
	forFlows(t, func(t *testing.T, f model.Family, network string) {
		nodePort := map[string]uint16{"tcp": 30080, "udp": dnsNodePort}[network]
		for _, p := range []lab.Probe{
			webProbe(node.Pods[1], f, network),
			{From: l.Client, Network: network, To: netip.AddrPortFrom(node.Addr(f), nodePort)},
		} {
			if r := p.Once(ctx); r.Server != node.Pods[0].Label {
				t.Errorf("%s: %s", p, r)
			}
		}
	})
	squatter := lab.Probe{From: l.Client, Network: "tcp", To: taken.Addr}
	if r := squatter.Once(ctx); r.Server != "squatter" {
		t.Errorf("whoever has the port: %s", r)
	}

	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	a.waitHealthCheck(ctx, taken.Addr, "web")
	a.waitLog(ctx, 0, 1, "Health check node port answers now", "default/web")
	for _, check := range checks {
		a.waitHealthCheck(ctx, netip.AddrPortFrom(node.Addr(check.family), check.port), check.service)
	}
}

// healthChecked is a Service that load balancers ask for, with an endpoint on
// the first node.
func healthChecked(l *lab.Lab, name string, n byte, port int32) []runtime.Object {
	svc := service(name, n)
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, port
	objs := []runtime.Object{svc}
	for _, s := range endpointSlices(name, l, l.Nodes[0].Pods[1]) {
		objs = append(objs, s)
	}
	return objs
}

// waitHealthCheck waits until a health check port answers that the Service has
// an endpoint here.
func (a *agent) waitHealthCheck(ctx context.Context, at netip.AddrPort, service string) {
	a.t.Helper()
	for {
		status, body, err := a.get(ctx, fmt.Sprintf("http://%s/", at))
		if status == http.StatusOK && strings.Contains(body, `"name": "`+service+`"`) && strings.Contains(body, `"localEndpoints": 1`) {
			return
		}
		if ctx.Err() != nil {
			a.t.Fatalf("health check of %s at %s: got %d %s (%v)", service, at, status, body, err)
		}
	}
}
