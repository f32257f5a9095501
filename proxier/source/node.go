// SPDX-License-Identifier: Apache-2.0

package source

import (
	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// TaintToBeDeleted is the taint by which the cluster autoscaler announces that
// it is about to delete a node. Load balancers should stop sending to it.
const TaintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// TranslateNode returns the Node as the model has it. ok is false where its
// name is refused.
func TranslateNode(node *corev1.Node) (n *model.Node, ok bool, refused []Refusal) {
	if !isSubdomain(node.Name) {
		r := newRefusals(KindNode, "", node.Name)
		r.add("metadata.name", node.Name, reasonSubdomain)
		return nil, false, r.list
	}
	n = &model.Node{Name: node.Name, Deleting: node.DeletionTimestamp != nil}
	for i := range node.Spec.Taints {
		if node.Spec.Taints[i].Key == TaintToBeDeleted {
			n.ToBeDeleted = true
		}
	}
	return n, true, nil
}
