// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"cmp"
	"maps"
	"slices"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// tries is how often a free slot is passed over before a choice is made among the first
// half of the slots, which has none. As more than half are filled, that happens to one
// connection of 256 at most.
const tries = 8

// hashSeed is the same on all nodes, so that they choose alike.
const hashSeed = 0x6d61676c

// tableComment says whose the table is.
const tableComment = "Services of Kubernetes, by Fairlead"

// early is the chain that packets come to first, and earlyPriority its priority.
const (
	early         = "filter-prerouting"
	earlyPriority = -110
)

// skeleton is the table without elements: sets and chains, which hang on what is in use,
// not on how many use it. It is pure.
func (c Config) skeleton(node nodeView, use usage) *table.Table {
	s := &sketch{Config: c, f: c.table(), node: node, sets: map[string]*table.Set{}}
	s.table = &table.Table{Family: s.f, Name: TableName, Comment: tableComment}
	for _, set := range c.fixedSets(use) {
		s.add(set)
	}
	s.classes = slices.SortedFunc(maps.Keys(use.classes), class.compare)
	for _, k := range s.classes {
		s.add(c.classSet(k))
	}
	s.timeouts = slices.SortedFunc(maps.Keys(use.timeouts), func(a, b timeout) int {
		return cmp.Or(cmp.Compare(a.front, b.front), cmp.Compare(a.Duration, b.Duration))
	})
	for _, t := range s.timeouts {
		s.add(c.timeoutSet(t))
	}
	s.choice()
	s.translation()
	s.filter()
	s.sources()
	s.annexChains()
	s.countingChains()
	return s.table
}

// compare is the order in which packets look for their class.
func (k class) compare(o class) int {
	return cmp.Or(cmp.Compare(k.front, o.front), cmp.Compare(k.policy, o.policy),
		cmp.Compare(k.kind(), o.kind()), cmp.Compare(k.slots, o.slots))
}

// sketch is a table in the making.
type sketch struct {
	Config
	f        table.Family
	node     nodeView
	table    *table.Table
	sets     map[string]*table.Set
	classes  []class
	timeouts []timeout
}

func (s *sketch) add(set *table.Set) {
	s.sets[set.Name] = set
	s.table.Sets = append(s.table.Sets, set)
}

func (s *sketch) chain(name string, rules ...table.Rule) {
	s.table.Chains = append(s.table.Chains, &table.Chain{Name: name, Rules: rules})
}

func (s *sketch) base(name, typ, hook string, priority int, rules ...table.Rule) {
	s.table.Chains = append(s.table.Chains, &table.Chain{Name: name, Type: typ, Hook: hook, Priority: priority, Rules: rules})
}

// has tells whether there is a set, without which rules that would look into it are left
// out.
func (s *sketch) has(set string) bool { return s.sets[set] != nil }

func (s *sketch) rule() table.Builder { return table.On(s.f) }

func (s *sketch) daddr() table.Field { return table.Destination(s.f) }
func (s *sketch) saddr() table.Field { return table.Source(s.f) }

// to is a packet's destination as sets have it.
func (s *sketch) to(f front, more ...table.Field) []table.Field {
	key := []table.Field{table.Protocol(), table.Port()}
	if f == byAddress {
		key = append([]table.Field{s.daddr()}, key...)
	}
	return append(key, more...)
}

// originally is the destination before it was translated.
func (s *sketch) originally(f front, more ...table.Field) []table.Field {
	key := []table.Field{table.Protocol(), table.OriginalPort()}
	if f == byAddress {
		key = append([]table.Field{table.OriginalDestination(s.f)}, key...)
	}
	return append(key, more...)
}

// choice makes the chains that choose an endpoint, one for each class, and those that
// find the class.
func (s *sketch) choice() {
	for _, k := range s.classes {
		m := s.sets[endpointsName(k.front, k.policy)]
		if k.how != model.Random {
			hash := table.HashOf(s.f, k.how == model.MaglevPort, k.slots, hashSeed)
			s.chain(k.name(), s.rule().DNAT(m, s.to(k.front, hash)...))
			continue
		}
		try := s.rule().DNAT(m, s.to(k.front, table.OneOf(k.slots))...)
		rules := []table.Rule{try}
		if k.slots > 2 { // else all slots are filled
			for range tries - 1 {
				rules = append(rules, try)
			}
			rules = append(rules, s.rule().DNAT(m, s.to(k.front, table.OneOf(k.slots/2))...))
		}
		if k.slots > 1 {
			// For a packet that was here already when most endpoints went.
			rules = append(rules, s.rule().DNAT(m, s.to(k.front, table.OneOf(1))...))
		}
		s.chain(k.name(), rules...)
	}
	for _, f := range []front{byAddress, byNodePort} {
		for _, p := range []policy{cluster, local} {
			if p == local && !s.chooses(f) {
				continue
			}
			var rules []table.Rule
			for _, k := range s.classes {
				if k.front == f && k.policy == p {
					rules = append(rules, s.rule().In(s.sets[k.name()], s.to(f)...).Goto(k.name()))
				}
			}
			s.chain(choose(f, p), rules...)
		}
	}
}

// chooses tells whether there are destinations for endpoints of this node alone.
func (s *sketch) chooses(f front) bool {
	if f == byNodePort {
		return s.has(externalLocalNP)
	}
	return s.has(internalLocal) || s.has(externalLocal)
}

// choose names the chain that finds a destination's class.
func choose(f front, p policy) string {
	return [...][2]string{{"services", "services-local"}, {"node-ports", "node-ports-local"}}[f][p]
}

// translation makes the chains that lead packets to endpoints.
func (s *sketch) translation() {
	for _, f := range []front{byAddress, byNodePort} {
		if !s.has([...]string{externalLocal, externalLocalNP}[f]) {
			continue
		}
		// Under the policy Local the traffic of pods and of this node, which needs no way
		// back to a client outside, may go to any endpoint, as if it had gone out to the
		// load balancer and come in elsewhere.
		var outside []table.Rule
		if pods, ok := s.fromPods(); ok {
			outside = append(outside, pods.Goto(choose(f, cluster)))
		}
		outside = append(outside, s.rule().FromNode().Goto(choose(f, cluster)), s.rule().Goto(choose(f, local)))
		s.chain("outside-"+choose(f, local), outside...)
	}
	addresses, ports := s.remembered(byAddress), s.remembered(byNodePort)
	if s.has(internalLocal) {
		addresses = append(addresses, s.rule().In(s.sets[internalLocal], s.to(byAddress)...).Goto(choose(byAddress, local)))
	}
	if s.has(externalLocal) {
		addresses = append(addresses, s.rule().In(s.sets[externalLocal], s.to(byAddress)...).Goto("outside-"+choose(byAddress, local)))
	}
	if s.has(externalLocalNP) {
		ports = append(ports, s.rule().In(s.sets[externalLocalNP], s.to(byNodePort)...).Goto("outside-"+choose(byNodePort, local)))
	}
	s.chain("addresses", append(addresses, s.rule().Goto(choose(byAddress, cluster)))...)
	s.chain("ports", append(ports, s.rule().Goto(choose(byNodePort, cluster)))...)
	rules := []table.Rule{s.rule().In(s.sets[clusterIPs], s.daddr()).Goto("addresses")}
	if s.has(externalIPs) {
		rules = append(rules, s.rule().In(s.sets[externalIPs], s.daddr()).Jump("addresses"))
	}
	if toNode, ok := s.toNodePorts(); ok {
		rules = append(rules, toNode.Goto("ports"))
	}
	s.chain("translate", rules...)
	s.base("nat-prerouting", "nat", "prerouting", -105, s.rule().Jump("translate"))
	s.base("nat-output", "nat", "output", -105, s.rule().Jump("translate"))
}

// remembered leads clients with session affinity to where they were before.
func (s *sketch) remembered(f front) []table.Rule {
	var out []table.Rule
	for _, t := range s.timeouts {
		if t.front == f {
			out = append(out, s.rule().In(s.sets[t.name()], s.to(f)...).
				DNAT(s.sets[affinityName(f)], append([]table.Field{s.saddr()}, s.to(f)...)...))
		}
	}
	return out
}

// toNodePorts matches what is for an address that node ports answer on; ok is false
// where there is none.
func (s *sketch) toNodePorts() (table.Builder, bool) {
	b := s.rule()
	if s.f == table.IPv6 || !s.LocalhostNodePorts { // a packet from ::1 cannot leave the node
		b = b.NotLoopback()
	}
	if s.node.nodePorts.All {
		return b.ToNode(), true
	}
	return b.In(s.sets[nodePortIPs], s.daddr()), len(s.node.nodePorts.Addrs) > 0
}

// fromPods matches what pods send; ok is false where it is not known who is a pod.
func (s *sketch) fromPods() (_ table.Builder, ok bool) {
	switch {
	case len(s.node.podCIDRs) > 0:
		return s.rule().In(s.sets[podCIDRs], s.saddr()), true
	case s.PodInterface != "":
		return s.rule().From(s.PodInterface), true
	}
	return s.rule(), false
}

// notFromPods narrows a match to what others send: one for each way to tell them. What
// passes between two ports of a bridge arrives by no interface, as far as rules can see
// once it has been translated (br_nf_post_routing in net/bridge/br_netfilter_hooks.c).
func (s *sketch) notFromPods(b table.Builder) []table.Builder {
	switch {
	case len(s.node.podCIDRs) > 0:
		return []table.Builder{b.NotIn(s.sets[podCIDRs], s.saddr())}
	case s.PodInterface != "":
		return []table.Builder{b.FromNode(), b.Arrived().NotFrom(s.PodInterface)}
	}
	return nil
}

// filter makes the chains that keep out and refuse.
func (s *sketch) filter() {
	s.admission()
	vip, np := s.to(byAddress), s.to(byNodePort)
	refuse := s.rule().In(s.sets[noEndpoints], vip...).Reject()
	drop := s.rule().In(s.sets[noLocal], vip...).Drop()
	s.chain("unserved", drop, refuse)
	// What is for a cluster IP and has not been translated is for a port that no Service
	// has, or no port at all; in a ServiceCIDR, for an address that nobody has.
	s.chain("unserved-cluster-ips", s.rule().Jump("unserved"), s.rule().Reject())
	s.chain("unserved-node-ports",
		s.rule().In(s.sets[noLocalNP], np...).Drop(), s.rule().In(s.sets[noEndpointsNP], np...).Reject())
	toClusterIP := s.rule().In(s.sets[clusterIPs], s.daddr()).Goto("unserved-cluster-ips")
	toNobody := s.rule().In(s.sets[serviceCIDRs], s.daddr()).Reject()

	forward := []table.Rule{}
	if !s.KeepInvalid {
		forward = append(forward, s.rule().Invalid().Count().Drop().Because("of no connection that is known"))
	}
	through, in := []table.Rule{toClusterIP}, []table.Rule{}
	if s.has(externalIPs) {
		through = append(through, s.rule().In(s.sets[externalIPs], s.daddr()).Goto("unserved"))
		in = append(in, s.rule().In(s.sets[externalIPs], s.daddr()).Jump("unserved"))
	}
	s.chain("refuse-forward", append(through, toNobody)...)
	s.chain("refuse-output", toClusterIP, toNobody)
	s.chain("refuse-input", append(in, s.rule().ToNode().Goto("unserved-node-ports"))...)
	var input []table.Rule
	if len(s.timeouts) > 0 {
		input = append(input, s.rule().New().Translated().Jump("remember"))
	}
	untranslated := s.rule().New().Untouched()
	s.base("filter-input", "filter", "input", 0, append(input, untranslated.Jump("refuse-input"))...)
	s.base(forwardChain, "filter", "forward", 0, append(forward, untranslated.Jump("refuse-forward"))...)
	s.base("filter-output", "filter", "output", 0, untranslated.Jump("refuse-output"))
}

// admission makes the chains that keep sources out, before anything is translated.
func (s *sketch) admission() {
	var first, unadmitted []table.Rule
	if s.f == table.IPv4 {
		first = append(first, loopbackGuard(s.f))
	}
	if s.has(restricted) {
		unadmitted = append(unadmitted, s.rule().New().In(s.sets[restricted], s.to(byAddress)...).
			NotIn(s.sets[sourceRanges], s.to(byAddress, s.saddr())...).Drop())
		s.base("filter-output-first", "filter", "output", -110, unadmitted...)
	}
	if first = append(first, unadmitted...); len(first) > 0 {
		s.base(early, "filter", "prerouting", earlyPriority, first...)
	}
}

// forwardChain is the chain of what passes through the node.
const forwardChain = "filter-forward"

// InvalidDropped returns how many packets have been dropped as they are of no connection
// that is known, since the rule for that was made.
func InvalidDropped(k interface {
	Counted(chain string) (packets uint64, err error)
}) (uint64, error) {
	return k.Counted(forwardChain)
}

// sources makes the chains that masquerade, and those that remember clients: both after
// the destination has been translated, before the source is.
func (s *sketch) sources() {
	var remember []table.Rule
	for _, t := range s.timeouts {
		for _, proto := range []uint8{6, 17, 132} {
			here := s.rule().WithPort(proto)
			remember = append(remember, here.In(s.sets[t.name()], s.originally(t.front)...).
				In(s.sets[affinityTargetsName(t.front)], s.originally(t.front, s.daddr(), table.PortOf(proto))...).
				Remember(s.sets[affinityName(t.front)], t.Duration,
					append([]table.Field{s.saddr()}, s.originally(t.front)...), []table.Field{s.daddr(), table.PortOf(proto)}))
		}
	}
	if len(remember) > 0 {
		s.chain("remember", remember...)
		s.base("remember-postrouting", "filter", "postrouting", 90, s.rule().New().Translated().Jump("remember"))
	}

	rules := []table.Rule{s.rule().In(s.sets[hairpin], s.saddr(), s.daddr()).Masquerade()}
	const bypass = "answers between pods of one bridge bypass the rules"
	toCluster := s.rule().In(s.sets[clusterIPs], table.OriginalDestination(s.f))
	if pods, ok := s.fromPods(); ok && s.MasqueradeNeighbours {
		rules = append(rules, pods.In(s.sets[clusterIPs], table.OriginalDestination(s.f)).
			In(s.sets[ownEndpoints], s.daddr()).Masquerade().Because(bypass))
	}
	if s.MasqueradeAll {
		rules = append(rules, toCluster.Masquerade())
	} else {
		for _, outside := range s.notFromPods(toCluster) {
			rules = append(rules, outside.Masquerade())
		}
	}
	rules = append(rules, toCluster.Return())
	for _, f := range []front{byAddress, byNodePort} {
		for _, proto := range []uint8{6, 17, 132} {
			if set := [...]string{masquerade, masqueradeNP}[f]; s.has(set) {
				rules = append(rules, s.rule().Of(proto).In(s.sets[set], s.originally(f)...).Masquerade())
			}
			if set := [...]string{externalLocal, externalLocalNP}[f]; s.has(set) {
				rules = append(rules, s.rule().Of(proto).In(s.sets[set], s.originally(f)...).Goto("source-nat-local"))
			}
		}
	}
	if s.has(externalLocal) || s.has(externalLocalNP) {
		var own []table.Rule
		if pods, ok := s.fromPods(); ok {
			if s.MasqueradeNeighbours {
				own = append(own, pods.In(s.sets[ownEndpoints], s.daddr()).Masquerade().Because(bypass))
			}
			own = append(own, pods.Return())
		}
		s.chain("source-nat-local", append(own, s.rule().FromNode().Masquerade())...)
	}
	s.chain("source-nat", append(rules, s.hostPortSource())...)
	s.base("nat-postrouting", "nat", "postrouting", 95, s.rule().Translated().Jump("source-nat"))
}
