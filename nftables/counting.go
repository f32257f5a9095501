// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// What ports of Services carry is counted by elements, of which each port that is counted by
// itself has three for each of its places: for the packets to it, those back, and the first
// ones of connections. What all other ports carry is counted by a few elements more. Rules
// look up the packets of connections that have been translated, by what these were sent to
// first. None of it is there unless Config.Counting is set.

// The sets that count. A name is that of the chain, too, where there is one.
const (
	countPackets       = "traffic"
	countPacketsNP     = "traffic-node-ports"
	countConnections   = "connections"
	countConnectionsNP = "connections-node-ports"
	countOthers        = "other-traffic"
	countOthersNew     = "other-connections"
)

// countingSets are the sets that count.
func (c Config) countingSets() []*table.Set {
	if !c.Counting {
		return nil
	}
	set := func(name, comment string, key ...table.Type) *table.Set {
		return &table.Set{Name: name, Comment: comment, Key: key, Counter: true}
	}
	return []*table.Set{
		set(countPackets, "what Services carry, to them and back", c.destination(byAddress, table.CTDir)...),
		set(countPacketsNP, "what node ports carry, to them and back", c.destination(byNodePort, table.CTDir)...),
		set(countConnections, "connections to Services", c.destination(byAddress)...),
		set(countConnectionsNP, "connections to node ports", c.destination(byNodePort)...),
		set(countOthers, "what all Services carry that are not counted by themselves", table.CTDir),
		set(countOthersNew, "connections to these", table.InetProto),
	}
}

// counts tells whether an entry counts a port by itself.
func (e entry) counts() bool {
	switch e.of {
	case countPackets, countPacketsNP, countConnections, countConnectionsNP:
		return true
	}
	return false
}

// transports are the transport protocols that Services have, by their numbers.
func transports() []uint8 { return []uint8{6, 17, 132} }

// countingEntries are what counts a port by itself, for those of its places that it has.
func countingEntries(p *model.ServicePort, has func(place) bool) []entry {
	comment := table.Shorten(p.Name.String())
	var out []entry
	for _, pl := range places(p) {
		if !has(pl) {
			continue
		}
		key := pl.key()
		packets, connections := named(pl, countPackets, countPacketsNP), named(pl, countConnections, countConnectionsNP)
		for _, reply := range []bool{false, true} {
			out = append(out, entry{packets, table.Element{Key: string(key[:len(key):len(key)].Direction(reply)), Comment: comment}})
		}
		out = append(out, entry{connections, table.Element{Key: string(key), Comment: comment}})
	}
	return out
}

// countingOthers are what counts all other ports.
func (c Config) countingOthers() []entry {
	if !c.Counting {
		return nil
	}
	var out []entry
	for _, reply := range []bool{false, true} {
		key := table.Key(nil).Direction(reply)[:table.CTDir.Len()]
		out = append(out, entry{countOthers, table.Element{Key: string(key)}})
	}
	for _, proto := range transports() {
		out = append(out, entry{countOthersNew, table.Element{Key: string([]byte{proto})}})
	}
	return out
}

// countingChains makes the chains that look up what is counted. A packet between two
// processes of the node passes output and prerouting, and is counted as it leaves.
func (s *sketch) countingChains() {
	if !s.Counting {
		return
	}
	rules := s.counted(byAddress)
	rules = append(rules, s.rule().In(s.sets[clusterIPs], table.OriginalDestination(s.f)).Goto(countOthers))
	rules = append(rules, s.uncounted(byAddress, masquerade, externalLocal)...)
	rules = append(rules, s.counted(byNodePort)...)
	rules = append(rules, s.uncounted(byNodePort, masqueradeNP, externalLocalNP)...)
	for _, f := range []front{byAddress, byNodePort} {
		if !s.has(connectionsName(f)) {
			continue
		}
		first := []table.Rule{s.rule().Known().Return()}
		for _, proto := range transports() {
			first = append(first, s.rule().OfConnection(proto).In(s.sets[connectionsName(f)], s.connectionTo(f)...).Only())
		}
		s.chain(connectionsName(f), first...)
	}
	s.chain(countOthers,
		s.rule().In(s.sets[countOthers], table.Direction()).Known().Return(),
		s.rule().In(s.sets[countOthersNew], table.ConnectionProtocol()).Only())
	s.chain(countPackets, rules...)
	s.base("traffic-prerouting", "filter", "prerouting", countingPriority, s.rule().Translated().NotFrom("lo").Goto(countPackets))
	s.base("traffic-output", "filter", "output", countingPriority, s.rule().Translated().Goto(countPackets))
}

// countingPriority comes after every translation of destinations (NF_IP_PRI_NAT_DST).
const countingPriority = -90

// counted looks up the packets to ports that are counted by themselves, and back.
func (s *sketch) counted(f front) (out []table.Rule) {
	packets := s.sets[[...]string{countPackets, countPacketsNP}[f]]
	if packets == nil {
		return nil
	}
	for _, proto := range transports() {
		out = append(out, s.rule().OfConnection(proto).In(packets, s.connectionTo(f, table.Direction())...).Goto(connectionsName(f)))
	}
	return out
}

func connectionsName(f front) string { return [...]string{countConnections, countConnectionsNP}[f] }

// uncounted finds the packets to other ports, and back, by what sets there are of them.
func (s *sketch) uncounted(f front, sets ...string) (out []table.Rule) {
	for _, proto := range transports() {
		for _, set := range sets {
			if s.has(set) {
				out = append(out, s.rule().OfConnection(proto).In(s.sets[set], s.connectionTo(f)...).Goto(countOthers))
			}
		}
	}
	return out
}

// connectionTo is the destination that a connection was made to, as sets have it.
func (s *sketch) connectionTo(f front, more ...table.Field) []table.Field {
	key := []table.Field{table.ConnectionProtocol(), table.OriginalPort()}
	if f == byAddress {
		key = append([]table.Field{table.OriginalDestination(s.f)}, key...)
	}
	return append(key, more...)
}

// isReply tells whether the key of an element that counts packets is for those back.
func isReply(key string) bool {
	at := 0 // a direction alone
	if len(key) > table.CTDir.Len() {
		at = len(key) - table.Padded(table.CTDir.Len())
	}
	return key[at] == 1
}
