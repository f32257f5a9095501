// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead/e2e/lab"
)

// update is a change of the scenario's objects; nil leaves one as it was in the
// step before.
type update struct {
	name   string
	svc    func(*corev1.Service)
	slices func([]*discoveryv1.EndpointSlice)
	node   func(*corev1.Node)
}

// updates go through the ways in which objects change in the life of a Service,
// each from what the one before has left.
func updates() []update {
	svc := func(name string, f func(*corev1.Service)) update { return update{name: name, svc: f} }
	slices := func(name string, f func([]*discoveryv1.EndpointSlice)) update { return update{name: name, slices: f} }
	node := func(name string, f func(*corev1.Node)) update { return update{name: name, node: f} }
	return []update{
		svc("as it was made", func(*corev1.Service) {}),
		svc("ClusterIP to NodePort", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeNodePort
			s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30081
		}),
		svc("another node port", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30090 }),
		svc("NodePort to LoadBalancer", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.80"}}
		}),
		svc("external traffic policy Local", func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 30099
		}),
		svc("source ranges", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"} }),
		svc("a load balancer that takes other addresses", func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.81"}, {Hostname: "lb.example"}}
		}),
		svc("LoadBalancer to ClusterIP", func(s *corev1.Service) {
			*s = *service("web", 10)
			s.Spec.ExternalIPs = []string{"203.0.113.5"}
		}),
		svc("session affinity", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }),
		svc("internal traffic policy Local", func(s *corev1.Service) {
			local := corev1.ServiceInternalTrafficPolicyLocal
			s.Spec.InternalTrafficPolicy = &local
		}),
		svc("to ExternalName", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "x.example"
		}),
		svc("and back", func(s *corev1.Service) { *s = *service("web", 10) }),
		svc("headless", func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"} }),
		svc("made again with another cluster IP", func(s *corev1.Service) { *s = *service("web", 11) }),
		svc("for another proxy", func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		}),
		svc("for this one again", func(s *corev1.Service) { s.Labels = nil }),
		svc("single stack", func(s *corev1.Service) {
			s.Spec.ClusterIPs, s.Spec.IPFamilies = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1]
		}),
		svc("a port renamed", func(s *corev1.Service) { *s = *service("web", 10); s.Spec.Ports[0].Name = "web" }),
		slices("its endpoints' port renamed", func(all []*discoveryv1.EndpointSlice) {
			for _, s := range all {
				name := "web"
				s.Ports[0].Name = &name
			}
		}),
		svc("protocol changed", func(s *corev1.Service) { s.Spec.Ports[1].Protocol = corev1.ProtocolTCP }),
		svc("a port removed", func(s *corev1.Service) { s.Spec.Ports = s.Spec.Ports[:1] }),
		slices("slices moved to another Service", func(all []*discoveryv1.EndpointSlice) {
			for _, s := range all {
				s.Labels = map[string]string{discoveryv1.LabelServiceName: "other"}
			}
		}),
		slices("and back, for a headless one", func(all []*discoveryv1.EndpointSlice) {
			for _, s := range all {
				s.Labels = map[string]string{discoveryv1.LabelServiceName: "web", corev1.IsHeadlessService: ""}
			}
		}),
		slices("with hints for zones", func(all []*discoveryv1.EndpointSlice) {
			for _, s := range all {
				s.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
				for i := range s.Endpoints {
					s.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: string(rune('a' + i))}}}
				}
			}
		}),
		node("the node in a zone", func(n *corev1.Node) { n.Labels = map[string]string{"topology.kubernetes.io/zone": "a"} }),
		node("in another", func(n *corev1.Node) { n.Labels["topology.kubernetes.io/zone"] = "b" }),
		slices("an endpoint terminates", func(all []*discoveryv1.EndpointSlice) {
			no, yes := false, true
			for _, s := range all {
				s.Endpoints[1].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
			}
		}),
		slices("an address twice", func(all []*discoveryv1.EndpointSlice) {
			for _, s := range all {
				s.Endpoints = append(s.Endpoints, *s.Endpoints[0].DeepCopy())
			}
		}),
	}
}

// TestKernelUpdates: after every kind of change the rules are those of an agent
// that has seen only the objects as they are then.
func TestKernelUpdates(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, oneVariant()); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	svc, slices, node := service("web", 10), endpointSlices("web", l, l.Nodes[0].Pods[0], l.Nodes[1].Pods[0]), nodeObject(l.Nodes[0])
	objects := func() []runtime.Object {
		out := []runtime.Object{svc, service("other", 20), node}
		for _, s := range slices {
			out = append(out, s)
		}
		return out
	}
	dir := newDirectory(t)
	var a *agent
	states := map[string]bool{}
	for _, u := range updates() {
		if u.svc != nil {
			u.svc(svc)
		}
		if u.slices != nil {
			u.slices(slices)
		}
		if u.node != nil {
			u.node(node)
		}
		dir.write("all.yaml", objects()...)
		if a == nil {
			a = startAgent(ctx, t, l.Nodes[0], oneVariant(), "--manifests", dir.path)
			a.waitSynced(ctx, 0)
		}
		want := afresh(ctx, t, l, dir)
		states[want] = true
		if !waitRules(ctx, t, l.Nodes[0], want) {
			t.Errorf("%s (-afresh +updated):\n%s", u.name, cmp.Diff(want, save(ctx, t, l.Nodes[0], oneVariant())))
		}
	}
	// Some lead back to where the rules were before; most do not.
	if len(states) < len(updates())/2 {
		t.Errorf("%d changes led to %d different sets of rules: do they take effect?", len(updates()), len(states))
	}
	t.Logf("%d changes, %d different sets of rules", len(updates()), len(states))
}

// afresh returns the rules that a new agent writes, on another node under the
// name of the first.
func afresh(ctx context.Context, t *testing.T, l *lab.Lab, dir *directory) string {
	t.Helper()
	other := l.Nodes[1]
	cleanUp(ctx, t, other)
	a := startAgent(ctx, t, other, oneVariant(), "--manifests", dir.path, "--hostname-override", l.Nodes[0].Label)
	a.waitSynced(ctx, 0)
	a.stop()
	return save(ctx, t, other, oneVariant())
}

// waitRules waits until a node has these rules, for a while: what changes may
// be one family's alone, so there is no line in the log to wait for. What of the table of
// nftables mode is out of use goes after five seconds without a change.
func waitRules(ctx context.Context, t *testing.T, n *lab.Node, want string) bool {
	t.Helper()
	for start := time.Now(); time.Since(start) < 20*time.Second; {
		if save(ctx, t, n, oneVariant()) == want {
			return true
		}
	}
	return false
}
