// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/model"
)

// addresses returns a Node's status with addresses, given as pairs of a type and
// an address.
func addresses(pairs ...corev1.NodeAddressType) corev1.NodeStatus {
	var status corev1.NodeStatus
	for i := 0; i < len(pairs); i += 2 {
		status.Addresses = append(status.Addresses, corev1.NodeAddress{Type: pairs[i], Address: string(pairs[i+1])})
	}
	return status
}

func TestTranslateNode(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in      corev1.Node
		want    *model.Node
		refused []string
	}{
		{
			name: "a node in service",
			in:   corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1.example"}},
			want: &model.Node{Name: "node-1.example"},
		},
		{
			name: "being deleted",
			in:   corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", DeletionTimestamp: &metav1.Time{}}},
			want: &model.Node{Name: "n", Deleting: true},
		},
		{
			name: "announced by the cluster autoscaler, among other taints",
			in: corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{
				Taints: []corev1.Taint{{Key: "a"}, {Key: TaintToBeDeleted, Value: "1700000000"}, {Key: "b"}}}},
			want: &model.Node{Name: "n", ToBeDeleted: true},
		},
		{
			name: "zone, addresses and pod CIDRs",
			in: corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{LabelZone: "Europe-West1_b"}},
				Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:10:244:1::/64"}},
				Status: addresses(corev1.NodeHostName, "n", corev1.NodeExternalIP, "192.0.2.1", corev1.NodeInternalIP, "fd00::1",
					corev1.NodeInternalIP, "10.0.0.1", corev1.NodeInternalIP, "010.0.0.1", corev1.NodeInternalIP, "10.0.0.2"),
			},
			want: &model.Node{Name: "n", Zone: "Europe-West1_b", Addrs: addrs("fd00::1", "10.0.0.1", "10.0.0.2"),
				PodCIDRs: prefixes("10.244.1.0/24", "fd00:10:244:1::/64")},
		},
		{
			name: "external addresses for want of internal ones",
			in: corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"},
				Status: addresses(corev1.NodeExternalIP, "192.0.2.1", corev1.NodeExternalIP, "2001:db8::1", corev1.NodeInternalDNS, "10.0.0.9")},
			want: &model.Node{Name: "n", Addrs: addrs("192.0.2.1", "2001:db8::1")},
		},
		{
			name: "external addresses of the family that no internal one is of",
			in: corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"},
				Status: addresses(corev1.NodeExternalIP, "2001:db8::1", corev1.NodeExternalIP, "192.0.2.1", corev1.NodeInternalIP, "10.0.0.1")},
			want: &model.Node{Name: "n", Addrs: addrs("10.0.0.1", "2001:db8::1")},
		},
		{
			name: "podCIDR alone, with bits of the host",
			in:   corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.1.1/24"}},
			want: &model.Node{Name: "n", PodCIDRs: prefixes("10.244.1.0/24")},
		},
		{
			name: "hostile zone, addresses and pod CIDRs",
			in: corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{LabelZone: "a\nCOMMIT"}},
				Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24\n", "10.244.1.0/24", "::ffff:10.0.0.0/104"}},
				Status: addresses(corev1.NodeInternalIP, "127.0.0.1", corev1.NodeInternalIP, "169.254.1.1", corev1.NodeInternalIP, "10.0.0.1",
					corev1.NodeExternalIP, "\"", corev1.NodeHostName, "\n"),
			},
			want: &model.Node{Name: "n", Addrs: addrs("10.0.0.1"), PodCIDRs: prefixes("10.244.1.0/24")},
			refused: []string{
				`Node "n": metadata.labels["topology.kubernetes.io/zone"] "a\nCOMMIT": ` + reasonLabelValue,
				`Node "n": status.addresses[0].address "127.0.0.1": ` + reasonLoopback,
				`Node "n": status.addresses[1].address "169.254.1.1": ` + reasonLinkLocal,
				`Node "n": status.addresses[3].address "\"": ` + reasonNoAddress,
				`Node "n": spec.podCIDRs[0] "10.244.1.0/24\n": ` + reasonNoPrefix,
				`Node "n": spec.podCIDRs[2] "::ffff:10.0.0.0/104": ` + reasonMapped,
			},
		},
		{
			name:    "hostile name",
			in:      corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n\nx"}},
			refused: []string{`Node "n\nx": metadata.name "n\nx": ` + reasonSubdomain},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok, refused := TranslateNode(&tt.in)
			if ok != (tt.want != nil) {
				t.Errorf("ok = %v", ok)
			}
			if diff := cmp.Diff(tt.want, got, compareAddr, comparePrefix); diff != "" {
				t.Errorf("TranslateNode (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, lines(refused)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
