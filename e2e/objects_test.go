// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// What the scenarios use.
const (
	httpPort, httpTarget = 80, 8080
	dnsPort, dnsTarget   = 53, 5353
	sctpPort, sctpTarget = 132, 9132

	clusterCIDR = "10.244.0.0/16,fd00:10:244::/48"
)

func clusterPrefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{"10.96.0.0/16", "fd00:10:96::/112"} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// vip returns the n-th cluster IP of a family.
func vip(f model.Family, n byte) netip.Addr {
	if f == model.IPv4 {
		return netip.AddrFrom4([4]byte{10, 96, 0, n})
	}
	a := netip.MustParseAddr("fd00:10:96::").As16()
	a[15] = n
	return netip.AddrFrom16(a)
}

// service is a dual-stack Service with named TCP, UDP and SCTP ports.
func service(name string, n byte) *corev1.Service {
	port := func(name string, proto corev1.Protocol, port int32, target int) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: proto, Port: port, TargetPort: intstr.FromInt(target)}
	}
	policy := corev1.IPFamilyPolicyRequireDualStack
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			ClusterIP:      vip(model.IPv4, n).String(),
			ClusterIPs:     []string{vip(model.IPv4, n).String(), vip(model.IPv6, n).String()},
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{
				port("http", corev1.ProtocolTCP, httpPort, httpTarget),
				port("dns", corev1.ProtocolUDP, dnsPort, dnsTarget),
				port("sig", corev1.ProtocolSCTP, sctpPort, sctpTarget),
			},
		},
	}
}

// endpointSlices are the EndpointSlices of a Service, one of each family.
func endpointSlices(svc string, l *lab.Lab, pods ...*lab.NS) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, f := range model.Families() {
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: svc + map[model.Family]string{model.IPv4: "-v4", model.IPv6: "-v6"}[f],
				Labels: map[string]string{discoveryv1.LabelServiceName: svc},
			},
			AddressType: discoveryv1.AddressType(f.String()),
			Ports: []discoveryv1.EndpointPort{
				slicePort("http", corev1.ProtocolTCP, httpTarget),
				slicePort("dns", corev1.ProtocolUDP, dnsTarget),
				slicePort("sig", corev1.ProtocolSCTP, sctpTarget),
			},
		}
		for _, pod := range pods {
			node := nodeOf(l, pod)
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{pod.Addr(f).String()}, NodeName: &node,
			})
		}
		out = append(out, slice)
	}
	return out
}

func slicePort(name string, proto corev1.Protocol, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port}
}

func nodeOf(l *lab.Lab, pod *lab.NS) string {
	for _, n := range l.Nodes {
		for _, p := range n.Pods {
			if p == pod {
				return n.Label
			}
		}
	}
	return ""
}

// nodeObject is the Node of a lab's node, with its addresses.
func nodeObject(n *lab.Node) *corev1.Node {
	o := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Label},
	}
	for _, f := range families() {
		o.Status.Addresses = append(o.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: n.Addr(f).String()})
	}
	return o
}

// web is the scenario most tests share: the Service "web" with these pods.
func web(l *lab.Lab, pods ...*lab.NS) []runtime.Object {
	objs := []runtime.Object{service("web", 10)}
	for _, s := range endpointSlices("web", l, pods...) {
		objs = append(objs, s)
	}
	return objs
}

// directory is a directory of manifests.
type directory struct {
	t    *testing.T
	path string
}

func newDirectory(t *testing.T) *directory { return &directory{t, t.TempDir()} }

// write replaces a file by one with these objects, as an editor or a
// configuration manager does it: by renaming.
func (d *directory) write(name string, objs ...runtime.Object) {
	d.t.Helper()
	var text []byte
	for _, o := range objs {
		doc, err := yaml.Marshal(o)
		if err != nil {
			d.t.Fatal(err)
		}
		text = append(append(text, "---\n"...), doc...)
	}
	d.writeText(name, string(text))
}

func (d *directory) writeText(name, text string) {
	d.t.Helper()
	tmp := filepath.Join(d.path, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(d.path, name)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *directory) remove(name string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.path, name)); err != nil {
		d.t.Fatal(err)
	}
}

// create makes the objects in an API server, or updates them.
func create(ctx context.Context, t *testing.T, c kubernetes.Interface, objs ...runtime.Object) {
	t.Helper()
	for _, o := range objs {
		if err := createOne(ctx, c, o); err != nil {
			t.Fatal(err)
		}
	}
}

func createOne(ctx context.Context, c kubernetes.Interface, o runtime.Object) (err error) {
	switch o := o.(type) {
	case *corev1.Service:
		_, err = c.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	case *corev1.Node:
		var made *corev1.Node
		if made, err = c.CoreV1().Nodes().Create(ctx, o, metav1.CreateOptions{}); err == nil {
			made.Status = o.Status
			_, err = c.CoreV1().Nodes().UpdateStatus(ctx, made, metav1.UpdateOptions{})
		}
	case *discoveryv1.EndpointSlice:
		slices := c.DiscoveryV1().EndpointSlices(o.Namespace)
		if _, err = slices.Create(ctx, o, metav1.CreateOptions{}); err != nil {
			_, err = slices.Update(ctx, o, metav1.UpdateOptions{})
		}
	}
	return err
}
