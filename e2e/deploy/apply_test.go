// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"fairlead/e2e/cluster"
)

// TestApply: the API server takes what the base and the chart make, every field of it.
func TestApply(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c, err := cluster.Start(ctx, cluster.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}}
	if _, err := c.Clientset().CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("base", func(t *testing.T) { apply(ctx, t, client, base(t)) })
	for _, v := range variants {
		t.Run("chart, "+v.name, func(t *testing.T) { apply(ctx, t, client, chart(t, v.values...)) })
	}
	t.Run("a field that there is not", func(t *testing.T) {
		objs := base(t)
		if err := unstructured.SetNestedField(byName(objs)["DaemonSet fairlead"], true, "spec", "template", "spec", "hostNetwrok"); err != nil {
			t.Fatal(err)
		}
		for _, o := range objs {
			err := applyOne(ctx, client, o)
			if refused := err != nil && strings.Contains(err.Error(), "hostNetwrok"); refused != (o.GetKind() == "DaemonSet") {
				t.Errorf("%s: got %v", o.GetKind(), err)
			}
		}
	})
}

func apply(ctx context.Context, t *testing.T, client dynamic.Interface, objs []*unstructured.Unstructured) {
	t.Helper()
	if len(objs) != 4 {
		t.Errorf("%d objects, want 4", len(objs))
	}
	for _, o := range objs {
		if err := applyOne(ctx, client, o); err != nil {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// applyOne applies an object as kubectl apply --server-side --dry-run=server does, with
// fields that do not exist an error.
func applyOne(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured) error {
	gv, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil {
		return err
	}
	r := client.Resource(gv.WithResource(strings.ToLower(o.GetKind()) + "s"))
	opts := metav1.PatchOptions{FieldManager: "test", DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	text, err := o.MarshalJSON()
	if err != nil {
		return err
	}
	if o.GetNamespace() != "" {
		_, err = r.Namespace(o.GetNamespace()).Patch(ctx, o.GetName(), "application/apply-patch+yaml", text, opts)
	} else {
		_, err = r.Patch(ctx, o.GetName(), "application/apply-patch+yaml", text, opts)
	}
	return err
}
