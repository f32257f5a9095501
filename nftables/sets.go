// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"fairlead/nftables/table"
	"fairlead/proxier/model"
)

// destination is the key of most sets: an address, protocol and port, or a protocol and
// a port of the node.
func (c Config) destination(f front, more ...table.Type) []table.Type {
	key := []table.Type{table.InetProto, table.InetService}
	if f == byAddress {
		key = append([]table.Type{c.addr()}, key...)
	}
	return append(key, more...)
}

func (c Config) addr() table.Type { return table.AddrType(c.table()) }

// endpoint is where connections are led to.
func (c Config) endpoint() []table.Type { return []table.Type{c.addr(), table.InetService} }

// The sets, but those of classes and timeouts, in the order that people read them in.
const (
	clusterIPs        = "cluster-ips"
	externalIPs       = "external-ips"
	nodePortIPs       = "node-port-ips"
	podCIDRs          = "pod-cidrs"
	serviceCIDRs      = "service-cidrs"
	internalLocal     = "internal-local"
	externalLocal     = "external-local"
	externalLocalNP   = "external-local-node-ports"
	restricted        = "source-ranges-services"
	sourceRanges      = "source-ranges"
	noEndpoints       = "no-endpoints"
	noEndpointsNP     = "no-endpoints-node-ports"
	noLocal           = "no-local-endpoints"
	noLocalNP         = "no-local-endpoints-node-ports"
	masquerade        = "masqueraded"
	masqueradeNP      = "masqueraded-node-ports"
	hairpin           = "hairpin"
	ownEndpoints      = "own-endpoints"
	affinity          = "affinity"
	affinityNP        = "affinity-node-ports"
	affinityTargets   = "affinity-endpoints"
	affinityTargetsNP = "affinity-endpoints-node-ports"
)

// maxClients bounds how many clients' endpoints are remembered in each family. What is
// beyond has its endpoint chosen anew by each connection.
const maxClients = 1 << 16

// seldom tells whether there is a set only while something is in it.
func seldom(set string) bool {
	switch set {
	case externalIPs, internalLocal, externalLocal, externalLocalNP, restricted, sourceRanges, masquerade, masqueradeNP,
		affinityTargets, affinityTargetsNP, countPacketsNP, countConnectionsNP:
		return true
	}
	return false
}

// fixedSets are the sets, but those of classes and timeouts, that there are for a usage.
func (c Config) fixedSets(use usage) []*table.Set {
	return slices.DeleteFunc(c.allSets(), func(s *table.Set) bool {
		return seldom(s.Name) && !use.has(s.Name) || s.Dynamic && !use.remembers(s.Name)
	})
}

// has tells whether there is a set that is in use seldom.
func (u usage) has(set string) bool {
	switch set {
	case restricted, sourceRanges: // one rule looks into both
		return u.counts(restricted, sourceRanges)
	case countPacketsNP, countConnectionsNP: // one leads to the other
		return u.counts(countPacketsNP, countConnectionsNP)
	case affinityTargets:
		return u.remembers(affinity)
	case affinityTargetsNP:
		return u.remembers(affinityNP)
	}
	return u.counts(set)
}

// counts tells whether one of some sets has been in use.
func (u usage) counts(sets ...string) bool {
	return slices.ContainsFunc(sets, func(s string) bool { _, ok := u.seldom[s]; return ok })
}

// remembers tells whether there is the map of clients, which goes with what leads to it.
func (u usage) remembers(m string) bool {
	for _, f := range []front{byAddress, byNodePort} {
		if affinityName(f) != m {
			continue
		}
		if _, ok := u.seldom[affinityTargetsName(f)]; ok {
			return true
		}
		for t := range u.timeouts {
			if t.front == f {
				return true
			}
		}
	}
	return false
}

func (c Config) allSets() []*table.Set {
	set := func(name, comment string, key ...table.Type) *table.Set {
		return &table.Set{Name: name, Comment: comment, Key: key}
	}
	ranges := func(s *table.Set) *table.Set { s.Interval = true; return s }
	leads := func(s *table.Set) *table.Set { s.Data = c.endpoint(); return s }
	vip, np, ip := c.destination(byAddress), c.destination(byNodePort), c.addr()
	out := []*table.Set{
		set(clusterIPs, "addresses that Services have in the cluster", ip),
		set(externalIPs, "addresses that Services have for the outside", ip),
		set(nodePortIPs, "where node ports answer, unless on all addresses", ip),
		ranges(set(podCIDRs, "who is a pod", ip)),
		ranges(set(serviceCIDRs, "what cluster IPs are given out of", ip)),
		set(internalLocal, "cluster IPs for endpoints of this node alone", vip...),
		set(externalLocal, "external addresses whose clients go to endpoints of this node", vip...),
		set(externalLocalNP, "node ports whose clients go to endpoints of this node", np...),
		set(restricted, "addresses for some sources alone", vip...),
		ranges(set(sourceRanges, "these sources", c.destination(byAddress, ip)...)),
		set(noEndpoints, "refused: nobody serves", vip...),
		set(noEndpointsNP, "refused: nobody serves", np...),
		set(noLocal, "dropped: nobody serves on this node", vip...),
		set(noLocalNP, "dropped: nobody serves on this node", np...),
		set(masquerade, "external addresses whose clients get the address of this node", vip...),
		set(masqueradeNP, "node ports whose clients get the address of this node", np...),
		set(hairpin, "endpoints that may reach themselves", ip, ip),
	}
	if c.MasqueradeNeighbours {
		out = append(out, set(ownEndpoints, "endpoints of this node", ip))
	}
	for _, f := range []front{byAddress, byNodePort} {
		remember := leads(set(affinityName(f), "clients, and where they were before", append([]table.Type{ip}, c.destination(f)...)...))
		remember.Dynamic, remember.Size = true, maxClients
		out = append(out, remember,
			set(affinityTargetsName(f), "where clients may be remembered to have been", c.destination(f, ip, table.InetService)...))
	}
	for _, f := range []front{byAddress, byNodePort} {
		for _, p := range []policy{cluster, local} {
			out = append(out, leads(set(endpointsName(f, p), endpointsComment(p), c.destination(f, table.Integer)...)))
		}
	}
	return slices.Concat(out, c.annexSets(), c.countingSets())
}

func affinityName(f front) string { return [...]string{affinity, affinityNP}[f] }

func affinityTargetsName(f front) string { return [...]string{affinityTargets, affinityTargetsNP}[f] }

// endpointsName names the map that has the endpoints, slot by slot.
func endpointsName(f front, p policy) string {
	return [...][2]string{{"endpoints", "local-endpoints"}, {"node-port-endpoints", "node-port-local-endpoints"}}[f][p]
}

func endpointsComment(p policy) string {
	if p == local {
		return "endpoints of this node"
	}
	return "endpoints"
}

// name is that of the set of a class, and of the chain that serves it.
func (k class) name() string {
	return [...][2]string{{"services", "services-local"}, {"node-ports", "node-ports-local"}}[k.front][k.policy] +
		k.kind() + "-" + strconv.Itoa(k.slots)
}

// kind is the part of the name that says how a slot is chosen.
func (k class) kind() string {
	if k.how == model.Random {
		return ""
	}
	return "-" + string(k.how)
}

// set returns the set of a class.
func (c Config) classSet(k class) *table.Set {
	what := [...]string{"Services", "node ports"}[k.front]
	whose := [...]string{"", " on this node"}[k.policy]
	return &table.Set{Name: k.name(), Key: c.destination(k.front),
		Comment: fmt.Sprintf("%s with %s%s", what, k.size(), whose)}
}

// size tells how many endpoints there are.
func (k class) size() string {
	if k.how != model.Random {
		return fmt.Sprintf("a %s table of %d slots", k.how, k.slots)
	}
	switch k.slots {
	case 1:
		return "one endpoint"
	case 2:
		return "two endpoints"
	}
	return fmt.Sprintf("%d to %d endpoints", k.slots/2+1, k.slots)
}

// name is that of the set of what has a timeout.
func (t timeout) name() string {
	return [...]string{"affinity-services", "affinity-node-ports"}[t.front] + "-" + strconv.Itoa(int(t.Duration/time.Second))
}

// timeoutSet returns the set of a timeout.
func (c Config) timeoutSet(t timeout) *table.Set {
	return &table.Set{Name: t.name(), Key: c.destination(t.front),
		Comment: fmt.Sprintf("whose clients come back to their endpoint within %s", t.Duration)}
}
