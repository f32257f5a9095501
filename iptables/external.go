// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"slices"
	"strconv"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/idiom"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// external renders what reaches the port from outside the cluster: external
// IPs, load balancer IPs and the node port.
func (w *portRenderer) external() {
	if !w.ExternallyAccessible() {
		return
	}
	served := w.Usable
	if w.ExternalTrafficLocal {
		served = len(w.LocalEndpoints) > 0
	}
	for _, ip := range w.ExternalIPs {
		w.externalAddress(ip, " external IP", externalChain(w.Name), served)
	}
	balancer := externalChain(w.Name)
	if w.restricted() {
		balancer = firewallChain(w.Name)
	}
	for _, ip := range w.LoadBalancerIPs {
		w.externalAddress(ip, " loadbalancer IP", balancer, served)
	}
	if w.NodePort != 0 {
		w.nodePort(served)
	}
	if w.Usable {
		w.externalTraffic(served)
		w.firewall()
	}
}

// externalAddress leads to the chain for external traffic. Without an endpoint
// of the policy the translation leaves the packet alone, and the filter refuses
// it.
func (w *portRenderer) externalAddress(ip netip.Addr, kind, chain string, served bool) {
	key := w.key(ip, w.Port)
	w.hold(translatedAddrs, key)
	if w.Usable {
		w.share(translatedAddrs, key, w.to(ip, w.Port, w.name+kind).Jump(chain))
	}
	if !served {
		comment, target := w.refusal()
		w.share(refusedExternal, key, w.to(ip, w.Port, comment).Jump(target))
	}
}

func (w *portRenderer) nodePort(served bool) {
	key := w.key(netip.Addr{}, w.NodePort)
	match := w.to(netip.Addr{}, w.NodePort, w.name)
	w.hold(translatedPorts, key)
	if w.Usable {
		w.share(translatedPorts, key, match.Jump(externalChain(w.Name)))
	}
	if !served {
		comment, target := w.refusal()
		match.Comment = comment
		match.More = idiom.ToNode + match.More
		w.share(refusedPorts, key, match.Jump(target))
	}
}

// externalTraffic renders the chain that all external traffic goes through.
// Under the policy Local the client's address stays, and the traffic of pods
// and of this node, which needs no way back to a client outside, may go to any
// endpoint, as if it had gone out to the load balancer and come in elsewhere.
func (w *portRenderer) externalTraffic(served bool) {
	chain, destinations := externalChain(w.Name), "traffic for "+w.name+" external destinations"
	if !w.ExternalTrafficLocal {
		w.add(chain, idiom.Spec{Comment: "masquerade " + destinations}.Jump(nat.MarkMasq))
		w.add(chain, idiom.Spec{}.Jump(serviceChain(w.Name)))
		return
	}
	for _, s := range w.pods().From(idiom.Spec{Comment: "pod " + destinations}) {
		w.add(chain, s.Jump(serviceChain(w.Name)))
	}
	local := idiom.Spec{More: "-m addrtype --src-type LOCAL "}
	local.Comment = "masquerade LOCAL " + destinations
	w.add(chain, local.Jump(nat.MarkMasq))
	local.Comment = "route LOCAL " + destinations
	w.add(chain, local.Jump(serviceChain(w.Name)))
	if served {
		w.add(chain, idiom.Spec{}.Jump(localChain(w.Name)))
	}
}

// restricted tells whether the load balancer's addresses of this family are
// for some sources only.
func (w *portRenderer) restricted() bool {
	all := slices.ContainsFunc(w.SourceRanges, func(p netip.Prefix) bool { return p.Bits() == 0 })
	return w.Restricted && !all && len(w.LoadBalancerIPs) > 0
}

// firewall renders the chain that admits the source ranges. What it does not
// admit is not translated, and then dropped by the filter table.
func (w *portRenderer) firewall() {
	if !w.restricted() {
		return
	}
	chain := firewallChain(w.Name)
	for _, r := range w.SourceRanges {
		w.add(chain, idiom.Spec{Src: r.Masked().String(), Comment: w.name + " loadbalancer IP"}.Jump(externalChain(w.Name)))
	}
	if w.nodeAdmitted() {
		// The node's own request to a load balancer's address that the node
		// itself has comes from that address.
		for _, ip := range w.LoadBalancerIPs {
			w.add(chain, idiom.Spec{Src: idiom.Host(ip), Comment: w.name + " loadbalancer IP"}.Jump(externalChain(w.Name)))
		}
	}
	w.add(chain, idiom.Spec{Comment: "other traffic to " + w.name + " will be dropped by " + proxyFirewall})
	for _, ip := range w.LoadBalancerIPs {
		w.share(guardedAddrs, w.key(ip, w.Port), w.to(ip, w.Port, w.name+" traffic not accepted by "+chain).Jump("DROP"))
	}
}

// nodeAdmitted tells whether a source range has the node's own address.
func (w *portRenderer) nodeAdmitted() bool {
	return slices.ContainsFunc(w.SourceRanges, func(r netip.Prefix) bool { return r.Contains(w.nodeIP) })
}

// healthCheck lets the load balancer reach the health check node port.
func (w *portRenderer) healthCheck() {
	if w.HealthCheckNodePort == 0 {
		return
	}
	key := dispatch.Key{Protocol: model.TCP, Port: w.HealthCheckNodePort}
	w.share(healthPorts, key, idiom.Spec{
		Proto: "tcp", Comment: w.name + " health check node port",
		More: "-m tcp --dport " + strconv.Itoa(int(w.HealthCheckNodePort)) + " ",
	}.Jump("ACCEPT"))
}
