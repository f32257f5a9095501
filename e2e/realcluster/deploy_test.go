// SPDX-License-Identifier: Apache-2.0

//go:build e2ecluster

package realcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

// deploy applies kubeadm's ConfigMap and deploy/base with the image that was imported,
// and waits until the agents are ready.
func (f *fixture) deploy(ctx context.Context, mode string) {
	f.t.Helper()
	f.setMode(ctx, mode)
	out := run(f.t, exec.Command(filepath.Join(tools(), "kustomize"), "build", filepath.Join("..", "..", "deploy", "base")))
	f.apply(ctx, bytes.ReplaceAll(out, []byte("image: fairlead:dev"), []byte("image: fairlead:"+imageTag(f.t))))
	await(ctx, f.t, "the DaemonSet", func() error { return f.agentsReady(ctx) })
}

// setMode applies kubeadm's ConfigMap.
func (f *fixture) setMode(ctx context.Context, mode string) {
	f.t.Helper()
	f.apply(ctx, fmt.Appendf(nil, kubeProxyConfigMap, mode, f.URL()))
}

// apply applies the objects of a text.
func (f *fixture) apply(ctx context.Context, text []byte) {
	f.t.Helper()
	client, err := dynamic.NewForConfig(f.RESTConfig())
	if err != nil {
		f.t.Fatal(err)
	}
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = applyOne(ctx, client, o)
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
}

func applyOne(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured) error {
	gv, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil {
		return err
	}
	all := client.Resource(gv.WithResource(strings.ToLower(o.GetKind()) + "s"))
	var r dynamic.ResourceInterface = all
	if o.GetNamespace() != "" {
		r = all.Namespace(o.GetNamespace())
	}
	_, err = r.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "test", Force: true})
	return err
}

// agentPods returns the DaemonSet's pods.
func (f *fixture) agentPods(ctx context.Context) ([]corev1.Pod, error) {
	pods, err := f.Clientset().CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=fairlead"})
	return pods.Items, err
}

func (f *fixture) agentsReady(ctx context.Context) error {
	d, err := f.Clientset().AppsV1().DaemonSets("kube-system").Get(ctx, "fairlead", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if s := d.Status; s.ObservedGeneration < d.Generation || int(s.NumberReady) != len(f.lab.Nodes) || s.UpdatedNumberScheduled != s.NumberReady {
		return fmt.Errorf("%d pods are ready, %d are of this version", s.NumberReady, s.UpdatedNumberScheduled)
	}
	return nil
}

// removeAgents deletes the DaemonSet, and waits until its pods are gone.
func (f *fixture) removeAgents(ctx context.Context) {
	f.t.Helper()
	if err := f.Clientset().AppsV1().DaemonSets("kube-system").Delete(ctx, "fairlead", metav1.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
	await(ctx, f.t, "the end of all agents", func() error {
		pods, err := f.agentPods(ctx)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d are left", len(pods))
		}
		return err
	})
}

// hostPort is the port of the nodes that leads to the pods of web.
const hostPort = 8088

// resolverPort is where the pods of web look up names.
const resolverPort = "8053"

// web makes a Deployment with a pod on each node, which has a host port, and its Service.
func (f *fixture) web(ctx context.Context) *corev1.Service {
	f.t.Helper()
	labels, replicas := map[string]string{"app": "web"}, int32(len(f.lab.Nodes))
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{
				{Name: "web", Image: webImage, ImagePullPolicy: corev1.PullNever, Args: []string{"netexec", "--http-port=8080"},
					Ports: []corev1.ContainerPort{{ContainerPort: 8080, HostPort: hostPort}}},
				{Name: "resolver", Image: podImage, ImagePullPolicy: corev1.PullNever, Args: []string{":" + resolverPort}},
			},
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
				MaxSkew: 1, TopologyKey: "kubernetes.io/hostname", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
			}},
		}},
	}}
	if _, err := f.Clientset().AppsV1().Deployments("default").Create(ctx, d, metav1.CreateOptions{}); err != nil {
		f.t.Fatal(err)
	}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}}
	svc, err := f.Clientset().CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return svc
}

// webPods returns the addresses of web's pods, once there is one on each node.
func (f *fixture) webPods(ctx context.Context) (addrs []string) {
	f.t.Helper()
	await(ctx, f.t, "the pods of web", func() error {
		pods, err := f.Clientset().CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil {
			return err
		}
		addrs = nil
		for _, p := range pods.Items {
			if p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" {
				addrs = append(addrs, p.Status.PodIP)
			}
		}
		if len(addrs) != len(f.lab.Nodes) {
			return fmt.Errorf("%v run", addrs)
		}
		return nil
	})
	return addrs
}

// dnsAddr is the cluster IP of the cluster's DNS.
const dnsAddr = "10.96.0.10"

// startDNS starts the cluster's DNS, and waits until it is ready.
func (f *fixture) startDNS(ctx context.Context) {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "dns.yaml"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.apply(ctx, text)
	await(ctx, f.t, "CoreDNS", func() error {
		d, err := f.Clientset().AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas != 1 {
			err = errors.New("it is not ready")
		}
		return err
	})
}

const kubeProxyConfigMap = `apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data:
  config.conf: |
    apiVersion: kubeproxy.config.k8s.io/v1alpha1
    kind: KubeProxyConfiguration
    clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
    clusterCIDR: 10.244.0.0/16
    mode: %q
  kubeconfig.conf: |
    apiVersion: v1
    kind: Config
    clusters:
    - name: default
      cluster:
        certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
        server: %s
    users:
    - name: default
      user: {tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token}
    contexts:
    - name: default
      context: {cluster: default, namespace: default, user: default}
    current-context: default
`
