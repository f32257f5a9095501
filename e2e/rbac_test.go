// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"fairlead/e2e/cluster"
	"fairlead/e2e/lab"
	"fairlead/proxier/model"
)

// agentUser is whom the agent is to the API server.
const agentUser = "system:serviceaccount:kube-system:fairlead"

// TestKernelPermissions: the permissions in deploy/base/rbac.yaml are enough, and each is
// used.
func TestKernelPermissions(t *testing.T) {
	ctx := testContext(t)
	if err := lab.VariantSupported(ctx, lab.NFT); err != nil {
		t.Skip(err)
	}
	l := newLab(t)
	node := l.Nodes[0]
	audit, err := cluster.NewAuditLog(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, kubeconfig := startCluster(ctx, t, l, audit.Flags()...)
	create(ctx, t, c.Clientset(), append(web(l, node.Pods[0]), nodeObject(node))...)
	role := createPermissions(ctx, t, c.Clientset(), filepath.Join("..", "deploy", "base", "rbac.yaml"))

	// As with an API server that is too old to stream lists; watching is as ever.
	listing := []string{"KUBE_FEATURE_WatchListClient=false"}
	a := startAgentEnv(ctx, t, node, lab.NFT, listing, "--kubeconfig", impersonating(t, kubeconfig, agentUser))
	a.waitSynced(ctx, 0)
	if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Outcome != lab.Answered {
		t.Error(r)
	}
	status, body := fetch(ctx, t, a, "http://127.0.0.1:10256/healthz")
	if status != 200 {
		t.Errorf("/healthz with the Node in the API server: got %d %s, want 200", status, body)
	}
	taintGone(ctx, t, c.Clientset(), node.Label)
	a.waitHealthz(ctx, 503)
	refusedInEvent(ctx, t, c.Clientset(), node.Label)
	thiefInEvent(ctx, t, c.Clientset())
	if r := webProbe(node.Pods[1], model.IPv4, "tcp").Once(ctx); r.Server != node.Pods[0].Label {
		t.Errorf("a Service whose cluster IP another one has as external IP: %s", r)
	}
	checkUse(t, audit, role)
}

// thiefInEvent creates a Service that has the cluster IP of web as external IP,
// which only the agent as a whole can see, and waits for the Event about it.
func thiefInEvent(ctx context.Context, t *testing.T, c kubernetes.Interface) {
	t.Helper()
	w := watchEvents(ctx, t, c, "FairleadRefused")
	svc := service("a-thief", 78)
	svc.Spec.ExternalIPs = []string{vip(model.IPv4, 10).String()}
	svc, err := c.CoreV1().Services(svc.Namespace).Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if e := nextEvent(ctx, t, w); e.Regarding.UID == svc.UID {
			if !strings.Contains(e.Note, "10.96.0.10") {
				t.Errorf("the Event says %q, want it to name the address", e.Note)
			}
			return
		}
	}
}

// refusedInEvent creates a Service with a value that the API server lets through
// and the agent does not, and waits for the agent's Event about it: first as one
// that happened, then as one that happened again.
func refusedInEvent(ctx context.Context, t *testing.T, c kubernetes.Interface, node string) {
	t.Helper()
	svc := service("greedy", 77)
	svc.Spec.ExternalIPs = []string{vip(model.IPv4, 77).String(), "239.1.1.1"}
	svc, err := c.CoreV1().Services(svc.Namespace).Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := watchEvents(ctx, t, c, "FairleadRefused")
	want := map[string]string{
		"spec.externalIPs[0]": `Service "default/greedy": spec.externalIPs[0] "10.96.0.77": is a cluster IP of the same Service`,
		"spec.externalIPs[1]": `Service "default/greedy": spec.externalIPs[1] "239.1.1.1": is a multicast address`,
	}
	for len(want) > 0 {
		e := nextEvent(ctx, t, w)
		if e.Regarding.Kind != "Service" || e.Regarding.UID != svc.UID || e.Type != corev1.EventTypeWarning ||
			e.ReportingController != "fairlead" || e.ReportingInstance != node {
			t.Errorf("got the Event %+v", e)
		}
		if got := want[e.Regarding.FieldPath]; got != e.Note {
			t.Errorf("Event about %q: got %q, want %q", e.Regarding.FieldPath, e.Note, got)
		}
		delete(want, e.Regarding.FieldPath)
	}

	svc.Annotations = map[string]string{"changed": "yes"}
	if _, err := c.CoreV1().Services(svc.Namespace).Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for {
		if e := nextEvent(ctx, t, w); e.DeprecatedCount == 2 {
			return
		}
	}
}

// watchEvents watches the Events of one reason in the namespace default.
func watchEvents(ctx context.Context, t *testing.T, c kubernetes.Interface, reason string) watch.Interface {
	t.Helper()
	w, err := c.EventsV1().Events("default").Watch(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

// nextEvent returns the next Event of a watch.
func nextEvent(ctx context.Context, t *testing.T, w watch.Interface) *eventsv1.Event {
	t.Helper()
	select {
	case got, ok := <-w.ResultChan():
		if e, is := got.Object.(*eventsv1.Event); ok && is {
			return e
		}
		t.Fatalf("the watch of Events ended with %v", got.Object)
	case <-ctx.Done():
		t.Fatal("no Event about what is refused")
	}
	return nil
}

// createPermissions creates the objects of a file, and returns the role.
func createPermissions(ctx context.Context, t *testing.T, c kubernetes.Interface, file string) *rbacv1.ClusterRole {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	role := &rbacv1.ClusterRole{}
	for _, into := range []any{&corev1.ServiceAccount{}, role, &rbacv1.ClusterRoleBinding{}} {
		if err := d.Decode(into); err != nil {
			t.Fatal(err)
		}
		switch o := into.(type) {
		case *corev1.ServiceAccount:
			_, err = c.CoreV1().ServiceAccounts(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.ClusterRole:
			_, err = c.RbacV1().ClusterRoles().Create(ctx, o, metav1.CreateOptions{})
		case *rbacv1.ClusterRoleBinding:
			_, err = c.RbacV1().ClusterRoleBindings().Create(ctx, o, metav1.CreateOptions{})
		}
		if err != nil && !apierrors.IsNotFound(err) { // no kube-system without controllers; its name is enough
			t.Fatal(err)
		}
	}
	if err := d.Decode(&struct{}{}); err != io.EOF {
		t.Fatalf("%s has more objects than this test creates: %v", file, err)
	}
	return role
}

// impersonating returns a kubeconfig by which the user of another acts for a
// third one.
func impersonating(t *testing.T, kubeconfig, user string) string {
	t.Helper()
	cfg, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range cfg.AuthInfos {
		u.Impersonate = user
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// taintGone marks a node as about to be deleted by the cluster autoscaler.
func taintGone(ctx context.Context, t *testing.T, c kubernetes.Interface, name string) {
	t.Helper()
	n, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule})
	if _, err := c.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// waitHealthz asks /healthz until it has a status.
func (a *agent) waitHealthz(ctx context.Context, want int) {
	a.t.Helper()
	for {
		status, body, err := a.get(ctx, "http://127.0.0.1:10256/healthz")
		if status == want {
			return
		}
		if ctx.Err() != nil {
			a.t.Fatalf("/healthz: got %d %s (%v), want %d", status, body, err, want)
		}
	}
}
