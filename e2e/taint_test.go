// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"fairlead/e2e/lab"
)

// TestKernelStartupTaint: the agent is ready, and removes the startup taint, once all
// rules are in place, and no sooner; other taints stay. Without the permission it says
// so, and goes on trying.
func TestKernelStartupTaint(t *testing.T) {
	ctx := testContext(t)
	v := oneVariant()
	if err := lab.VariantSupported(ctx, v); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node := l.Nodes[0]
	c, kubeconfig := startCluster(ctx, t, l)
	clients := c.Clientset()
	const key = "fairlead.io/not-ready"
	own := nodeObject(node)
	own.Spec.Taints = []corev1.Taint{
		{Key: "other", Effect: corev1.TaintEffectNoSchedule},
		{Key: key, Effect: corev1.TaintEffectNoSchedule}, {Key: key, Effect: corev1.TaintEffectNoExecute},
	}
	create(ctx, t, clients, append(web(l, node.Pods[0]), own)...)
	createPermissions(ctx, t, clients, filepath.Join("..", "deploy", "base", "rbac.yaml"))
	user := impersonating(t, kubeconfig, "system:serviceaccount:kube-system:fairlead")

	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	a := startAgent(ctx, t, node, v, "--kubeconfig", user, "--startup-taint", key)
	a.waitLog(ctx, 0, 1, c.URL(), "stay")
	a.waitLog(ctx, 0, 1, "Serving HTTP", "10256")
	ready := func(want int) {
		t.Helper()
		if status, body := fetch(ctx, t, a, "http://127.0.0.1:10256/readyz"); status != want {
			t.Errorf("/readyz: got %d %s, want %d", status, body, want)
		}
	}
	ready(http.StatusServiceUnavailable)
	if status, _ := fetch(ctx, t, a, "http://127.0.0.1:10256/livez"); status != http.StatusOK {
		t.Errorf("/livez while it starts: got %d, want 200", status)
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	a.waitSynced(ctx, 0)
	ready(http.StatusOK)
	a.waitLog(ctx, 0, 1, "Cannot remove the startup taint", "cannot patch resource")
	letPatchNodes(ctx, t, clients)
	a.waitLog(ctx, 0, 1, "Removed the startup taint")
	left, err := clients.CoreV1().Nodes().Get(ctx, node.Label, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if has(left, key, "") || !has(left, "other", "") { // the API server has one of its own, too
		t.Errorf("got the taints %v, want the other one, and none with the key %s", left.Spec.Taints, key)
	}
	a.stop()

	// One effect of two, as soon as everything is allowed.
	left.Spec.Taints = own.Spec.Taints
	if _, err := clients.CoreV1().Nodes().Update(ctx, left, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := clients.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, node.Label).String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	startAgent(ctx, t, node, v, "--kubeconfig", user, "--startup-taint", key+":NoExecute")
	for event := range w.ResultChan() {
		if n, ok := event.Object.(*corev1.Node); ok && !has(n, key, corev1.TaintEffectNoExecute) {
			if !has(n, key, corev1.TaintEffectNoSchedule) || !has(n, "other", "") {
				t.Errorf("got the taints %v, want one less", n.Spec.Taints)
			}
			return
		}
	}
	t.Error("the taint was not removed")
}

// has tells whether a Node has a taint, of any effect if that is empty.
func has(n *corev1.Node, key string, effect corev1.TaintEffect) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key && (effect == "" || t.Effect == effect) })
}

// letPatchNodes lets the agent patch nodes.
func letPatchNodes(ctx context.Context, t *testing.T, c kubernetes.Interface) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: "fairlead-startup-taint"}
	_, err := c.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"patch"}}},
	}, metav1.CreateOptions{})
	if err == nil {
		_, err = c.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "fairlead"}},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}
