// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/model"
)

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
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("TranslateNode (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, lines(refused)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}
