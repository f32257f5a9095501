// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/model"
)

func TestTranslateServiceCIDR(t *testing.T) {
	key := model.ObjectKey{Name: "kubernetes"}
	for _, tt := range []struct {
		name    string
		meta    metav1.ObjectMeta
		cidrs   []string
		want    *model.ServiceCIDR
		refused []string
	}{
		{
			name: "dual stack", meta: metav1.ObjectMeta{Name: "kubernetes"}, cidrs: []string{"10.96.0.0/12", "fd00::/112"},
			want: &model.ServiceCIDR{Key: key, CIDRs: prefixes("10.96.0.0/12", "fd00::/112")},
		},
		{
			name: "being deleted", meta: metav1.ObjectMeta{Name: "kubernetes", DeletionTimestamp: &metav1.Time{}}, cidrs: []string{"10.96.0.0/12"},
			want: &model.ServiceCIDR{Key: key, CIDRs: prefixes("10.96.0.0/12")},
		},
		{
			name: "twice, with bits of the host and leading zeros", meta: metav1.ObjectMeta{Name: "kubernetes"},
			cidrs: []string{"10.96.0.0/12", "010.97.0.1/12"},
			want:  &model.ServiceCIDR{Key: key, CIDRs: prefixes("10.96.0.0/12")},
		},
		{
			name: "hostile CIDRs", meta: metav1.ObjectMeta{Name: "kubernetes"},
			cidrs: []string{"10.96.0.0", "10.97.0.0/16\n", "10.98.0.0/16"},
			want:  &model.ServiceCIDR{Key: key, CIDRs: prefixes("10.98.0.0/16")},
			refused: []string{
				`ServiceCIDR "kubernetes": spec.cidrs[0] "10.96.0.0": ` + reasonNoPrefix,
				`ServiceCIDR "kubernetes": spec.cidrs[1] "10.97.0.0/16\n": ` + reasonNoPrefix,
			},
		},
		{
			name: "too many", meta: metav1.ObjectMeta{Name: "kubernetes"}, cidrs: manyRanges(65),
			want:    &model.ServiceCIDR{Key: key, CIDRs: prefixes(manyRanges(64)...)},
			refused: []string{`ServiceCIDR "kubernetes": spec.cidrs "65 elements": is more than 64, the last 1 are left out`},
		},
		{
			name: "hostile name", meta: metav1.ObjectMeta{Name: "a b"},
			refused: []string{`ServiceCIDR "a b": metadata.name "a b": ` + reasonSubdomain},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok, refused := TranslateServiceCIDR(&networkingv1.ServiceCIDR{ObjectMeta: tt.meta, Spec: networkingv1.ServiceCIDRSpec{CIDRs: tt.cidrs}})
			if ok != (tt.want != nil) {
				t.Errorf("ok = %v", ok)
			}
			if diff := cmp.Diff(tt.want, got, comparePrefix); diff != "" {
				t.Errorf("TranslateServiceCIDR (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, lines(refused)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
