// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
)

// Taint is one of a Node's, of any effect if that is empty.
type Taint struct{ Key, Effect string }

// nodePatcher changes a Node.
type nodePatcher interface {
	Patch(ctx context.Context, name string, kind types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*corev1.Node, error)
}

// RemoveTaint removes a taint from the agent's own Node, and tries again until it is gone
// or ctx is done. The log has why it does not succeed, once for each reason. It takes the
// permission to patch nodes.
func (s *Source) RemoveTaint(ctx context.Context, taint Taint) {
	log := klog.FromContext(ctx).WithValues("taint", taint.Key, "effect", taint.Effect)
	told := ""
	backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.25, Steps: 1000, Cap: time.Minute}
	for {
		removed, err := s.config.Client.removeTaint(ctx, s.config.NodeName, taint)
		if err == nil {
			if removed {
				log.Info("Removed the startup taint, pods can start on this node")
			}
			return
		}
		if reason := reasonOf(err); ctx.Err() == nil && reason != told {
			told = reason
			log.Error(nil, "Cannot remove the startup taint yet, will try again; it takes the permission to list and patch nodes", "reason", reason)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff.Step()):
		}
	}
}

// removeTaint tries once. Removed is false where the Node does not have the taint.
func (c *Client) removeTaint(ctx context.Context, name string, taint Taint) (removed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := c.nodes.List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String(), Limit: 1,
	})
	if err != nil {
		return false, err
	}
	if len(found.Items) == 0 {
		return false, fmt.Errorf("there is no Node %s", name)
	}
	node := &found.Items[0]
	rest := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool {
		return t.Key == taint.Key && (taint.Effect == "" || string(t.Effect) == taint.Effect)
	})
	if len(rest) == len(node.Spec.Taints) {
		return false, nil
	}
	// With the version, so that a taint that comes meanwhile is not lost.
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": rest},
	})
	if err != nil {
		return false, err
	}
	_, err = c.node.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err == nil, err
}
