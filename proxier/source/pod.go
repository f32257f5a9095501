// SPDX-License-Identifier: Apache-2.0

package source

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead/proxier/model"
)

// Reasons for which a host port is refused.
const (
	reasonSameHostPort = "is the host port of an earlier port of the same address and protocol"
	reasonNotHost      = "is no address that a port of a node can be on"
	reasonLoopback6    = "is the loopback address of IPv6, from which packets cannot leave the node"
)

// TranslatePod returns a Pod as the model has it. ok is false where it has no address of
// its own: it is not on the node of that name, or in the node's own network, has none
// yet, or none any more, or its name is refused. One without host ports tells whose an
// address is, and one that is being deleted is like any other: its containers have time
// to end.
func TranslatePod(pod *corev1.Pod, nodeName string) (p *model.Pod, ok bool, refused []Refusal) {
	if pod.Spec.NodeName != nodeName || pod.Spec.HostNetwork ||
		pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil, false, nil
	}
	r := newRefusals(KindPod, pod.Namespace, pod.Name)
	if !isLabel(pod.Namespace) {
		r.add("metadata.namespace", pod.Namespace, reasonLabel)
		return nil, false, r.list
	}
	if !isSubdomain(pod.Name) {
		r.add("metadata.name", pod.Name, reasonSubdomain)
		return nil, false, r.list
	}
	ports := hostPorts(&pod.Spec, r)
	ips := podIPs(&pod.Status, r)
	if len(ips) == 0 || unwired(pod) {
		return nil, false, r.list
	}
	return &model.Pod{
		Key: KeyOf(pod.Namespace, pod.Name), UID: uid(string(pod.UID)),
		IPs: ips, HostPorts: ports, Started: started(pod), Wired: wired(pod),
	}, true, r.list
}

// uid returns what tells a Pod from others that have had its name. From a file it may
// be any text, which then stands for itself by its hash.
func uid(s string) string {
	if s == "" || isSubdomain(s) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// started returns when kubelet took the pod on, or else when it was made.
func started(pod *corev1.Pod) time.Time {
	if t := pod.Status.StartTime; t != nil {
		return t.Time
	}
	return pod.CreationTimestamp.Time
}

// unwired tells whether a pod's network is not made, as its status says since Kubernetes
// 1.29: after a restart of the node its addresses are those that it had before.
func unwired(pod *corev1.Pod) bool {
	c := networkCondition(pod)
	return c != nil && c.Status == corev1.ConditionFalse
}

// networkCondition returns what a pod's status says of its network, nil for nothing.
func networkCondition(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReadyToStartContainers {
			return c
		}
	}
	return nil
}

// wired returns when the pod's network was last made, as far as its status says that,
// or else when it started.
func wired(pod *corev1.Pod) time.Time {
	if c := networkCondition(pod); c != nil {
		return c.LastTransitionTime.Time
	}
	return started(pod)
}

// podIPs returns the valid addresses of a pod, at most one per family.
func podIPs(status *corev1.PodStatus, r *refusals) []netip.Addr {
	if len(status.PodIPs) == 0 {
		if status.PodIP == "" {
			return nil
		}
		return appendClusterIP(nil, "status.podIP", status.PodIP, r)
	}
	var ips []netip.Addr
	for i := range bounded(r, "status.podIPs", status.PodIPs, maxNodeAddrs) {
		ips = appendClusterIP(ips, fmt.Sprintf("status.podIPs[%d]", i), status.PodIPs[i].IP, r)
	}
	return ips
}

// hostPorts returns the host ports of the containers that run as long as the pod
// does: those of init containers only if they are restarted, as sidecars are.
func hostPorts(spec *corev1.PodSpec, r *refusals) []model.HostPort {
	l := &hostPortList{refused: r}
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			l.addAll(fmt.Sprintf("spec.initContainers[%d].ports", i), c.Ports)
		}
	}
	for i := range spec.Containers {
		l.addAll(fmt.Sprintf("spec.containers[%d].ports", i), spec.Containers[i].Ports)
	}
	return l.ports
}

// hostPortList collects the host ports of a pod, of which no two may be the same.
type hostPortList struct {
	refused *refusals
	ports   []model.HostPort
	seen    map[model.HostPort]bool // without the container's port
}

func (l *hostPortList) addAll(field string, ports []corev1.ContainerPort) {
	for i := range bounded(l.refused, field, ports, max(maxPorts-len(l.ports), 0)) {
		if p := &ports[i]; p.HostPort != 0 || p.HostIP != "" {
			l.add(fmt.Sprintf("%s[%d]", field, i), p)
		}
	}
}

func (l *hostPortList) add(field string, in *corev1.ContainerPort) {
	refuse := func(name, value, reason string) { l.refused.add(field+"."+name, value, reason) }
	proto := model.Protocol(in.Protocol)
	switch proto {
	case "":
		proto = model.TCP
	case model.TCP, model.UDP, model.SCTP:
	default:
		refuse("protocol", string(in.Protocol), reasonProtocol)
		return
	}
	if in.HostPort < 1 || in.HostPort > 65535 {
		refuse("hostPort", strconv.Itoa(int(in.HostPort)), reasonPort)
		return
	}
	if in.ContainerPort < 1 || in.ContainerPort > 65535 {
		refuse("containerPort", strconv.Itoa(int(in.ContainerPort)), reasonPort)
		return
	}
	ip, reason := parseHostIP(in.HostIP)
	if reason != "" {
		refuse("hostIP", in.HostIP, reason)
		return
	}
	p := model.HostPort{Protocol: model.Protocol(intern(string(proto))), HostPort: uint16(in.HostPort), HostIP: ip}
	if l.seen[p] {
		refuse("hostPort", strconv.Itoa(int(in.HostPort)), reasonSameHostPort)
		return
	}
	if l.seen == nil {
		l.seen = map[model.HostPort]bool{}
	}
	l.seen[p] = true
	p.ContainerPort = uint16(in.ContainerPort)
	l.ports = append(l.ports, p)
}

// parseHostIP returns the address that a host port is on, invalid for none. Whether
// the node has it is not known here.
func parseHostIP(s string) (addr netip.Addr, reason string) {
	if s == "" {
		return netip.Addr{}, ""
	}
	addr, ok := parseAddr(s)
	switch {
	case !ok:
		return netip.Addr{}, reasonNoAddress
	case addr.IsUnspecified(), addr.Is4() && addr.IsLoopback():
		return addr, ""
	case addr.IsLoopback():
		return netip.Addr{}, reasonLoopback6
	case addr.Zone() != "":
		return netip.Addr{}, reasonZone
	case addr.Is4In6():
		return netip.Addr{}, reasonMapped
	case addr.IsMulticast(), addr == broadcast, compatible(addr), addr.Is6() && addr.IsLinkLocalUnicast():
		return netip.Addr{}, reasonNotHost
	}
	return addr, ""
}

// SamePod reports whether a and b mean the same to a consumer; nil stands for no
// object.
func SamePod(a, b *model.Pod) bool {
	if a == b || a == nil || b == nil {
		return a == b
	}
	return a.Key == b.Key && a.UID == b.UID && slices.Equal(a.IPs, b.IPs) && slices.Equal(a.HostPorts, b.HostPorts) &&
		a.Started.Equal(b.Started) && a.Wired.Equal(b.Wired)
}
