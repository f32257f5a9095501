// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead/proxier/model"
)

// namespace is that of all objects.
const namespace = metav1.NamespaceDefault

// protocols are the networks of the suite as the API spells them.
var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}

// service is a dual-stack Service of type ClusterIP, and its endpoints.
type service struct {
	name string
	host int // of its addresses
	// changes are what it has beyond a plain Service.
	changes   []change
	endpoints []endpoint
}

// change is one property of a Service.
type change func(*corev1.Service)

// web is the Service that is asked.
func web(endpoints []endpoint, changes ...change) service {
	return service{name: "web", host: webHost, endpoints: endpoints, changes: changes}
}

// objects returns the Service and its EndpointSlices, one of each family.
func (s service) objects(topo *topology) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	policy := corev1.IPFamilyPolicyRequireDualStack
	svc := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: s.name},
		Spec: corev1.ServiceSpec{
			Type:            corev1.ServiceTypeClusterIP,
			ClusterIP:       clusterAddr(model.IPv4, s.host).String(),
			ClusterIPs:      both(clusterAddr, s.host),
			IPFamilies:      []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			IPFamilyPolicy:  &policy,
			SessionAffinity: corev1.ServiceAffinityNone,
		},
	}
	for _, p := range protocols {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{
			Name: strings.ToLower(string(p)), Protocol: p, Port: servicePort, TargetPort: intstr.FromInt32(targetPort),
		})
	}
	for _, change := range s.changes {
		change(svc)
	}
	return svc, endpointSlices(s.name, topo, s.endpoints)
}

// both returns the addresses of that number of both families.
func both(addr func(model.Family, int) netip.Addr, host int) []string {
	return []string{addr(model.IPv4, host).String(), addr(model.IPv6, host).String()}
}

func nodePorts(s *corev1.Service) {
	s.Spec.Type = corev1.ServiceTypeNodePort
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].NodePort = nodePortNumber
	}
}

func loadBalanced(s *corev1.Service) { balancedAt(webHost, s) }

// held is loadBalanced, by an address that a node has itself.
func held(s *corev1.Service) { balancedAt(heldHost, s) }

func balancedAt(host int, s *corev1.Service) {
	nodePorts(s)
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, ip := range both(publicAddr, host) {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
}

// withoutNodePorts is for a load balancer that does not need them.
func withoutNodePorts(s *corev1.Service) {
	s.Spec.AllocateLoadBalancerNodePorts = new(false)
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].NodePort = 0
	}
}

// proxied is for a load balancer that does not keep the destination address.
func proxied(s *corev1.Service) {
	for i := range s.Status.LoadBalancer.Ingress {
		s.Status.LoadBalancer.Ingress[i].IPMode = new(corev1.LoadBalancerIPModeProxy)
	}
}

func sourceRanges(cidrs ...string) change {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = cidrs }
}

func public(s *corev1.Service) { s.Spec.ExternalIPs = both(publicAddr, publicHost) }

// externalIPs makes a Service public at other addresses, port excepted.
func externalIPs(port int32, ips ...string) change {
	return func(s *corev1.Service) {
		s.Spec.ExternalIPs = ips
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].Port = port
		}
	}
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
}

// externalLocal comes after the change that sets the type.
func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.Spec.HealthCheckNodePort = healthCheckPort
	}
}

func sticky(s *corev1.Service) {
	s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{
		ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: new(corev1.DefaultClientIPServiceAffinitySeconds)},
	}
}

// otherProxy gives the Service to another proxy.
func otherProxy(s *corev1.Service) {
	s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "another"}
}

// endpoint is an endpoint of a Service.
type endpoint struct {
	// at is the label of the pod, or of a node for a pod in its network.
	at         string
	conditions discoveryv1.EndpointConditions
	hints      discoveryv1.EndpointHints
}

// at returns ready endpoints.
func at(labels ...string) []endpoint {
	var out []endpoint
	for _, l := range labels {
		out = append(out, endpoint{at: l, conditions: conditions(true, true, false)})
	}
	return out
}

func conditions(ready, serving, terminating bool) discoveryv1.EndpointConditions {
	return discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
}

// draining are endpoints that are being deleted and still serve; closed ones
// do not serve any more.
func draining(label string) endpoint {
	return endpoint{at: label, conditions: conditions(false, true, true)}
}
func closed(label string) endpoint {
	return endpoint{at: label, conditions: conditions(false, false, true)}
}

// unready is an endpoint that is not ready and stays.
func unready(label string) endpoint {
	return endpoint{at: label, conditions: conditions(false, false, false)}
}

// forZones and forNodes are ready endpoints with a hint.
func forZones(label string, zones ...string) endpoint {
	e := at(label)[0]
	for _, z := range zones {
		e.hints.ForZones = append(e.hints.ForZones, discoveryv1.ForZone{Name: z})
	}
	return e
}

// forNode adds hints for a node.
func (e endpoint) forNode(node string) endpoint {
	e.hints.ForNodes = []discoveryv1.ForNode{{Name: node}}
	return e
}

func (e endpoint) object(topo *topology, f model.Family) discoveryv1.Endpoint {
	node := nodeOf(e.at)
	out := discoveryv1.Endpoint{
		Addresses:  []string{topo.hosts[e.at].Addr(f).String()},
		Conditions: e.conditions, NodeName: &node, Zone: new(zoneOf(node)),
	}
	if len(e.hints.ForZones)+len(e.hints.ForNodes) > 0 {
		out.Hints = &e.hints
	}
	return out
}

// endpointSlices returns those of a Service.
func endpointSlices(name string, topo *topology, endpoints []endpoint) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, f := range model.Families() {
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: name + "-" + strings.ToLower(f.String()),
				Labels: map[string]string{discoveryv1.LabelServiceName: name},
			},
			AddressType: discoveryv1.AddressType(f.String()),
		}
		for _, p := range protocols {
			slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
				Name: new(strings.ToLower(string(p))), Protocol: &p, Port: new(int32(targetPort)),
			})
		}
		for _, e := range endpoints {
			slice.Endpoints = append(slice.Endpoints, e.object(topo, f))
		}
		out = append(out, slice)
	}
	return out
}

// nodes returns the Nodes, each in a zone of its own.
func nodes(topo *topology) []runtime.Object {
	var out []runtime.Object
	for _, n := range topo.lab.Nodes {
		node := &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: n.Label, Labels: map[string]string{zoneLabel: zoneOf(n.Label)}},
		}
		for _, f := range model.Families() {
			node.Status.Addresses = append(node.Status.Addresses,
				corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: n.Addr(f).String()})
			node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, n.PodCIDR(f).String())
		}
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
		out = append(out, node)
	}
	return out
}

// objects returns everything that services consist of, all Services first.
func objects(topo *topology, services []service) []runtime.Object {
	var svcs, rest []runtime.Object
	for _, s := range services {
		svc, parts := s.objects(topo)
		svcs = append(svcs, svc)
		for _, slice := range parts {
			rest = append(rest, slice)
		}
	}
	return append(svcs, rest...)
}
