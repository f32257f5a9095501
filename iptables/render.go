// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"strconv"
	"time"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/idiom"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// RenderConfig is what the rules depend on besides the Services.
type RenderConfig struct {
	Family model.Family
	// PodCIDRs and PodInterface tell the traffic of pods by its source or by
	// the interface that it arrives on, of which "+" at the end stands for any
	// ending. With neither, nobody is known to be a pod.
	PodCIDRs     []netip.Prefix
	PodInterface string
	// NodePodCIDRs takes the pod CIDRs of this node from its Node object, in
	// the place of PodCIDRs.
	NodePodCIDRs bool
	// MasqueradeAll masquerades all traffic to cluster IPs.
	MasqueradeAll bool
	// MasqueradeBit is the bit of the packet mark, 0 to 31, that says that a
	// packet is to be masqueraded.
	MasqueradeBit int
	// MasqueradeNeighbours masquerades what pods of this node send to each
	// other through a Service: where packets between two ports of one bridge do
	// not pass the rules, the answer would not be translated back.
	MasqueradeNeighbours bool
	// Compact translates in the chains that choose, for Services without session
	// affinity: their endpoints have no chains. Which endpoint reaches itself the
	// set nat.LoopBack tells. It is not for MasqueradeNeighbours, which goes by the
	// endpoint.
	Compact bool
	// KeepInvalid forwards packets that conntrack finds invalid, which
	// otherwise are dropped.
	KeepInvalid bool
	// InvalidCounter is the nfacct object that counts what is dropped because
	// it is invalid, empty for none. The kernel takes no rule that names one
	// that is not there.
	InvalidCounter string
	// LocalhostNodePorts lets node ports answer on 127.0.0.1.
	LocalhostNodePorts bool
	// LocalhostHostPorts is set where others let host ports do so.
	LocalhostHostPorts bool
}

// renderer turns Services into rules. It is pure.
type renderer struct {
	RenderConfig
	// nodeIP is the node's own address; it may be invalid.
	nodeIP netip.Addr
	// bare leaves out comments in the chains of Services and endpoints.
	bare bool
}

// newRenderer brings the configuration into the form in which it can be
// written into rules.
func newRenderer(cfg RenderConfig) renderer {
	cfg.PodCIDRs = idiom.Writable(cfg.PodCIDRs)
	return renderer{RenderConfig: cfg}
}

// pods tells the traffic of pods.
func (r renderer) pods() idiom.Pods {
	return idiom.Pods{CIDRs: r.PodCIDRs, Interface: r.PodInterface}
}

// portRenderer is the work on one port.
type portRenderer struct {
	renderer
	*model.ServicePort
	portText
	name, proto string // as comments and matches have them
	// sets are the sets of client addresses that there are.
	sets map[string]bool
	// patient are the chains that choose among endpoints.
	patient map[string]bool
}

// port renders one port of a Service. For session affinity, an endpoint whose
// chain is among sets remembers its clients in the set of that name, any other
// in a list of xt_recent, which has room for 100. Nothing of s is kept.
func (r renderer) port(p *model.ServicePort, sets map[string]bool, s *scratch) portRules {
	s.clear()
	w := &portRenderer{
		renderer: r, ServicePort: p, name: p.Name.String(), proto: p.Name.Protocol.Lower(),
		sets: sets, patient: map[string]bool{}, portText: portText{scratch: s},
	}
	w.internal()
	w.external()
	w.healthCheck()
	if p.UsesCluster() {
		w.choice(serviceChain(p.Name), p.Endpoints)
	}
	if p.UsesLocal() {
		w.choice(localChain(p.Name), p.LocalEndpoints)
	}
	out := w.portRules(idiom.UnitOf(p.Name), w.patient)
	out.sets = sets
	return out
}

// key returns what is for a port of an address, invalid for any address.
func (w *portRenderer) key(ip netip.Addr, port uint16) dispatch.Key {
	return dispatch.Key{Addr: ip, Protocol: w.Name.Protocol, Port: port}
}

// to matches the same.
func (w *portRenderer) to(ip netip.Addr, port uint16, comment string) idiom.Spec {
	s := idiom.To(ip, w.Name.Protocol, port)
	s.Comment = comment
	return s
}

// refusal returns what becomes of traffic under a policy that has no endpoint
// to offer: a Service without any endpoint rejects, one that has some on other
// nodes drops.
func (w *portRenderer) refusal() (comment, target string) {
	if w.Usable {
		return w.name + " has no local endpoints", "DROP"
	}
	if w.Family == model.IPv6 {
		return w.name + " has no endpoints", "REJECT --reject-with icmp6-port-unreachable"
	}
	return w.name + " has no endpoints", "REJECT --reject-with icmp-port-unreachable"
}

// internal renders the cluster IP.
func (w *portRenderer) internal() {
	chain, served := serviceChain(w.Name), w.Usable
	if w.InternalTrafficLocal {
		chain, served = localChain(w.Name), len(w.LocalEndpoints) > 0
	}
	key := w.key(w.ClusterIP, w.Port)
	if !served {
		comment, target := w.refusal()
		w.share(refusedClusterIP, key, w.to(w.ClusterIP, w.Port, comment).Jump(target))
		w.hold(translatedAddrs, key)
		return
	}
	match := w.to(w.ClusterIP, w.Port, w.name+" cluster IP")
	w.share(translatedAddrs, key, match.Jump(chain))
	if w.MasqueradeAll {
		w.add(chain, match.Jump(nat.MarkMasq))
	} else if s, ok := w.pods().NotFrom(match); ok {
		w.add(chain, s)
	}
}

// choice renders the chain that chooses one of the endpoints at random, and
// theirs. Clients with session affinity go first to where they were before.
func (w *portRenderer) choice(chain string, eps []model.Endpoint) {
	if w.AffinityTimeout > 0 {
		for _, ep := range eps {
			target := w.endpointChain(ep.AddrPort)
			w.add(chain, idiom.Spec{Comment: w.toEndpoint(ep), More: w.remembers(target)}.Jump(target))
		}
	}
	if len(eps) > groupAbove {
		w.groups(chain, eps)
	} else {
		w.oneOf(chain, eps)
	}
	if w.compacts(w.ServicePort) {
		return
	}
	for _, ep := range eps {
		w.endpoint(ep)
	}
}

// compacts tells whether the endpoints of a port have no chains.
func (r renderer) compacts(p *model.ServicePort) bool { return r.Compact && p.AffinityTimeout == 0 }

// oneOf renders the rules that lead to one of the endpoints, or translate to it.
func (w *portRenderer) oneOf(chain string, eps []model.Endpoint) {
	w.patient[chain] = true
	compact := w.compacts(w.ServicePort)
	for i, ep := range eps {
		s := idiom.Spec{Comment: w.toEndpoint(ep)}
		if n := len(eps) - i; n > 1 {
			s.More = idiom.OneOf(1, n)
		}
		if compact {
			s.Proto = w.proto
			w.add(chain, s.Jump(translateTo(ep)))
		} else {
			w.add(chain, s.Jump(w.endpointChain(ep.AddrPort)))
		}
	}
}

func translateTo(ep model.Endpoint) string { return "DNAT --to-destination " + ep.AddrPort.String() }

const (
	// groupAbove is how many endpoints a chain chooses among at most: a packet
	// walks half of its rules.
	groupAbove = 128
	// groupSize is how many endpoints a group is meant for, and maxGroups how
	// many groups there are at most: chain names have room for two digits.
	groupSize, maxGroups = 32, 64
)

// groups renders a chain that chooses a group of endpoints, and theirs, which
// choose one of the group. In which group an endpoint is depends on its address,
// so that one that comes or goes concerns its group alone.
func (w *portRenderer) groups(chain string, eps []model.Endpoint) {
	n := 1
	for n < maxGroups && n*groupSize < len(eps) {
		n *= 2
	}
	groups := make([][]model.Endpoint, n)
	for _, ep := range eps {
		h := fnv.New32a()
		raw, _ := ep.AddrPort.MarshalBinary()
		h.Write(raw)
		i := h.Sum32() % uint32(n)
		groups[i] = append(groups[i], ep)
	}
	w.patient[chain] = true
	left := len(eps)
	for i, group := range groups {
		if len(group) == 0 {
			continue
		}
		s := idiom.Spec{}
		if len(group) < left {
			s.More = idiom.OneOf(len(group), left)
		}
		left -= len(group)
		name := fmt.Sprintf("%s/%02d", chain, i)
		w.add(chain, s.Jump(name))
		w.oneOf(name, group)
	}
}

// remark returns the comment of a rule that only its Service's chains lead to.
// Where there are many, none has one.
func (w *portRenderer) remark(text string) string {
	if w.bare {
		return ""
	}
	return text
}

func (w *portRenderer) toEndpoint(ep model.Endpoint) string {
	if w.bare {
		return ""
	}
	return w.name + " -> " + ep.AddrPort.String()
}

// endpointChain returns the name of an endpoint's chain.
func (w *portRenderer) endpointChain(ep netip.AddrPort) string {
	name, ok := w.chains[ep]
	if !ok {
		name = endpointChain(w.Name, ep)
		w.chains[ep] = name
	}
	return name
}

// endpoint renders the chain that translates to an endpoint. An endpoint that
// reaches itself through its Service must see the node's address, or it would
// answer itself directly.
func (w *portRenderer) endpoint(e model.Endpoint) {
	ep := e.AddrPort
	chain := w.endpointChain(ep)
	if w.has(chain) {
		return // it serves both policies
	}
	comment := w.remark(w.name)
	w.add(chain, idiom.Spec{Src: idiom.Host(ep.Addr()), Comment: comment}.Jump(nat.MarkMasq))
	if w.MasqueradeNeighbours && e.Local {
		for _, s := range w.pods().From(idiom.Spec{Comment: w.remark(w.name + " on this node")}) {
			w.add(chain, s.Jump(nat.MarkMasq))
		}
	}
	translate := idiom.Spec{Proto: w.proto, Comment: comment, More: "-m " + w.proto + " "}
	if w.sets[chain] {
		w.add(chain, idiom.Spec{Comment: comment}.Jump(addToSet(chain, w.AffinityTimeout)))
	} else if w.AffinityTimeout > 0 {
		translate.More = w.recent(chain, "--set") + translate.More
	}
	w.add(chain, translate.Jump(translateTo(e)))
}

// remembers matches the clients that an endpoint's chain remembers.
func (w *portRenderer) remembers(chain string) string {
	if w.sets[chain] {
		return inSet(chain)
	}
	return w.recent(chain, "--rcheck --seconds "+seconds(w.AffinityTimeout)+" --reap")
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }

// inSet matches what comes from an address in a set.
func inSet(set string) string { return "-m set --match-set " + set + " src " }

// addToSet is the target that puts the source address into a set. An address
// that is there has its time start anew.
func addToSet(set string, timeout time.Duration) string {
	return "SET --add-set " + set + " src --exist --timeout " + seconds(timeout)
}

// recent matches clients on the list of an endpoint's chain.
func (w *portRenderer) recent(list, how string) string {
	mask := "255.255.255.255"
	if w.Family == model.IPv6 {
		mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "-m recent " + how + " --name " + list + " --mask " + mask + " --rsource "
}
