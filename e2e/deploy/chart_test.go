// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// elsewhere is where the API server is in clusters that kubeadm has not made.
const elsewhere = "apiServer.host=192.0.2.10"

func TestChartLint(t *testing.T) {
	out, err := run(tool(t, "helm"), "lint", "--strict", "--kube-version", "v1.36.3", inDeploy("chart"), "--set", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "[") && !strings.Contains(line, "icon is recommended") {
			t.Error(line)
		}
	}
}

// TestBaseIsChart: the Kustomize base and the chart have the same objects.
func TestBaseIsChart(t *testing.T) {
	if diff := cmp.Diff(byName(chart(t, "kubeProxyConfigMap=kube-proxy")), byName(base(t))); diff != "" {
		t.Errorf("objects that differ (-chart +base):\n%s", diff)
	}
}

// TestChartRefuses: values that cannot work are refused by name, with the remedy.
func TestChartRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []string
		want   []string
	}{
		{"no API server", nil, []string{"apiServer.host", "kubeProxyConfigMap=kube-proxy"}},
		{"two API servers", []string{elsewhere, "kubeProxyConfigMap=kube-proxy"}, []string{"apiServer.host", "kubeProxyConfigMap", "give one"}},
		{"the Service's name", []string{"apiServer.host=kubernetes.default.svc"}, []string{`"kubernetes.default.svc"`, "after a reboot"}},
		{"the Service's short name", []string{"apiServer.host=kubernetes"}, []string{`"kubernetes"`, "after a reboot"}},
		{"the Service's long name", []string{"apiServer.host=kubernetes.default.svc.cluster.local"}, []string{"after a reboot"}},
		{"a cluster IP", []string{"apiServer.host=10.111.255.1", "serviceCIDRs={fd00:10:96::/112,10.96.0.0/12}"}, []string{`"10.111.255.1"`, `"10.96.0.0/12"`, "after a reboot"}},
		{"a setting of the file", []string{"kubeProxyConfigMap=kube-proxy", "mode=ipvs"}, []string{"mode", "config.conf", "kube-proxy"}},
		{"another setting of the file", []string{"kubeProxyConfigMap=kube-proxy", "clusterCIDRs={10.244.0.0/16}"}, []string{"clusterCIDRs"}},
		{"an unknown mode", []string{elsewhere, "mode=userspace"}, []string{"/mode", "userspace"}},
		{"no CIDR", []string{elsewhere, "clusterCIDRs={10.244.0.0}"}, []string{"/clusterCIDRs/0", "10.244.0.0"}},
		{"primary and CIDRs", []string{elsewhere, "nodePortAddresses={primary,10.0.0.0/8}"}, []string{"/nodePortAddresses"}},
		{"a word for a switch", []string{elsewhere, "hostPorts=yes"}, []string{"/hostPorts"}},
		{"a port that is none", []string{elsewhere, "apiServer.port=70000"}, []string{"/apiServer/port"}},
		{"a value that there is not", []string{elsewhere, "hostports=off"}, []string{"hostports"}},
		{"a URL for a host", []string{"apiServer.host=https://192.0.2.10"}, []string{"/apiServer/host"}},
		{"an argument that is no flag", []string{elsewhere, "extraArgs={cleanup}"}, []string{"/extraArgs/0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := helmTemplate(t, tc.values...)
			if err == nil {
				t.Fatal("rendered, want it refused")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q in it", err, want)
				}
			}
		})
	}
}

// variants are values of the chart, and what follows from them.
var variants = []struct {
	name   string
	values []string
	check  func(t *testing.T, d *daemonSet)
}{
	{"kubeadm", []string{"kubeProxyConfigMap=kube-proxy"}, func(t *testing.T, d *daemonSet) {
		d.wantArgs(t, "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=$(NODE_NAME)")
		d.wantNoArgs(t, "--proxy-mode", "--cluster-cidr", "--kubeconfig")
		if d.env("KUBERNETES_SERVICE_HOST") != "" {
			t.Error("an API server besides that of the ConfigMap")
		}
	}},
	{"address", []string{elsewhere, "apiServer.port=8443"}, func(t *testing.T, d *daemonSet) {
		if host, port := d.env("KUBERNETES_SERVICE_HOST"), d.env("KUBERNETES_SERVICE_PORT"); host != "192.0.2.10" || port != "8443" {
			t.Errorf("got the API server %s port %s", host, port)
		}
		d.wantNoArgs(t, "--config", "--proxy-mode", "--cluster-cidr", "--service-cidrs", "--nodeport-addresses", "--masquerade-all", "--metrics-bind-address", "--startup-taint")
	}},
	{"mode and CIDRs", []string{elsewhere, `mode=ipvs\,iptables`, "clusterCIDRs={10.244.0.0/16,fd00:10:244::/56}", "serviceCIDRs={10.96.0.0/12}", "nodePortAddresses={primary}", "masqueradeAll=true"},
		func(t *testing.T, d *daemonSet) {
			d.wantArgs(t, "--proxy-mode=ipvs,iptables", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--service-cidrs=10.96.0.0/12", "--nodeport-addresses=primary", "--masquerade-all")
		}},
	{"masquerading and host ports", []string{elsewhere, "podMasquerade=on", "hostPorts=off", "ipMasqAgentConfigMap="}, func(t *testing.T, d *daemonSet) {
		d.wantArgs(t, "--pod-masquerade=on", "--host-ports=off")
		if slices.ContainsFunc(d.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "ip-masq-agent" }) {
			t.Error("a volume of the ConfigMap ip-masq-agent")
		}
		if d.may("", "pods", "list") {
			t.Error("may list Pods, and does not")
		}
	}},
	{"image", []string{elsewhere, "image.repository=registry.example/net/fairlead", "image.tag=v1@sha256:" + strings.Repeat("0", 64), "image.pullPolicy=Always", "imagePullSecrets[0].name=s"},
		func(t *testing.T, d *daemonSet) {
			for _, c := range d.containers() {
				if want := "registry.example/net/fairlead:v1@sha256:" + strings.Repeat("0", 64); c.Image != want || c.ImagePullPolicy != corev1.PullAlways {
					t.Errorf("%s: got the image %s, pulled %s", c.Name, c.Image, c.ImagePullPolicy)
				}
			}
			if diff := cmp.Diff([]corev1.LocalObjectReference{{Name: "s"}}, d.Spec.Template.Spec.ImagePullSecrets); diff != "" {
				t.Errorf("secrets (-want +got):\n%s", diff)
			}
		}},
	{"scheduling", []string{elsewhere, "priorityClassName=own", "tolerations[0].key=a", "tolerations[0].operator=Exists", "nodeSelector.disk=ssd", "updateStrategy.rollingUpdate.maxUnavailable=1", "podAnnotations.a=b",
		"affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=k", "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists"},
		func(t *testing.T, d *daemonSet) {
			p := d.Spec.Template.Spec
			if p.PriorityClassName != "own" || len(p.Tolerations) != 1 || p.Tolerations[0].Key != "a" || p.NodeSelector["disk"] != "ssd" || p.NodeSelector["kubernetes.io/os"] != "linux" ||
				p.Affinity.NodeAffinity == nil || d.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.IntValue() != 1 || d.Spec.Template.Annotations["a"] != "b" {
				t.Errorf("got %+v, %+v", p, d.Spec.UpdateStrategy)
			}
		}},
	{"on delete", []string{elsewhere, "updateStrategy.type=OnDelete", "updateStrategy.rollingUpdate=null"}, func(t *testing.T, d *daemonSet) {
		if d.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType || d.Spec.UpdateStrategy.RollingUpdate != nil {
			t.Errorf("got %+v", d.Spec.UpdateStrategy)
		}
	}},
	{"resources and SELinux", []string{elsewhere, "resources.limits.memory=1Gi", "resources.requests.cpu=1", "seLinuxOptions.type=spc_t"}, func(t *testing.T, d *daemonSet) {
		c := d.Spec.Template.Spec.Containers[0]
		if c.Resources.Limits.Memory().String() != "1Gi" || c.Resources.Requests.Cpu().String() != "1" || c.Resources.Requests.Memory().String() != "100Mi" {
			t.Errorf("got %+v", c.Resources)
		}
		if o := d.Spec.Template.Spec.SecurityContext.SELinuxOptions; o == nil || o.Type != "spc_t" {
			t.Errorf("got %+v", o)
		}
	}},
	{"taint, metrics, more", []string{elsewhere, "startupTaint=fairlead.io/not-ready:NoSchedule", "metricsBindAddress=0.0.0.0:10249", "logLevel=4", "extraArgs={--iptables-compact,--protected-ports=22/tcp}"}, func(t *testing.T, d *daemonSet) {
		d.wantArgs(t, "--startup-taint=fairlead.io/not-ready:NoSchedule", "--metrics-bind-address=0.0.0.0:10249", "-v=4", "--iptables-compact", "--protected-ports=22/tcp")
		if !d.may("", "nodes", "patch") {
			t.Error("may not patch Nodes")
		}
	}},
}

func TestChartValues(t *testing.T) {
	for _, tc := range variants {
		t.Run(tc.name, func(t *testing.T) {
			d := theDaemonSet(t, chart(t, tc.values...))
			tc.check(t, d)
			if !d.may("", "services", "watch") || d.may("", "nodes", "patch") != d.hasArg("--startup-taint") {
				t.Errorf("may do more or less than it does: %+v", d.rules)
			}
		})
	}
}

// daemonSet is the DaemonSet, and what its pods may do in the API server.
type daemonSet struct {
	appsv1.DaemonSet
	rules []rbacv1.PolicyRule
}

func theDaemonSet(t *testing.T, objs []*unstructured.Unstructured) *daemonSet {
	t.Helper()
	d := &daemonSet{}
	role := &rbacv1.ClusterRole{}
	found := byName(objs)
	for name, into := range map[string]any{"DaemonSet fairlead": &d.DaemonSet, "ClusterRole fairlead": role} {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(found[name], into, true); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	d.rules = role.Rules
	return d
}

func (d *daemonSet) containers() []corev1.Container {
	return slices.Concat(d.Spec.Template.Spec.InitContainers, d.Spec.Template.Spec.Containers)
}

func (d *daemonSet) hasArg(flag string) bool {
	return slices.ContainsFunc(d.Spec.Template.Spec.Containers[0].Args, func(a string) bool { return a == flag || strings.HasPrefix(a, flag+"=") })
}

// wantArgs: all containers are told this.
func (d *daemonSet) wantArgs(t *testing.T, args ...string) {
	t.Helper()
	for _, c := range d.containers() {
		for _, arg := range args {
			if !slices.Contains(c.Args, arg) {
				t.Errorf("%s is told %q, want %s among it", c.Name, c.Args, arg)
			}
		}
	}
}

func (d *daemonSet) wantNoArgs(t *testing.T, flags ...string) {
	t.Helper()
	for _, flag := range flags {
		if d.hasArg(flag) {
			t.Errorf("told %s", flag)
		}
	}
}

func (d *daemonSet) env(name string) string {
	for _, e := range d.Spec.Template.Spec.Containers[0].Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}

func (d *daemonSet) may(group, resource, verb string) bool {
	return slices.ContainsFunc(d.rules, func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) && slices.Contains(r.Verbs, verb)
	})
}
