// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead/proxier/model"
)

// webPod returns a valid Pod with one host port, changed by each of the functions.
func webPod(changes ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.1", UID: "u"},
		Spec: corev1.PodSpec{NodeName: "here", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolTCP},
		}}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending, PodIP: "10.244.0.1", PodIPs: []corev1.PodIP{{IP: "10.244.0.1"}, {IP: "fd00::1"}}},
	}
	for _, change := range changes {
		change(p)
	}
	return p
}

// withHostPorts gives a Pod's container these ports.
func withHostPorts(ports ...corev1.ContainerPort) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Ports = ports }
}

func TestTranslatePod(t *testing.T) {
	tcp := func(host, container uint16) model.HostPort {
		return model.HostPort{Protocol: model.TCP, HostPort: host, ContainerPort: container}
	}
	want := func(ports ...model.HostPort) *model.Pod {
		return &model.Pod{Key: model.ObjectKey{Namespace: "shop", Name: "web.1"}, UID: "u", IPs: addrs("10.244.0.1", "fd00::1"), HostPorts: ports}
	}
	timed := want(tcp(8080, 80))
	timed.Started, timed.Wired = time.Unix(2000, 0), time.Unix(3000, 0)
	made := want(tcp(8080, 80))
	made.Started, made.Wired = time.Unix(1000, 0), time.Unix(1000, 0)
	one := want(tcp(8080, 80))
	one.IPs = addrs("10.244.0.1")
	always := corev1.ContainerRestartPolicyAlways
	on := func(ip string) model.HostPort {
		h := tcp(8080, 80)
		h.HostIP = addrs(ip)[0]
		return h
	}
	for _, tt := range []struct {
		name    string
		in      *corev1.Pod
		want    *model.Pod
		refused []string
	}{
		{name: "pending, with addresses", in: webPod(), want: want(tcp(8080, 80))},
		{name: "being deleted", in: webPod(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }), want: want(tcp(8080, 80))},
		{name: "podIP alone", in: webPod(func(p *corev1.Pod) { p.Status.PodIPs = nil }), want: one},
		{name: "succeeded", in: webPod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })},
		{name: "failed", in: webPod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })},
		{name: "elsewhere", in: webPod(func(p *corev1.Pod) { p.Spec.NodeName = "there" })},
		{name: "in the node's network", in: webPod(func(p *corev1.Pod) { p.Spec.HostNetwork = true })},
		{name: "no address yet", in: webPod(func(p *corev1.Pod) { p.Status.PodIPs, p.Status.PodIP = nil, "" })},
		{name: "no host ports: whose the address is", in: webPod(withHostPorts(corev1.ContainerPort{ContainerPort: 80})), want: want()},
		{
			name: "its network not made again, after a restart of the node", in: webPod(func(p *corev1.Pod) {
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}}
			}),
		},
		{
			name: "times", in: webPod(func(p *corev1.Pod) {
				start := metav1.Unix(2000, 0)
				p.CreationTimestamp, p.Status.StartTime = metav1.Unix(1000, 0), &start
				p.Status.Conditions = []corev1.PodCondition{
					{Type: corev1.PodReady, LastTransitionTime: metav1.Unix(4000, 0)},
					{Type: corev1.PodReadyToStartContainers, LastTransitionTime: metav1.Unix(3000, 0)},
				}
			}), want: timed,
		},
		{name: "made, and not started", in: webPod(func(p *corev1.Pod) { p.CreationTimestamp = metav1.Unix(1000, 0) }), want: made},
		{
			name: "of sidecars, and of no other init container", in: webPod(func(p *corev1.Pod) {
				port := func(n int32) []corev1.ContainerPort { return []corev1.ContainerPort{{ContainerPort: n, HostPort: n}} }
				p.Spec.InitContainers = []corev1.Container{{Ports: port(1)}, {Ports: port(2), RestartPolicy: &always}}
			}), want: want(tcp(2, 2), tcp(8080, 80)),
		},
		{
			name: "every protocol, one number", in: webPod(withHostPorts(
				corev1.ContainerPort{ContainerPort: 53, HostPort: 53, Protocol: corev1.ProtocolUDP},
				corev1.ContainerPort{ContainerPort: 53, HostPort: 53, Protocol: corev1.ProtocolSCTP},
				corev1.ContainerPort{ContainerPort: 54, HostPort: 53})),
			want: want(model.HostPort{Protocol: model.UDP, HostPort: 53, ContainerPort: 53},
				model.HostPort{Protocol: model.SCTP, HostPort: 53, ContainerPort: 53}, tcp(53, 54)),
		},
		{name: "an address", in: webPod(withHostPorts(corev1.ContainerPort{ContainerPort: 80, HostPort: 8080, HostIP: "192.0.2.1"})), want: want(on("192.0.2.1"))},
		{name: "all of a family", in: webPod(withHostPorts(corev1.ContainerPort{ContainerPort: 80, HostPort: 8080, HostIP: "::"})), want: want(on("::"))},
		{name: "localhost", in: webPod(withHostPorts(corev1.ContainerPort{ContainerPort: 80, HostPort: 8080, HostIP: "127.0.0.1"})), want: want(on("127.0.0.1"))},
		{
			name: "bad ones do not take the good one along", in: webPod(withHostPorts(
				corev1.ContainerPort{ContainerPort: 80, HostPort: 65536},
				corev1.ContainerPort{ContainerPort: 80, HostPort: -1},
				corev1.ContainerPort{ContainerPort: 80, HostIP: "192.0.2.1"},
				corev1.ContainerPort{ContainerPort: 0, HostPort: 81},
				corev1.ContainerPort{ContainerPort: 80, HostPort: 82, Protocol: "ICMP"},
				corev1.ContainerPort{ContainerPort: 80, HostPort: 83, HostIP: "::1"},
				corev1.ContainerPort{ContainerPort: 80, HostPort: 84, HostIP: "224.0.0.1"},
				corev1.ContainerPort{ContainerPort: 80, HostPort: 85, HostIP: "1.2.3.4 -j ACCEPT"},
				corev1.ContainerPort{ContainerPort: 80, HostPort: 8080},
				corev1.ContainerPort{ContainerPort: 81, HostPort: 8080})),
			want: want(tcp(8080, 80)),
			refused: []string{
				`Pod "shop/web.1": spec.containers[0].ports[0].hostPort "65536": ` + reasonPort,
				`Pod "shop/web.1": spec.containers[0].ports[1].hostPort "-1": ` + reasonPort,
				`Pod "shop/web.1": spec.containers[0].ports[2].hostPort "0": ` + reasonPort,
				`Pod "shop/web.1": spec.containers[0].ports[3].containerPort "0": ` + reasonPort,
				`Pod "shop/web.1": spec.containers[0].ports[4].protocol "ICMP": ` + reasonProtocol,
				`Pod "shop/web.1": spec.containers[0].ports[5].hostIP "::1": ` + reasonLoopback6,
				`Pod "shop/web.1": spec.containers[0].ports[6].hostIP "224.0.0.1": ` + reasonNotHost,
				`Pod "shop/web.1": spec.containers[0].ports[7].hostIP "1.2.3.4 -j ACCEPT": ` + reasonNoAddress,
				`Pod "shop/web.1": spec.containers[0].ports[9].hostPort "8080": ` + reasonSameHostPort,
			},
		},
		{
			name: "a bad address", in: webPod(func(p *corev1.Pod) { p.Status.PodIPs[1].IP = "127.0.0.1" }), want: one,
			refused: []string{`Pod "shop/web.1": status.podIPs[1] "127.0.0.1": ` + reasonLoopback},
		},
		{
			name: "hostile name", in: webPod(func(p *corev1.Pod) { p.Name = "a\" -j ACCEPT" }),
			refused: []string{`Pod "shop/a\" -j ACCEPT": metadata.name "a\" -j ACCEPT": ` + reasonSubdomain},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok, refused := TranslatePod(tt.in, "here")
			if ok != (tt.want != nil) {
				t.Errorf("ok = %v", ok)
			}
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.refused, lines(refused)); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

// TestListsOfPodsAreBounded: a Pod has no more host ports than a Service has ports.
func TestListsOfPodsAreBounded(t *testing.T) {
	var ports []corev1.ContainerPort
	for i := range maxPorts + 1 {
		ports = append(ports, corev1.ContainerPort{ContainerPort: 80, HostPort: int32(1 + i)})
	}
	got, ok, refused := TranslatePod(webPod(withHostPorts(ports...)), "here")
	want := []string{fmt.Sprintf(`Pod "shop/web.1": spec.containers[0].ports "%d elements": is more than %d, the last 1 are left out`, maxPorts+1, maxPorts)}
	if diff := cmp.Diff(want, lines(refused)); diff != "" || !ok || len(got.HostPorts) != maxPorts {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestSamePod: every field counts.
func TestSamePod(t *testing.T) {
	base, _, _ := TranslatePod(webPod(), "here")
	for name, change := range map[string]func(*model.Pod){
		"uid": func(p *model.Pod) { p.UID = "v" }, "key": func(p *model.Pod) { p.Key.Name = "v" },
		"addresses": func(p *model.Pod) { p.IPs = p.IPs[:1] }, "ports": func(p *model.Pod) { p.HostPorts = append(p.HostPorts, p.HostPorts[0]) },
		"started": func(p *model.Pod) { p.Started = time.Unix(9, 0) }, "wired": func(p *model.Pod) { p.Wired = time.Unix(9, 0) },
	} {
		other := *base
		change(&other)
		if SamePod(base, &other) {
			t.Errorf("%s does not count", name)
		}
	}
	other := *base
	if !SamePod(base, &other) || !SamePod(nil, nil) || SamePod(base, nil) {
		t.Error("equal ones are not the same, or nil is")
	}
}
