// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"crypto/sha256"
	"encoding/base32"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fairlead/iptables/dispatch"
	"fairlead/iptables/ruleset"
	"fairlead/nat"
	"fairlead/proxier/model"
)

// The chains of this package. In table filter they let through what was translated,
// for pods that nothing else lets through.
const (
	hostPorts = Root
	prefix    = Prefix
)

// Root is the name of the chain that host ports start in, and Prefix begins those of
// the chains that it leads to.
const (
	Root   = "KUBE-HOSTPORTS"
	Prefix = "KUBE-HP-"
)

// Mark begins the comment of every rule in this package's chains. CRI-O and kubelet
// before Kubernetes 1.24 have chains of the same names.
const Mark = "fairlead: "

// Config is what the rules depend on besides pods.
type Config struct {
	Family model.Family
	// Localhost lets host ports answer on 127.0.0.1, and LocalhostNodePorts node ports.
	Localhost, LocalhostNodePorts bool
	// MasqueradeNeighbours masquerades what neighbours of a pod send to it by a host
	// port: where packets between two ports of one bridge do not pass the rules, the
	// answer would not be translated back.
	MasqueradeNeighbours bool
	// Protected are ports that no pod gets, with what they are.
	Protected map[Port]string
	// Forwarded are where the pods have their addresses that others let through.
	Forwarded []netip.Prefix
}

// Keys are the chains that host ports start in.
func Keys() []ruleset.ChainKey {
	return []ruleset.ChainKey{{Table: ruleset.NAT, Name: hostPorts}, {Table: ruleset.Filter, Name: hostPorts}}
}

// Contribution declares the chains and the jumps of this package. The jumps are below
// all others: Services come first, and what others drop is dropped. What comes from
// elsewhere never reaches a port of 127.0.0.1.
func Contribution(cfg Config) ruleset.Contribution {
	const comment = `-m comment --comment "kubernetes host ports" `
	jump := func(t ruleset.Table, from, before, after string) ruleset.Jump {
		return ruleset.Jump{
			ChainKey: ruleset.ChainKey{Table: t, Name: from}, Last: true,
			Rule: ruleset.Rule(before + comment + after + "-j " + hostPorts),
		}
	}
	const toNode = "-m addrtype --dst-type LOCAL "
	outside, inside := "! -d 127.0.0.0/8 ", "! -d 127.0.0.0/8 "
	if cfg.Family == model.IPv6 {
		outside, inside = "! -d ::1/128 ", "! -d ::1/128 " // a packet from ::1 cannot leave the node
	} else if cfg.Localhost {
		inside = ""
	}
	out := ruleset.Contribution{Name: "portmap", Owns: Keys()}
	for _, k := range Keys() {
		out.Owns = append(out.Owns, ruleset.ChainKey{Table: k.Table, Name: prefix + "*"})
	}
	out.Jumps = []ruleset.Jump{
		jump(ruleset.NAT, "PREROUTING", outside, toNode),
		jump(ruleset.NAT, "OUTPUT", inside, toNode),
		jump(ruleset.Filter, "FORWARD", "", "-m conntrack --ctstate DNAT "),
	}
	return out
}

// Portmap is the host ports of one family. It is not safe for concurrent use.
type Portmap struct {
	cfg    Config
	claims *claims
	// one and any have the host ports on one address and on all, and through what is
	// let through for them.
	one, any, through *dispatch.Tree
	links             []netip.Prefix
}

// New returns a Portmap without any host port.
func New(cfg Config) *Portmap {
	bits := 32
	if cfg.Family == model.IPv6 {
		bits = 128
	}
	all := "-m comment --comment " + ruleset.Quote(Mark+"host ports") + " "
	return &Portmap{
		cfg: cfg,
		claims: newClaims(rules{
			family: cfg.Family, localhost: cfg.Localhost && cfg.Family == model.IPv4,
			localhostNodePorts: cfg.LocalhostNodePorts && cfg.Family == model.IPv4, protected: cfg.Protected,
		}),
		one: dispatch.New(bits, prefix, all), any: dispatch.New(0, prefix, all), through: dispatch.New(bits, prefix, all),
	}
}

// Node is what host ports depend on of the node.
type Node struct {
	Addrs []netip.Addr
	// Links are the networks that the node has an address in.
	Links []netip.Prefix
	// NodePorts are the addresses that node ports answer on, unless AllNodePorts is set:
	// then they do on all.
	NodePorts    []netip.Addr
	AllNodePorts bool
	// Astray are addresses of pods that do not lead to a pod right now, with what
	// they are instead.
	Astray map[netip.Addr]string
}

// equal tells whether the node is the same to all pods.
func (n Node) equal(o Node) bool {
	return slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.Links, o.Links) &&
		slices.Equal(n.NodePorts, o.NodePorts) && n.AllNodePorts == o.AllNodePorts
}

func (n Node) clone() Node {
	n.Addrs, n.Links, n.NodePorts = slices.Clone(n.Addrs), slices.Clone(n.Links), slices.Clone(n.NodePorts)
	n.Astray = maps.Clone(n.Astray)
	return n
}

// Objects are those that have changed, nil for those that are gone.
type Objects struct {
	Pods map[model.ObjectKey]*model.Pod
	// Services have the ports of nodes first, with or without endpoints.
	Services map[model.ServicePortName]*model.ServicePort
}

// Changes are what an update has come to.
type Changes struct {
	// Gone and Fresh are the host ports that are no more, and those that are new.
	Gone, Fresh []Mapping
	// Written are those whose rules are others than before, the fresh ones among them.
	Written []Mapping
	// Refused are the host ports that no pod has got, as far as that is new.
	Refused []Refused
}

// Update takes over objects and what is known of the node.
func (p *Portmap) Update(objs Objects, node Node) Changes {
	d := p.claims.update(objs, node)
	out := Changes{Gone: d.gone, Fresh: d.fresh, Written: d.fresh, Refused: d.refused}
	if p.cfg.MasqueradeNeighbours && !slices.Equal(p.links, node.Links) {
		out.Written = p.all()
	}
	p.links = slices.Clone(node.Links)
	return out
}

// Chains returns the chains to stage after changes, nil for those that are gone. It is to
// be told of all changes, one after the other.
func (p *Portmap) Chains(c Changes) map[ruleset.ChainKey]*ruleset.Chain {
	out := map[ruleset.ChainKey]*ruleset.Chain{}
	for _, m := range c.Gone {
		out[natKey(chainOf(m))] = nil
		p.tree(m).Remove(keyOf(m), chainOf(m))
		p.through.Remove(targetOf(m), chainOf(m))
	}
	for _, m := range c.Written {
		p.render(m, out)
	}
	p.stage(out)
	return out
}

// Len returns how many host ports lead to a pod, and how many are refused.
func (p *Portmap) Len() (mapped, refused int) { return p.claims.sums.mapped, p.claims.sums.refused }

// all returns all host ports that lead to a pod.
func (p *Portmap) all() []Mapping {
	var out []Mapping
	for _, list := range p.claims.mapped {
		out = append(out, list...)
	}
	return out
}

// render makes the chain of a host port, and what leads there.
func (p *Portmap) render(m Mapping, chains map[ruleset.ChainKey]*ruleset.Chain) {
	name, proto := chainOf(m), m.Protocol.Lower()
	text := Mark + m.Pod.String()
	comment := "-m comment --comment " + ruleset.Quote(text[:min(len(text), ruleset.MaxComment)]) + " "
	c := &ruleset.Chain{Unit: "host port " + m.Port.String() + " of pod " + m.Pod.String()}
	for _, src := range p.Masqueraded(m) {
		c.Rules = append(c.Rules, ruleset.Rule("-s "+src.String()+" "+comment+"-j "+nat.MarkMasq))
	}
	c.Rules = append(c.Rules, ruleset.Rule("-p "+proto+" "+comment+"-m "+proto+" -j DNAT --to-destination "+m.To.String()))
	chains[natKey(name)] = c

	p.tree(m).Put(keyOf(m), name, leads(m, comment, name))
	if !slices.ContainsFunc(p.cfg.Forwarded, func(c netip.Prefix) bool { return c.Contains(m.To.Addr()) }) {
		accept := "-d " + single(m.To.Addr()).String() + " -p " + proto + " " + comment + "-m " + proto +
			" --dport " + strconv.Itoa(int(m.To.Port())) + " -j ACCEPT"
		p.through.Put(targetOf(m), name, []ruleset.Rule{ruleset.Rule(accept)})
	}
}

// leads returns the rules that lead to the chain of a host port, all but what is a
// Service's: where that has no endpoints, or none for the sender, its own rules leave
// the packet alone in table nat, and refuse or drop it later.
func leads(m Mapping, comment, chain string) []ruleset.Rule {
	var out []ruleset.Rule
	add := func(addr netip.Addr, comment, target string) {
		to := ""
		if addr.IsValid() {
			to = "-d " + single(addr).String() + " "
		}
		proto := m.Protocol.Lower()
		out = append(out, ruleset.Rule(to+"-p "+proto+" "+comment+"-m "+proto+" --dport "+strconv.Itoa(int(m.Number))+" -j "+target))
	}
	for _, a := range m.Except {
		add(a, "-m comment --comment "+ruleset.Quote(Mark+"a Service has it")+" ", "RETURN")
	}
	add(m.HostIP, comment, chain)
	return out
}

// Masqueraded returns whose packets to a host port are masqueraded: only those that
// would else be answered past the translation. Who comes from outside is seen as such.
func (p *Portmap) Masqueraded(m Mapping) []netip.Prefix {
	var out []netip.Prefix
	if p.cfg.MasqueradeNeighbours {
		for _, l := range p.links {
			if l.Contains(m.To.Addr()) {
				out = append(out, l)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, single(m.To.Addr()))
	}
	if p.claims.localhost && (!m.HostIP.IsValid() || m.HostIP.IsLoopback()) {
		out = append(out, netip.MustParsePrefix("127.0.0.0/8"))
	}
	return out
}

// stage puts the chains together that lead to those of host ports.
func (p *Portmap) stage(chains map[ruleset.ChainKey]*ruleset.Chain) {
	roots := map[ruleset.Table]bool{}
	for t, trees := range p.trees() {
		for _, tree := range trees {
			tree.Changed(func(name string, rules []ruleset.Rule, ok bool) {
				switch {
				case name == "":
					roots[t] = true
				case ok:
					chains[ruleset.ChainKey{Table: t, Name: name}] = &ruleset.Chain{Rules: rules}
				default:
					chains[ruleset.ChainKey{Table: t, Name: name}] = nil
				}
			})
		}
	}
	for t := range roots {
		var rules []ruleset.Rule
		for _, tree := range p.trees()[t] {
			rules = append(rules, tree.Root()...)
		}
		key := ruleset.ChainKey{Table: t, Name: hostPorts}
		if chains[key] = nil; len(rules) > 0 {
			chains[key] = &ruleset.Chain{Rules: rules}
		}
	}
}

// trees returns the trees of each table, in the order in which packets pass them: a
// host port on one address comes before one on all.
func (p *Portmap) trees() map[ruleset.Table][]*dispatch.Tree {
	return map[ruleset.Table][]*dispatch.Tree{ruleset.NAT: {p.one, p.any}, ruleset.Filter: {p.through}}
}

func (p *Portmap) tree(m Mapping) *dispatch.Tree {
	if m.HostIP.IsValid() {
		return p.one
	}
	return p.any
}

func keyOf(m Mapping) dispatch.Key {
	return dispatch.Key{Addr: m.HostIP, Protocol: m.Protocol, Port: m.Number}
}

func targetOf(m Mapping) dispatch.Key {
	return dispatch.Key{Addr: m.To.Addr(), Protocol: m.Protocol, Port: m.To.Port()}
}

func natKey(name string) ruleset.ChainKey { return ruleset.ChainKey{Table: ruleset.NAT, Name: name} }

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// chainOf returns the name of a host port's chain. It is another one for another pod
// of the same name.
func chainOf(m Mapping) string {
	sum := sha256.Sum256([]byte(m.Pod.String() + " " + m.UID + " " + m.Port.String() + " " + m.HostIP.String()))
	return prefix + base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// UDPPort returns the port for UDP that a rule leads from to a pod, and its address,
// invalid for all.
func UDPPort(r ruleset.Rule) (addr netip.Addr, port uint16, ok bool) {
	matches, rest, _ := strings.Cut(string(r), " -m comment ")
	_, number, _ := strings.Cut(rest, " --dport ")
	number, target, _ := strings.Cut(number, " ")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || !strings.HasPrefix(target, "-j "+prefix) || !strings.HasSuffix(matches, "-p udp") {
		return netip.Addr{}, 0, false
	}
	if dst, has := strings.CutPrefix(matches, "-d "); has {
		text, _, _ := strings.Cut(dst, " ")
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return netip.Addr{}, 0, false
		}
		addr = p.Addr()
	}
	return addr, uint16(n), true
}
