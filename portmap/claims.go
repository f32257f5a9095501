// SPDX-License-Identifier: Apache-2.0

// Package portmap leads ports of the node to its pods: host ports. Which pod has
// which port is decided from all that claim it, the same way whatever came first, and
// rendered into rules, a chain for each host port.
//
// A packet for an address of the node goes KUBE-HOSTPORTS (which host port) →
// KUBE-HP-… (translate to the pod), after all that is of Services.
package portmap

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"fairlead/proxier/model"
)

// Port is a port of the node.
type Port struct {
	Protocol model.Protocol
	Number   uint16
}

// String returns something like "8080/tcp".
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol.Lower()) }

// Mapping is a host port that leads to a pod.
type Mapping struct {
	Pod model.ObjectKey
	UID string
	Port
	// HostIP is the node's address, invalid for all.
	HostIP netip.Addr
	// To is the pod's address and port.
	To netip.AddrPort
	// Except are the addresses on which the port is a Service's, where it is on all.
	Except []netip.Addr
}

func (m Mapping) equal(o Mapping) bool {
	return m.Pod == o.Pod && m.UID == o.UID && m.Port == o.Port && m.HostIP == o.HostIP && m.To == o.To && slices.Equal(m.Except, o.Except)
}

// Refused is a host port that does not lead to the pod that claims it.
type Refused struct {
	Pod *model.Pod
	Port
	HostIP netip.Addr
	Reason string
}

// Rules of the node that decide about claims.
type rules struct {
	family model.Family
	// localhost and localhostNodePorts tell what answers on 127.0.0.1.
	localhost, localhostNodePorts bool
	protected                     map[Port]string
}

// claim is a host port that a pod asks for.
type claim struct {
	Mapping
	pod   *model.Pod
	index int
}

// before orders claims to one port: the pod that has been on the node for longest
// comes first.
func (c claim) before(o claim) int {
	return cmp.Or(c.pod.Started.Compare(o.pod.Started), cmp.Compare(c.UID, o.UID),
		cmp.Compare(c.Pod.String(), o.Pod.String()), cmp.Compare(c.index, o.index))
}

// overlaps tells whether there are packets that both claims are for.
func (c claim) overlaps(o claim) bool {
	return !c.HostIP.IsValid() || !o.HostIP.IsValid() || c.HostIP == o.HostIP
}

// claims are what all pods ask for, in one family.
type claims struct {
	rules
	pods map[model.ObjectKey]*model.Pod
	// byPort and byAddr have the pods' claims by port, and the pods by address.
	byPort   map[Port]map[model.ObjectKey][]claim
	byAddr   map[netip.Addr]map[model.ObjectKey]*model.Pod
	services services
	node     Node
	// mapped and refused are what was decided of each port.
	mapped  map[Port][]Mapping
	refused map[Port][]Refused
	// sums are how many of each there are.
	sums struct{ mapped, refused int }
}

func newClaims(r rules) *claims {
	return &claims{
		rules: r, pods: map[model.ObjectKey]*model.Pod{},
		byPort: map[Port]map[model.ObjectKey][]claim{},
		byAddr: map[netip.Addr]map[model.ObjectKey]*model.Pod{}, services: newServices(),
		mapped: map[Port][]Mapping{}, refused: map[Port][]Refused{},
	}
}

// decision is what has changed.
type decision struct {
	gone, fresh []Mapping
	refused     []Refused // only those that are new
}

// update takes over objects and what is known of the node, and decides about the ports
// that this concerns.
func (c *claims) update(objs Objects, node Node) decision {
	touched := map[Port]bool{}
	c.setNode(node, touched)
	for name, port := range objs.Services {
		c.services.set(name, port, func(p Port) {
			if len(c.byPort[p]) > 0 {
				touched[p] = true
			}
		})
	}
	for key, pod := range objs.Pods {
		c.remove(key, touched)
		if pod != nil && pod.IP(c.family).IsValid() {
			c.add(key, pod, touched)
		}
	}
	var out decision
	for _, p := range slices.SortedFunc(maps.Keys(touched), func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Number, b.Number))
	}) {
		c.decide(p, &out)
	}
	return out
}

func (c *claims) setNode(node Node, touched map[Port]bool) {
	old := c.node
	c.node = node.clone()
	if !old.equal(node) {
		for p := range c.byPort {
			touched[p] = true
		}
	}
	for _, lists := range [][2]map[netip.Addr]string{{old.Astray, node.Astray}, {node.Astray, old.Astray}} {
		for addr, is := range lists[0] {
			if lists[1][addr] != is {
				c.touchAddr(addr, touched)
			}
		}
	}
}

func (c *claims) remove(key model.ObjectKey, touched map[Port]bool) {
	old := c.pods[key]
	if old == nil {
		return
	}
	delete(c.pods, key)
	for _, h := range old.HostPorts {
		p := Port{h.Protocol, h.HostPort}
		if delete(c.byPort[p], key); len(c.byPort[p]) == 0 {
			delete(c.byPort, p)
		}
		touched[p] = true
	}
	addr := old.IP(c.family)
	delete(c.byAddr[addr], key)
	c.touchAddr(addr, touched)
	if len(c.byAddr[addr]) == 0 {
		delete(c.byAddr, addr)
	}
}

func (c *claims) add(key model.ObjectKey, pod *model.Pod, touched map[Port]bool) {
	c.pods[key] = pod
	addr := pod.IP(c.family)
	if c.byAddr[addr] == nil {
		c.byAddr[addr] = map[model.ObjectKey]*model.Pod{}
	}
	c.touchAddr(addr, touched)
	c.byAddr[addr][key] = pod
	for i, h := range pod.HostPorts {
		if h.HostIP.IsValid() && model.FamilyOf(h.HostIP) != c.family {
			continue
		}
		p := Port{h.Protocol, h.HostPort}
		m := Mapping{Pod: key, UID: pod.UID, Port: p, To: netip.AddrPortFrom(addr, h.ContainerPort)}
		if h.HostIP.IsValid() && !h.HostIP.IsUnspecified() {
			m.HostIP = h.HostIP
		}
		if c.byPort[p] == nil {
			c.byPort[p] = map[model.ObjectKey][]claim{}
		}
		c.byPort[p][key] = append(c.byPort[p][key], claim{m, pod, i})
		touched[p] = true
	}
}

// touchAddr touches all ports of the pods with an address.
func (c *claims) touchAddr(addr netip.Addr, touched map[Port]bool) {
	for _, pod := range c.byAddr[addr] {
		for _, h := range pod.HostPorts {
			touched[Port{h.Protocol, h.HostPort}] = true
		}
	}
}

// decide decides which of the claims to a port are met.
func (c *claims) decide(p Port, out *decision) {
	var all, met []claim
	for _, of := range c.byPort[p] {
		all = append(all, of...)
	}
	slices.SortFunc(all, claim.before)
	var mapped []Mapping
	var refused []Refused
	for _, cl := range all {
		if reason := c.refuse(cl, met); reason != "" {
			refused = append(refused, Refused{Pod: cl.pod, Port: p, HostIP: cl.HostIP, Reason: reason})
			continue
		}
		met = append(met, cl)
		m := cl.Mapping
		if !m.HostIP.IsValid() {
			m.Except = c.except(p)
		}
		for _, a := range m.Except {
			reason := fmt.Sprintf("is %s on %s", c.service(p, a), a)
			refused = append(refused, Refused{Pod: cl.pod, Port: p, HostIP: a, Reason: reason})
		}
		mapped = append(mapped, m)
	}
	for _, m := range c.mapped[p] {
		if !slices.ContainsFunc(mapped, m.equal) {
			out.gone = append(out.gone, m)
		}
	}
	for _, m := range mapped {
		if !slices.ContainsFunc(c.mapped[p], m.equal) {
			out.fresh = append(out.fresh, m)
		}
	}
	for _, r := range refused {
		known := func(o Refused) bool {
			return o.Pod.Key == r.Pod.Key && o.Pod.UID == r.Pod.UID && o.HostIP == r.HostIP && o.Reason == r.Reason
		}
		if !slices.ContainsFunc(c.refused[p], known) {
			out.refused = append(out.refused, r)
		}
	}
	c.sums.mapped += len(mapped) - len(c.mapped[p])
	c.sums.refused += len(refused) - len(c.refused[p])
	keep(c.mapped, p, mapped)
	keep(c.refused, p, refused)
}

func keep[T any](m map[Port][]T, p Port, list []T) {
	if len(list) == 0 {
		delete(m, p)
	} else {
		m[p] = list
	}
}

// refuse returns why a claim is not met, beside those that are; empty if it is.
func (c *claims) refuse(cl claim, met []claim) string {
	switch ip := cl.HostIP; {
	case c.protected[cl.Port] != "":
		return "is " + c.protected[cl.Port]
	case ip.IsValid() && ip.IsLoopback() && !c.localhost:
		return fmt.Sprintf("is on %s, where host ports are off; start the agent with --host-ports-localhost", ip)
	case ip.IsValid() && !ip.IsLoopback() && !slices.Contains(c.node.Addrs, ip):
		return fmt.Sprintf("is on %s, which the node does not have", ip)
	}
	if s := c.service(cl.Port, cl.HostIP); s != "" {
		return "is " + s
	}
	if is := c.node.Astray[cl.To.Addr()]; is != "" {
		return fmt.Sprintf("is for a pod whose address %s %s", cl.To.Addr(), is)
	}
	if now := c.holder(cl.To.Addr()); now.Key != cl.Pod {
		return fmt.Sprintf("is for a pod whose address %s is that of pod %s by now", cl.To.Addr(), now.Key)
	}
	for _, o := range met {
		switch {
		case !cl.overlaps(o):
		case o.Pod != cl.Pod:
			return fmt.Sprintf("has been that of pod %s for longer", o.Pod)
		case o.HostIP == cl.HostIP: // one is unspecified, the other absent
			return "is the same as an earlier one of the pod"
		}
	}
	return ""
}

// holder returns the pod that has an address, of several that show it: the one whose
// network was made last. The status of the others is of before a restart of the node.
func (c *claims) holder(addr netip.Addr) *model.Pod {
	var last *model.Pod
	for _, p := range c.byAddr[addr] {
		if last == nil || cmp.Or(p.Wired.Compare(last.Wired), p.Started.Compare(last.Started),
			cmp.Compare(p.UID, last.UID), cmp.Compare(p.Key.String(), last.Key.String())) > 0 {
			last = p
		}
	}
	return last
}
