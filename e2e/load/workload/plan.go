// SPDX-License-Identifier: Apache-2.0

// Package workload says which Services and endpoints a measurement has, how
// they change, and writes them to an API server.
//
// What there is and what changes is pure: functions of a Plan and of a seed. So
// whoever measures knows the cluster IP of every Service without asking, and
// two programs that are compared see the same objects and the same changes.
package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Plan says what there is before anything changes: Services with the numbers 0
// to Services-1, each with as many endpoints. Its methods are pure.
type Plan struct {
	// Services and Endpoints are how many Services there are, and how many
	// endpoints each has.
	Services, Endpoints int
	// Namespace has all objects.
	Namespace string
	// ServiceCIDR has the cluster IPs: Service 0 has the one numbered
	// FirstVIP, the next Service the next one.
	ServiceCIDR netip.Prefix
	// EndpointCIDR has the addresses of the endpoints.
	EndpointCIDR netip.Prefix
	// Port is the Services', TargetPort that of their endpoints; TCP.
	Port, TargetPort uint16
	// Nodes is how many nodes the endpoints are on, in turn.
	Nodes int
}

// FirstVIP is the number within Plan.ServiceCIDR of Service 0's cluster IP. An
// API server hands out the ones below first.
const FirstVIP = 256

// sliceSize is how many endpoints a slice has at most: what Kubernetes'
// endpoint slice controller has by default.
const sliceSize = 100

// DefaultPlan is a Plan of 1,000 Services with 10 endpoints each.
func DefaultPlan() Plan {
	return Plan{
		Services: 1000, Endpoints: 10, Namespace: "load",
		ServiceCIDR:  netip.MustParsePrefix("10.96.0.0/16"),
		EndpointCIDR: netip.MustParsePrefix("10.128.0.0/10"),
		Port:         80, TargetPort: 8080, Nodes: 100,
	}
}

// SetCIDRs reads the two ranges.
func (p *Plan) SetCIDRs(services, endpoints string) error {
	for _, r := range []struct {
		flag, text string
		to         *netip.Prefix
	}{{"service-cidr", services, &p.ServiceCIDR}, {"endpoint-cidr", endpoints, &p.EndpointCIDR}} {
		cidr, err := netip.ParsePrefix(r.text)
		if err != nil {
			return fmt.Errorf("%s %q is not a CIDR; write it like 10.96.0.0/16", r.flag, r.text)
		}
		*r.to = cidr.Masked()
	}
	return nil
}

// Validate tells what is wrong with a plan. Names are those of the command's
// flags.
func (p Plan) Validate() error {
	var errs []error
	check := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(p.Services < 0 || p.Endpoints < 0, "services and endpoints are %d and %d; must not be below 0", p.Services, p.Endpoints)
	check(!p.ServiceCIDR.Addr().Is4() || !p.EndpointCIDR.Addr().Is4(), "service-cidr %s and endpoint-cidr %s must be of IPv4", p.ServiceCIDR, p.EndpointCIDR)
	check(p.Namespace == "", "namespace is empty")
	check(p.Port == 0 || p.TargetPort == 0, "ports must not be 0")
	check(p.Nodes < 1, "nodes is %d; must be at least 1", p.Nodes)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	check(p.Services+FirstVIP >= size(p.ServiceCIDR), "service-cidr %s has no room for %d cluster IPs from number %d on", p.ServiceCIDR, p.Services, FirstVIP)
	check(p.Services*p.Endpoints > p.addresses()/2, "endpoint-cidr %s has no room for twice %d endpoints", p.EndpointCIDR, p.Services*p.Endpoints)
	return errors.Join(errs...)
}

// size is how many addresses a prefix of IPv4 has.
func size(p netip.Prefix) int { return 1 << (32 - p.Bits()) }

// addresses is how many endpoints can have an address of their own: all but
// the first and the last one of the range.
func (p Plan) addresses() int { return size(p.EndpointCIDR) - 2 }

// nth is the address with number n in a prefix.
func nth(p netip.Prefix, n int) netip.Addr {
	base := p.Masked().Addr().As4()
	var out [4]byte
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(base[:])+uint32(n))
	return netip.AddrFrom4(out)
}

// VIP is the cluster IP of a Service.
func (p Plan) VIP(service int) netip.Addr { return nth(p.ServiceCIDR, FirstVIP+service) }

// At is where a Service is reached.
func (p Plan) At(service int) netip.AddrPort { return netip.AddrPortFrom(p.VIP(service), p.Port) }

// Endpoint is the address with that number. Numbers wrap where the range ends.
func (p Plan) Endpoint(n int) netip.Addr { return nth(p.EndpointCIDR, 1+n%p.addresses()) }

// Service is a Service and the numbers of its endpoints' addresses.
type Service struct {
	Number    int
	Endpoints []int
}

// Service is what a Service is like before anything changes.
func (p Plan) Service(number int) Service {
	s := Service{Number: number, Endpoints: make([]int, p.Endpoints)}
	for i := range s.Endpoints {
		s.Endpoints[i] = number*p.Endpoints + i
	}
	return s
}

// serviceName is the name of the Service with that number. Names are in the
// order of the numbers.
func serviceName(number int) string { return fmt.Sprintf("svc-%06d", number) }

// managedBy is the label value by which everything of this package is known.
const managedBy = "fairlead-load"

// Object is the Service as the API has it. It has no selector, so nobody else
// cares for its endpoints.
func (p Plan) Object(s Service) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: serviceName(s.Number),
			Labels: map[string]string{"app.kubernetes.io/managed-by": managedBy},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: p.VIP(s.Number).String(),
			Ports: []corev1.ServicePort{{
				Port: int32(p.Port), TargetPort: intstr.FromInt32(int32(p.TargetPort)), Protocol: corev1.ProtocolTCP,
			}},
		},
	}
}

// Slices are the Service's EndpointSlices, one at least. They say what those of
// the endpoint slice controller say, because what objects hold is what a
// proxy's memory holds.
func (p Plan) Slices(s Service) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for rest := s.Endpoints; ; rest = rest[sliceSize:] {
		n := min(len(rest), sliceSize)
		out = append(out, p.slice(s.Number, len(out), rest[:n]))
		if n == len(rest) {
			return out
		}
	}
}

func (p Plan) slice(service, number int, endpoints []int) *discoveryv1.EndpointSlice {
	name, port, proto, portName := serviceName(service), int32(p.TargetPort), corev1.ProtocolTCP, ""
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: fmt.Sprintf("%s-%d", name, number),
			Labels: map[string]string{
				discoveryv1.LabelServiceName: name,
				discoveryv1.LabelManagedBy:   managedBy,
			},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &proto}},
		Endpoints:   make([]discoveryv1.Endpoint, len(endpoints)),
	}
	for i, e := range endpoints {
		slice.Endpoints[i] = p.endpoint(e)
	}
	return slice
}

func (p Plan) endpoint(n int) discoveryv1.Endpoint {
	yes, no, node := true, false, fmt.Sprintf("load-node-%d", n%p.Nodes)
	return discoveryv1.Endpoint{
		Addresses:  []string{p.Endpoint(n).String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
		NodeName:   &node,
		TargetRef: &corev1.ObjectReference{
			Kind: "Pod", Namespace: p.Namespace, Name: fmt.Sprintf("pod-%07d", n),
			UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", n)),
		},
	}
}
